"""What runs on each training worker: the loop, and what rank 0 writes at every tick."""

import errno
import resource
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train.torch import get_device
from torch.utils.tensorboard import SummaryWriter

from dcgan.evaluation import tick_metric
from dcgan.families.family import FamilyConfig
from dcgan.model_files import Model
from dcgan.numerics import Arithmetic
from dcgan.sampling.sampler import Sampler
from dcgan.training.configuration import MethodConfig
from dcgan.training.state import NonFiniteError, check_finite, check_weights
from dcgan.training.step import Training
from jobs.cluster import monitoring
from jobs.cluster.process import keep_freed_memory
from jobs.command import model_store
from jobs.command.scratch import Scratch
from jobs.command.settings import USER_ERRORS
from jobs.training import diagnostics, ranks, run_store
from jobs.training.progress_actor import ProgressUpdate
from jobs.training.resume import DriverView, RankMismatchError, resume
from pipelines import images
from pipelines.dataset import layout, reader, selection
from pipelines.dataset.shards import CorruptError, ShardError
from pipelines.images import ImageError
from pipelines.loading import loader
from pipelines.loading.order import Plan
from pipelines.storage.folder import Folder, UnreachableError

UPDATE_EVERY_S = 1.0
PREEMPTION_CHECK_EVERY_S = 2.0  # for a node that is to be taken away: clouds give 30 s or more
GRID_COLUMNS = 10
GRID_SEED = 2**62  # far from the seeds that people generate from


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """All that a worker needs to know."""

    data: str
    selection: str | None
    run: str
    network: FamilyConfig
    method: MethodConfig
    plan: Plan
    arithmetic: Arithmetic
    total: int
    tick: int
    keep: int
    metric_images: int
    threads: int
    provenance: dict[str, Any]
    claim: str  # sha256 of run.json, as the driver sees it

    def schedule(self) -> run_store.TickSchedule:
        """What decides which checkpoint is gone on from."""
        return run_store.TickSchedule(self.network, self.plan.batch, self.tick, self.total)


def train(config: dict[str, Any]) -> None:
    """One rank, from the newest checkpoint to the end. `config` holds `job` and the driver's `board`.

    An error that another start would only meet again is left with the board, which ends the job.
    """
    job: TrainingJob = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if job.arithmetic.device == "cuda":
        torch.cuda.set_device(get_device())
    else:
        torch.set_num_threads(job.threads)
        keep_freed_memory()
    try:
        _TrainingLoop(job, config["board"], rank, world).run()
    except Exception as error:
        if will_fail_again(error):
            words = (
                str(error)
                if isinstance(error, RankMismatchError)
                else f"rank {rank} on {socket.gethostname()}: {error}"
            )
            ray.get(config["board"].fail.remote(words))
        raise


def will_fail_again(error: BaseException) -> bool:
    """Whether another start would meet the same error: damaged data, a refused permission, a full disk."""
    if isinstance(error, UnreachableError):
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return True
    return isinstance(error, (*USER_ERRORS, CorruptError, ShardError, ImageError))


class _TrainingLoop:
    """One rank's steps. What is not finite is agreed on, so that no rank waits for one that has stopped."""

    def __init__(self, job: TrainingJob, board: Any, rank: int, world: int) -> None:
        self.job, self.board, self.rank, self.schedule = job, board, rank, job.schedule()
        run, data = Folder(job.run), Folder(job.data)
        index = selection.open_through(data, job.selection)
        self.training = Training(job.network, job.method, job.arithmetic, job.plan.seed, world)
        starts, committed = ray.get(board.started.remote()) if rank == 0 else (0, 0)
        checkpoint = resume(run, self.schedule, self.training, rank, DriverView(job.claim, committed))
        self.seen = checkpoint.images if checkpoint else 0
        # The steps since the last tick, also those of before a restart.
        self.history = unpack_history(checkpoint.history) if checkpoint else []
        self.recorder = Recorder(job, run, data, index, self.seen) if rank == 0 else None
        if starts > 1:
            monitoring.RESTARTS.inc(1, {"worker": "train"})
        self.batches = loader.batches(data, index, job.plan, rank, world, self.seen // job.plan.batch)
        self.steps, self.waited, self.since = 0, 0.0, time.monotonic()

    def run(self) -> None:
        """Step until the end, or until something is not finite."""
        notice, updated_at, error = PreemptionNotice(), self.since, ""
        while self.seen < self.job.total and not error:
            self._step()
            ends, noticed = self.schedule.ends_tick(self.seen), notice.given()
            if self.rank == 0 and time.monotonic() - updated_at > UPDATE_EVERY_S:
                updated_at = time.monotonic()
                self.board.write.remote(ProgressUpdate(self.seen, _note(self.history)))
            # All ranks took the same steps and look for a notice after the same ones, so each of them comes here.
            if ends or noticed:
                error = ranks.first_text(self._not_finite())
                if self.recorder is not None and not error:
                    error = self._record(self.recorder, ends, noticed)
            if ends:
                ray.train.report({"images": self.seen})  # also a barrier: no rank runs ahead of a checkpoint
                error = ranks.first_text(error)
                self.history, self.steps, self.waited, self.since = [], 0, 0.0, time.monotonic()
        self.batches.close()
        if self.recorder is not None:
            if error:
                ray.get(self.board.fail.remote(f"{error}; {self.recorder.last_good()}"))
            self.recorder.close()

    def _step(self) -> None:
        before, size = time.monotonic(), self.job.plan.batch
        batch = next(self.batches)
        self.waited += time.monotonic() - before
        self.history.append(self.training.step(batch.images_BHWC, batch.labels_B, self.seen, batch.first, size))
        self.seen += size
        self.steps += 1

    def _not_finite(self) -> str:
        """The first of this rank's losses since the last tick, or else of its weights, that is not finite, in words.

        Looked for once a tick, so that no step waits for a GPU.
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

    def _record(self, recorder: "Recorder", ends: bool, noticed: bool) -> str:
        """A tick, or a checkpoint between two for a node that is to be taken away: a tick has its own.

        Returns why training has to stop, in words; empty if it goes on.
        """
        size, note = self.job.plan.batch, "a node is to be taken away"
        if ends:
            seconds = time.monotonic() - self.since
            scalars = {name: float(np.mean([float(step[name]) for step in self.history])) for name in self.history[0]}
            scalars["images_per_second"] = self.steps * size / seconds
            scalars["data_wait_share"] = self.waited / seconds
            try:
                note = recorder.tick(self.training, self.seen, scalars)
            except NonFiniteError as error:
                return f"step {self.seen // size}: {error}"
            monitoring.IMAGES.inc(self.steps * size, {"command": "train"})
            monitoring.tick(recorder.ticks[-1])
        else:
            recorder.save(self.training, self.seen, pack_history(self.history))
        warnings = recorder.warnings()
        if noticed:
            warnings += (f"a node is to be taken away; there is a checkpoint of {self.seen:,} images",)
        ray.get(self.board.commit.remote(self.seen))
        self.board.write.remote(ProgressUpdate(self.seen, note, warnings))
        return ""


class PreemptionNotice:
    """Looks every few seconds whether a node is about to be taken away (Ray Train's preemption info).

    Ray's answer is a collective, so all ranks must look after the same steps: they agree on how many by the slowest.
    """

    def __init__(self) -> None:
        self._every = self._left = 1
        self._since = time.monotonic()
        self._given = False

    def given(self) -> bool:
        """To be called after every step. True once, when the first notice has come: then there is time for one save."""
        self._left -= 1
        if self._left or self._given:
            return False
        seconds = ranks.maximum((time.monotonic() - self._since) / self._every)
        self._every = self._left = max(1, round(PREEMPTION_CHECK_EVERY_S / seconds))
        self._since = time.monotonic()
        self._given = ray.train.get_preemption_info() is not None
        return self._given


class Recorder:
    """What rank 0 keeps of a run: statistics, pictures, the checkpoint, the model and which one is best."""

    def __init__(self, job: TrainingJob, run: Folder, data: Folder, index: layout.Index, seen: int) -> None:
        self.job, self.run, self.classes = job, run, index.classes if job.network.num_classes else None
        self.ticks, _ = run_store.read_progress(run, seen)
        self.saved = seen
        self.real, self.labels = first_images(data, index, job.metric_images)
        self.features = tick_metric.RandomFeatures(job.network.channels)
        self.real_features = self.features(self.real)
        self.protocol = f"{tick_metric.PROTOCOL}; {len(self.real)} real and as many fake, seeds from {GRID_SEED}"
        self.scratch = Scratch("tensorboard")
        self.board = SummaryWriter(self.scratch.name)
        if not self.ticks:
            rows = _rows(self.real, self.labels, self.classes)
            run.write("reals.png", images.encode(images.grid(rows, scale=_scale(job))))

    def tick(self, training: Training, seen: int, scalars: dict[str, float]) -> str:
        """Measure, draw and save after `seen` images. Returns a few words on how it goes.

        Raises: NonFiniteError, with nothing written, if what would be published or compared is not finite.
        """
        model = Model(*training.export(), self.classes, self._provenance(seen))
        for name, network in (("average", model.generator), ("discriminator", model.discriminator)):
            check_weights({f"exported {name}.{key}": value for key, value in network.state_dict().items()}, seen)
        sampler = Sampler(model, self.job.arithmetic, 128)
        labels = self.labels if self.classes else None
        fake = sampler.sample(range(GRID_SEED, GRID_SEED + len(self.real)), labels)
        fake_features = self.features(fake.images_NHWC)
        distance = tick_metric.kernel_distance(self.real_features, fake_features)
        label_N = None if labels is None else torch.from_numpy(labels)
        diversity = tick_metric.diversity(self.real_features, fake_features, label_N)
        scalars = {**scalars, "kernel_distance": distance, "diversity": diversity, **_memory()}
        check_finite(scalars, seen)
        rows = _rows(fake.images_NHWC, self.labels, self.classes)
        grid = images.grid(rows, scale=_scale(self.job))
        self.run.write(f"grids/{seen:012d}.png", images.encode(grid))
        self.ticks.append({"images": seen, **scalars, "protocol": self.protocol})
        self._curves(seen, scalars, grid, training.logits)
        self._keep_best(model, seen, distance)
        # The checkpoint last: a crash before it makes the whole tick again, to the same result.
        run_store.write_stats(self.run, self.ticks)
        self.save(training, seen)
        return f"D {scalars['loss_d']:.2f}, G {scalars['loss_g']:.2f}, distance {distance:.4f}"

    def save(self, training: Training, seen: int, history: dict[str, torch.Tensor] | None = None) -> None:
        """Commit a checkpoint; one between two ticks with the `history` since the last one."""
        run_store.save(self.run, seen, training.state(), self.job.keep, history)
        self.saved = seen

    def close(self) -> None:
        """Leave nothing on this machine."""
        self.board.close()
        self.scratch.cleanup()

    def warnings(self) -> tuple[str, ...]:
        """What looks wrong by the ticks so far."""
        return tuple(diagnostics.warnings(self.ticks, self.job.method.loss))

    def last_good(self) -> str:
        """Where to go back to, for the message of a run that had to stop."""
        return f"last good checkpoint: {self.saved:,} images in {self.run}" if self.saved else "no checkpoint yet"

    def _provenance(self, seen: int) -> dict[str, Any]:
        return {**self.job.provenance, "images": seen}

    def _keep_best(self, model: Model, seen: int, distance: float) -> None:
        """Publish the model if none was better."""
        if not run_store.replaces_best(distance, seen, run_store.read_best(self.run)):
            return
        name = f"models/{seen:012d}"
        model_store.save(model, self.run / name)
        best_now = {"model": name, "images": seen, "metric": "kernel_distance", "value": distance}
        run_store.write_best(self.run, {**best_now, "protocol": self.protocol})

    def _curves(
        self, seen: int, scalars: dict[str, float], grid: np.ndarray, logits: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        """TensorBoard's event file, copied to the run as it grows."""
        for name, value in scalars.items():
            self.board.add_scalar(name, value, seen)
        for name, logits_B in zip(("real", "fake"), logits, strict=True):
            self.board.add_histogram(f"logits/{name}", logits_B.float().cpu(), seen)
        self.board.add_image("samples", grid, seen, dataformats="HWC")
        self.board.flush()
        for file in Path(self.scratch.name).iterdir():
            self.run.write(f"tensorboard/{file.name}", file.read_bytes())


def first_images(data: Folder, index: layout.Index, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The dataset's first images and labels: ingest deals them in random order, so they are a fair sample."""
    found: list[np.ndarray] = []
    labels: list[int] = []
    for record in index.shards:
        for sample in reader.samples(data, index, record):
            found.append(reader.pixels(data, index, sample))
            labels.append(sample.label or 0)
            if len(found) == count:
                return np.stack(found), np.array(labels, np.int64)
    return np.stack(found), np.array(labels, np.int64)


def _rows(pictures: np.ndarray, labels: np.ndarray, classes: list[str] | None) -> list[list[np.ndarray]]:
    """Pictures for a grid: a row a class (the first ten), or ten rows."""
    if classes is None:
        return [list(pictures[i : i + GRID_COLUMNS]) for i in range(0, min(len(pictures), 100), GRID_COLUMNS)]
    rows = [list(pictures[labels == label][:GRID_COLUMNS]) for label in range(min(len(classes), 10))]
    return [row for row in rows if row]


def _memory() -> dict[str, float]:
    """The most memory that this rank has held so far, in MiB, and on its GPU."""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # macOS counts bytes, Linux KiB
    held = {"memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if torch.cuda.is_available():
        held["gpu_memory_mib"] = torch.cuda.max_memory_allocated() / (1 << 20)
    return held


def _scale(job: TrainingJob) -> int:
    return max(1, 64 // job.network.image_size)


def _note(history: list[dict[str, torch.Tensor]]) -> str:
    last = history[-1]
    return f"D {float(last['loss_d']):.2f}, G {float(last['loss_g']):.2f}"


def pack_history(history: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Steps' scalars, one tensor a name: what a checkpoint between two ticks holds of them."""
    return {name: torch.stack([step[name].float() for step in history]) for name in history[0]}


def unpack_history(tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The steps' scalars again, to the last bit."""
    return [dict(zip(tensors, values, strict=True)) for values in zip(*tensors.values(), strict=True)]
