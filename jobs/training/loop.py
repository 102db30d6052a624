"""The training loop of one worker: steps, ticks, and a checkpoint before a node is preempted."""

import errno
import socket
import time
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train.torch import get_device

from dcgan.training.state import NonFiniteError, check_finite, check_weights
from dcgan.training.step import Training
from jobs.cluster import monitoring
from jobs.cluster.process import keep_freed_memory
from jobs.command.errors import USER_ERRORS
from jobs.training import ranks
from jobs.training.checkpoints import pack_history, unpack_history
from jobs.training.progress_actor import ProgressUpdate
from jobs.training.recorder import Recorder
from jobs.training.resume import DriverView, RankMismatchError, resume
from jobs.training.training_job import TrainingJob
from pipelines.dataset import selection
from pipelines.dataset.shards import ShardError
from pipelines.errors import CorruptError
from pipelines.images import ImageError
from pipelines.loading import loader
from pipelines.storage.folder import Folder, UnreachableError

UPDATE_EVERY_S = 1.0
PREEMPTION_CHECK_EVERY_S = 2.0  # clouds give 30 s or more between the notice and the end of a node


def train(config: dict[str, Any]) -> None:
    """Train as one rank, from the newest checkpoint to the end.

    An error that would recur after a restart is reported to the progress actor, which ends the job.

    Args: config: `job`, a TrainingJob, and `progress_actor`, the driver's ProgressActor.
    """
    job: TrainingJob = config["job"]
    progress_actor = config["progress_actor"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if job.arithmetic.device == "cuda":
        torch.cuda.set_device(get_device())
    else:
        torch.set_num_threads(job.threads)
        keep_freed_memory()
    try:
        _TrainingLoop(job, progress_actor, rank, world).run()
    except Exception as error:
        if will_fail_again(error):
            known = isinstance(error, RankMismatchError)  # it names the rank
            line = str(error) if known else f"rank {rank} on {socket.gethostname()}: {error}"
            ray.get(progress_actor.fail.remote(line))
        raise


def will_fail_again(error: BaseException) -> bool:
    """Whether the error would recur after a restart: damaged data, a refused permission, a full disk."""
    if isinstance(error, UnreachableError):
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return True
    return isinstance(error, (*USER_ERRORS, CorruptError, ShardError, ImageError))


class _TrainingLoop:
    """The steps of one rank. The ranks agree on a value that is not finite, so that all stop at the same step."""

    def __init__(self, job: TrainingJob, progress_actor: Any, rank: int, world: int) -> None:
        self.job, self.progress_actor, self.rank, self.schedule = job, progress_actor, rank, job.schedule()
        run, data = Folder(job.run), Folder(job.data)
        index = selection.open_through(data, job.selection)
        self.training = Training(job.network, job.method, job.arithmetic, job.plan.seed, world)
        starts, committed = ray.get(progress_actor.started.remote()) if rank == 0 else (0, 0)
        checkpoint = resume(run, self.schedule, self.training, rank, DriverView(job.claim, committed))
        self.seen = checkpoint.images if checkpoint else 0
        # The scalars of the steps since the last tick, with those from before a restart.
        self.history = unpack_history(checkpoint.history) if checkpoint else []
        self.recorder = Recorder(job, run, data, index, self.seen) if rank == 0 else None
        if starts > 1:
            monitoring.RESTARTS.inc(1, {"worker": "train"})
        self.batches = loader.batches(data, index, job.plan, rank, world, self.seen // job.plan.batch)
        self.steps, self.waited, self.since = 0, 0.0, time.monotonic()

    def run(self) -> None:
        """Step until the end, or until a value is not finite."""
        notice, updated_at, error = PreemptionNotice(), self.since, ""
        while self.seen < self.job.total and not error:
            self._step()
            ends, preempted = self.schedule.ends_tick(self.seen), notice.received()
            if self.rank == 0 and time.monotonic() - updated_at > UPDATE_EVERY_S:
                updated_at = time.monotonic()
                self.progress_actor.write.remote(ProgressUpdate(self.seen, _note(self.history)))
            # All ranks take the same steps and check for a notice after the same ones, so all of them come here.
            if ends or preempted:
                error = ranks.first_text(self._not_finite())
                if self.recorder is not None and not error:
                    error = self._record(self.recorder, ends, preempted)
            if ends:
                ray.train.report({"images": self.seen})  # also a barrier: no rank runs ahead of a checkpoint
                error = ranks.first_text(error)
                self.history, self.steps, self.waited, self.since = [], 0, 0.0, time.monotonic()
        self.batches.close()
        if self.recorder is not None:
            if error:
                ray.get(self.progress_actor.fail.remote(f"{error}; {self.recorder.last_good()}"))
            self.recorder.close()

    def _step(self) -> None:
        before, size = time.monotonic(), self.job.plan.batch
        batch = next(self.batches)
        self.waited += time.monotonic() - before
        self.history.append(self.training.step(batch.images_BHWC, batch.labels_B, self.seen, batch.first, size))
        self.seen += size
        self.steps += 1

    def _not_finite(self) -> str:
        """An error for the first of this rank's losses since the last tick, or of its weights, that is not finite.

        Checked once a tick, so that no step waits for a GPU. Empty if all values are finite.
        """
        size = self.job.plan.batch
        seen = self.seen - len(self.history) * size
        try:
            for step in self.history:
                seen += size
                check_finite({name: float(step[name]) for name in ("loss_d", "loss_g")}, seen)
            check_weights(self.training.state(), seen)
        except NonFiniteError as error:
            return f"step {seen // size}: {error}"
        return ""

    def _record(self, recorder: Recorder, ends: bool, preempted: bool) -> str:
        """Record a tick; or, before a preemption between two ticks, a checkpoint alone.

        Returns the reason why training has to stop; empty if it goes on.
        """
        size, note = self.job.plan.batch, "a node will be preempted"
        if ends:
            try:
                note = recorder.tick(self.training, self.seen, self._scalars())
            except NonFiniteError as error:
                return f"step {self.seen // size}: {error}"
            monitoring.IMAGES.inc(self.steps * size, {"command": "train"})
            monitoring.tick(recorder.ticks[-1])
        else:
            recorder.save(self.training, self.seen, pack_history(self.history))
        warnings = recorder.warnings()
        if preempted:
            warnings += (f"a node will be preempted; a checkpoint of {self.seen:,} images is saved",)
        ray.get(self.progress_actor.commit.remote(self.seen))
        self.progress_actor.write.remote(ProgressUpdate(self.seen, note, warnings))
        return ""

    def _scalars(self) -> dict[str, float]:
        """The means of the steps' scalars since the last tick, and the speed."""
        seconds = time.monotonic() - self.since
        means = {name: float(np.mean([float(step[name]) for step in self.history])) for name in self.history[0]}
        return {
            **means,
            "images_per_second": self.steps * self.job.plan.batch / seconds,
            "data_wait_share": self.waited / seconds,
        }


class PreemptionNotice:
    """Checks every few seconds whether a node is about to be preempted (Ray Train's preemption info).

    Ray's answer is a collective, so all ranks must ask after the same steps. The slowest rank sets the interval.
    """

    def __init__(self) -> None:
        self._every = self._left = 1
        self._since = time.monotonic()
        self._received = False

    def received(self) -> bool:
        """Whether the first notice has just come. Call it after every step; it is True once: there is time for one
        save."""
        self._left -= 1
        if self._left or self._received:
            return False
        seconds = ranks.maximum((time.monotonic() - self._since) / self._every)
        self._every = self._left = max(1, round(PREEMPTION_CHECK_EVERY_S / seconds))
        self._since = time.monotonic()
        self._received = ray.train.get_preemption_info() is not None
        return self._received


def _note(history: list[dict[str, torch.Tensor]]) -> str:
    last = history[-1]
    return f"D {float(last['loss_d']):.2f}, G {float(last['loss_g']):.2f}"
