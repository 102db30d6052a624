"""The driver's side of a training: start Ray Train's workers, show their progress, and report why they stopped."""

import threading
import traceback
import uuid
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.cluster import failures, process
from jobs.command.errors import LostWorkError
from jobs.command.progress import Progress
from jobs.command.scratch import Scratch
from jobs.training import loop
from jobs.training.progress_actor import ProgressActor, ProgressState
from jobs.training.training_job import TrainingJob


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of a training: at least `fewest`, at most `most`, each with or without a GPU."""

    fewest: int
    most: int
    gpu: bool


def fit(job: TrainingJob, workers: Workers, max_failures: int, resumed: int) -> None:
    """Train to the end, showing the progress.

    Args:   resumed: images of the checkpoint that the run resumes from.
    Raises: LostWorkError if the training does not reach its end.
    """
    # On the driver's own node: if it ran on another node, a preemption there would end the job.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ProgressActor.options(scheduling_strategy=here).remote(resumed)  # type: ignore[attr-defined]  # ray.remote's classes
    with (
        Scratch("train") as scratch,
        process.report_sudden_end(f"train: error: this process ended before the run was done. {_goes_on(job)}"),
    ):
        _watch(_FitThread(_ray_trainer(job, actor, workers, max_failures, scratch)), actor, job)


def _ray_trainer(job: TrainingJob, actor: Any, workers: Workers, max_failures: int, scratch: str) -> TorchTrainer:
    return TorchTrainer(
        loop.train,
        train_loop_config={"job": job, "progress_actor": actor},
        torch_config=TorchConfig(backend="nccl" if workers.gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.most if workers.fewest == workers.most else (workers.fewest, workers.most),  # type: ignore[arg-type]  # v1's stub
            use_gpu=workers.gpu,
            resources_per_worker={"CPU": job.threads, **({"GPU": 1} if workers.gpu else {})},
        ),
        # A new name each time: a run resumes from its own directory, not from Ray's.
        run_config=ray.train.RunConfig(
            name=f"ganmill-{uuid.uuid4().hex[:8]}",
            storage_path=scratch,
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            callbacks=[_StopOnReportedError(actor)],  # type: ignore[list-item]  # v1's stub
        ),
    )


class _StopOnReportedError(ray.train.UserCallback):
    """Runs in Ray Train's controller: an error that the progress actor holds is not retried.

    An exception from here ends the run, whatever --max-failures says.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        error = ray.get(self._actor.read.remote()).error
        if error:
            raise LostWorkError(error)


class _FitThread(threading.Thread):
    """Ray Train's fit() in a thread. In the main thread it would handle Ctrl-C itself, which then ends silently."""

    def __init__(self, ray_trainer: TorchTrainer) -> None:
        super().__init__(name="fit", daemon=True)
        self._ray_trainer = ray_trainer
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._ray_trainer.fit()
        except BaseException as error:  # the boundary to Ray: the main thread reports any error
            self.error = error


def _watch(thread: _FitThread, actor: Any, job: TrainingJob) -> None:
    """Run the training and show the updates of rank 0. Raises LostWorkError if it does not reach its end."""
    saved = _read(actor, job).committed
    printed: set[str] = set()
    with Progress("train", job.total, "images", done=saved) as progress:
        thread.start()
        running = True
        while running:
            thread.join(0.5)
            running = thread.is_alive()
            state = _read(actor, job)
            progress.update(max(state.update.images, saved), state.update.note)
            for warning in state.update.warnings:
                if warning not in printed:
                    progress.print(f"train: warning: {warning}")
            printed.update(state.update.warnings)
        if state.error:
            raise LostWorkError(state.error) from thread.error
        if thread.error is not None:
            raise LostWorkError(f"{_reason(thread.error)}. {_goes_on(job)}") from thread.error
        if state.committed < job.total:
            raise LostWorkError(f"training ended after {state.committed:,} of {job.total:,} images. {_goes_on(job)}")


def _read(actor: Any, job: TrainingJob) -> ProgressState:
    try:
        state: ProgressState = ray.get(actor.read.remote())
    except RayError as error:
        reason = failures.one_line(error).rstrip(".")
        raise LostWorkError(f"the progress actor is gone: {reason}. {_goes_on(job)}") from error
    return state


def _reason(error: BaseException) -> str:
    """The reason why fit() ended, in one line."""
    if isinstance(error, WorkerGroupError):
        rank, failure = next(iter(error.worker_failures.items()))
        if not type(failure).__module__.startswith("ray."):  # an unexpected error of our own code
            traceback.print_exception(failure)
        return f"worker {rank} failed, and --max-failures are used up: {failures.one_line(failure).rstrip('.')}"
    if isinstance(error, ControllerError):
        return f"Ray Train could not go on: {_last_line(error.controller_failure)}"
    return f"Ray Train ended: {failures.one_line(error).rstrip('.')}"


def _last_line(error: BaseException) -> str:
    """The last line of an error that may hold another machine's whole traceback."""
    return str(error).strip().splitlines()[-1].rstrip(".") if str(error).strip() else repr(error)


def _goes_on(job: TrainingJob) -> str:
    return f"What is saved in {job.run} stays; the same command goes on from there"
