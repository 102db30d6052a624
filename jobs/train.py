#!/usr/bin/env python3
"""Train a DCGAN with DistributedDataParallel on Ray Train workers, from a sealed dataset to a run with models."""

if __name__ == "__main__":
    from jobs.command import signals

    signals.arm()

import threading
import traceback
import uuid
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import ray
import ray.train
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from ray.exceptions import RayError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dcgan.configuration import fields, reason
from dcgan.configuration import identity as identity_of
from dcgan.families import registry
from dcgan.families.family import FamilyConfig
from dcgan.training.configuration import MethodConfig, check_fit
from jobs.cluster import connection, failures, process
from jobs.command.model_store import BEST
from jobs.command.progress import Progress
from jobs.command.scratch import Scratch
from jobs.command.settings import (
    ClusterSettings,
    JobSettings,
    LostWorkError,
    Number,
    Url,
    UsageError,
    read_toml,
    run,
)
from jobs.training import loop, run_store
from jobs.training.flags import with_fields
from jobs.training.progress_actor import ProgressActor, ProgressState
from pipelines.dataset import layout, reader, selection
from pipelines.loading import order
from pipelines.storage.folder import Folder

MAX_WORKERS = 4096


def _worker_range(value: object) -> object:
    """`4`, or `1:4`."""
    ends = [int(end) if end.isdigit() else 0 for end in str(value).split(":")]
    if value is not None and not (len(ends) <= 2 and 1 <= ends[0] <= ends[-1] <= MAX_WORKERS):
        raise ValueError(f"must be a number from 1 to {MAX_WORKERS}, or two, as 1:4")
    return value if value is None else str(value)


WorkerRange = Annotated[str, BeforeValidator(_worker_range)]


def _family(name: str) -> str:
    registry.family(name)
    return name


class _RunSettings(ClusterSettings):
    """The settings of a run, apart from its networks and its method."""

    passing: ClassVar[frozenset[str]] = JobSettings.passing | {"keep", "max_failures"}
    command: ClassVar[str] = "train"
    about: ClassVar[str] = "Train a DCGAN on a dataset. The same command goes on where a run was interrupted."
    examples: ClassVar[tuple[str, ...]] = (
        "jobs/train.py",
        "jobs/train.py --data s3://bucket/faces --run s3://bucket/runs/faces --recipe dcgan64 --workers 8 --images 2e7",
    )

    data: Url = Field("{root}/real", description="the dataset, as jobs/ingest.py makes one")
    selection: Url | None = Field(None, description="train on these of its images only: a file of jobs/curate.py")
    run: Url = Field("{root}/run", description="where the run goes: checkpoints, pictures, models")
    recipe: str = Field("digits28", description="digits28, dcgan64, emoji64, gan28, keras28, or a TOML file")
    images: Number = Field(300_000, ge=1, le=10**12, description="real images to train on in all, over all epochs")
    workers: WorkerRange | None = Field(
        None,
        description="DDP ranks; 1:4 for as many as there is room for, also later; default: one a GPU or CPU up to 2",
    )
    batch_size: Number = Field(128, ge=2, le=65_536, description="images a step, over all workers")
    tick: Number = Field(20_000, ge=1, description="images between checkpoints, pictures and measurements")
    keep: Number = Field(3, ge=1, le=1000, description="checkpoints that are kept")
    seed: Number = Field(0, ge=0, le=2**63 - 1, description="of weights, order and latents")
    shuffle: Number = Field(16_384, ge=1, le=10**7, description="images that are shuffled at a time")
    metric_images: Number = Field(
        2000, ge=100, le=50_000, description="real and fake images that a model is measured by"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the hardware has it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: GPUs where there are any")
    max_failures: Number = Field(3, ge=0, le=1000, description="how often workers may die before the job does")

    network: Annotated[str, AfterValidator(_family)] = Field(
        registry.DEFAULT, description=f"family of networks: {', '.join(registry.FAMILIES)}"
    )
    conditional: bool = Field(False, description="condition both networks on the dataset's classes")


class TrainSettings(
    with_fields(_RunSettings, {**registry.all_fields(), **fields(MethodConfig)})  # type: ignore[misc]  # made at run time
):
    """What `jobs/train.py` takes: the run's settings, those of every family of networks, and the method's."""

    @property
    def bounds(self) -> tuple[int, int] | None:
        """The fewest and the most workers; None for the default."""
        ends = [int(end) for end in (self.workers or "").split(":") if end]
        return (ends[0], ends[-1]) if ends else None

    @classmethod
    def preset(cls, values: dict[str, Any]) -> dict[str, Any]:
        recipe = str(values.get("recipe", cls.model_fields["recipe"].default))
        packaged = resources.files("jobs") / "recipes"
        names = sorted(file.name.removesuffix(".toml") for file in packaged.iterdir() if file.name.endswith(".toml"))
        if recipe.endswith(".toml"):
            return read_toml(cls, Path(recipe))
        if recipe not in names:
            raise UsageError(f"--recipe {recipe}: there is {', '.join(names)}; or give a TOML file")
        with resources.as_file(packaged / f"{recipe}.toml") as path:
            return read_toml(cls, path)

    def networks(self, classes: list[str] | None) -> FamilyConfig:
        """The networks' configuration. Raises ValueError for a value that the family does not allow."""
        own = fields(registry.family(self.network).config)
        values = {name: getattr(self, name) for name in own if name != "num_classes"}
        return registry.configure(self.network, {**values, "num_classes": len(classes or []) * self.conditional})

    def method(self) -> MethodConfig:
        """The method's configuration. Raises ValueError for values that do not go together."""
        try:
            return MethodConfig(**{name: getattr(self, name) for name in fields(MethodConfig)})
        except ValidationError as error:
            raise ValueError(reason(error)) from error


def main(settings: TrainSettings) -> None:
    data, folder = Folder(settings.data), Folder(settings.run)
    index = reader.open_sealed(data)
    _check_fit(settings, index)
    chosen_by: dict[str, str] = {}  # a run without a selection has the identity that it always had
    if settings.selection:
        picked = selection.read(settings.selection)
        index = selection.narrow(index, picked, settings.selection)
        chosen_by = {"selection": picked.digest}
    try:
        network, method = settings.networks(index.classes), settings.method()
        check_fit(network, method)
    except ValueError as error:
        raise UsageError(str(error)) from error
    plan = order.make_plan(
        tuple(record.samples for record in index.shards), settings.batch_size, settings.shuffle, settings.seed
    )
    bounds = settings.bounds
    if bounds:
        order.check_workers(plan, bounds[1], equal=bounds[0] == bounds[1])
    pool = connection.connect(
        bounds[0] if bounds else None, settings.device, verbose=settings.verbose, wait_s=settings.wait_s
    )
    if settings.sync_batch_norm and not pool.gpus_per_worker:
        raise UsageError("--sync-batch-norm: torch has it on GPUs only; leave it out on CPUs")
    default = _default_workers(plan, pool.workers if pool.gpus_per_worker else min(pool.workers, 2))
    fewest, most = bounds or (default, default)
    least = registry.of(network).least_images
    if settings.batch_size < least * most:
        raise UsageError(
            f"--batch-size {settings.batch_size}: network {network.family} normalises over each worker's images and "
            f"needs {least} of them; with {most} workers use {least * most} or more, or fewer --workers"
        )
    threads = connection.threads(most)
    connection.wait_for_room({**pool.bundle(), "CPU": threads}, fewest, settings.wait_s)
    chosen, fingerprint = connection.probe(pool, settings.precision)
    identity = {
        "data": index.root,
        "network": {"network": network.family, **identity_of(network)},
        "method": identity_of(method),
        "batch": settings.batch_size,
        "shuffle": settings.shuffle,
        "seed": settings.seed,
        "dtype": chosen.dtype_name,
        **chosen_by,
    }
    total = -(-settings.images // settings.batch_size) * settings.batch_size
    try:
        run_store.claim_run(folder, identity, settings.stored())
    except ValueError as error:
        raise UsageError(str(error)) from error
    saved = run_store.images_at_resume(
        folder, run_store.TickSchedule(network, settings.batch_size, settings.tick, total)
    )
    run_store.read_progress(folder, saved)
    if saved >= total:
        print(f"train: {folder} has seen {saved:,} images already; nothing to do (more: --images)", flush=True)
        return _finish(folder)
    print(
        f"train: {network.family} {network.image_size}x{network.image_size}x{network.channels}, "
        f"{f'{network.num_classes} classes' if network.num_classes else 'unconditional'}, "
        f"{settings.workers or most} workers, "
        f"{fingerprint['dtype']} on {fingerprint['device']}, {index.samples:,} {'selected ' * bool(chosen_by)}images, "
        f"{total / index.samples:,.1f} epochs" + (f"; going on after {saved:,} images" if saved else ""),
        flush=True,
    )
    # On the driver's own node: on another it would take the job along when that one is preempted.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    progress_actor = ProgressActor.options(scheduling_strategy=here).remote(saved)  # type: ignore[attr-defined]  # ray.remote's classes
    job = loop.TrainingJob(
        data=data.url,
        selection=settings.selection,
        run=folder.url,
        network=network,
        method=method,
        plan=plan,
        arithmetic=chosen,
        total=total,
        tick=settings.tick,
        keep=settings.keep,
        metric_images=min(settings.metric_images, index.samples),
        threads=threads,
        provenance={
            "data": index.root,
            "seed": settings.seed,
            "recipe": settings.recipe,
            "dtype": chosen.dtype_name,
            **chosen_by,
        },
        claim=run_store.claim_digest(folder),
    )
    with Scratch("train") as scratch:
        scaling = ray.train.ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),  # type: ignore[arg-type]  # v1's stub
            use_gpu=pool.gpus_per_worker > 0,
            resources_per_worker={"CPU": job.threads, **({"GPU": 1} if pool.gpus_per_worker else {})},
        )
        ray_trainer = _ray_trainer(job, progress_actor, scaling, settings.max_failures, scratch)
        with process.report_sudden_end(f"train: error: this process ended before the run was done. {_goes_on(folder)}"):
            _fit(_Fitting(ray_trainer), progress_actor, total, folder)
    _finish(folder)


def _check_fit(settings: TrainSettings, index: layout.Index) -> None:
    """Refuse a recipe for other images than the dataset holds."""
    size, _, channels = index.image_shape
    if (settings.image_size, settings.channels) != (size, channels):
        raise UsageError(
            f"recipe {settings.recipe} is for {settings.image_size}x{settings.image_size}x{settings.channels}, but "
            f"{settings.data} holds {size}x{size}x{channels}; use another --recipe (dcgan64 for 64x64x3), "
            f"--image-size {size} --channels {channels}, or ingest again with --image-size {settings.image_size} "
            f"--channels {settings.channels}"
        )
    if settings.conditional and not index.classes:
        raise UsageError(
            f"recipe {settings.recipe} is conditional, but {settings.data} has no classes; use --no-conditional"
        )


def _default_workers(plan: order.Plan, most: int) -> int:
    return max(n for n in range(1, most + 1) if plan.streams % n == 0)


def _ray_trainer(
    job: loop.TrainingJob, progress_actor: Any, scaling: ray.train.ScalingConfig, max_failures: int, scratch: str
) -> TorchTrainer:
    return TorchTrainer(
        loop.train,
        train_loop_config={"job": job, "progress_actor": progress_actor},
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        scaling_config=scaling,
        # A name of its own each time: what a run resumes from lies in its directory, not in Ray's.
        run_config=ray.train.RunConfig(
            name=f"ganmill-{uuid.uuid4().hex[:8]}",
            storage_path=scratch,
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            callbacks=[_EndAtOnce(progress_actor)],  # type: ignore[list-item]  # v1's stub
        ),
    )


class _EndAtOnce(ray.train.UserCallback):
    """Runs in Ray Train's controller: a failure that the progress_actor knows of is not tried again.

    An exception from here ends the run, whatever --max-failures says.
    """

    def __init__(self, progress_actor: Any) -> None:
        self._progress_actor = progress_actor

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        error = ray.get(self._progress_actor.read.remote()).error
        if error:
            raise LostWorkError(error)


class _Fitting(threading.Thread):
    """Ray Train's fit(), beside the main thread: there it would take over Ctrl-C, which then ends in silence."""

    def __init__(self, ray_trainer: TorchTrainer) -> None:
        super().__init__(name="fit", daemon=True)
        self._ray_trainer = ray_trainer
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._ray_trainer.fit()
        except BaseException as error:  # the boundary to Ray: whatever it was, the main thread tells it
            self.error = error


def _fit(fitting: _Fitting, progress_actor: Any, total: int, folder: Folder) -> None:
    """Run the training, showing what rank 0 posts. Raises LostWorkError if it does not reach its end."""
    saved = _read(progress_actor, folder).committed
    told: set[str] = set()
    with Progress("train", total, "images", done=saved) as progress:
        fitting.start()
        running = True
        while running:
            fitting.join(0.5)
            running = fitting.is_alive()
            state = _read(progress_actor, folder)
            progress.update(max(state.update.images, saved), state.update.note)
            for warning in state.update.warnings:
                if warning not in told:
                    progress.tell(f"train: warning: {warning}")
            told.update(state.update.warnings)
        if state.error:
            raise LostWorkError(state.error) from fitting.error
        if fitting.error is not None:
            raise LostWorkError(f"{_why(fitting.error)}. {_goes_on(folder)}") from fitting.error
        if state.committed < total:
            raise LostWorkError(f"training ended after {state.committed:,} of {total:,} images. {_goes_on(folder)}")


def _read(progress_actor: Any, folder: Folder) -> ProgressState:
    try:
        state: ProgressState = ray.get(progress_actor.read.remote())
    except RayError as error:
        why = failures.one_line(error).rstrip(".")
        raise LostWorkError(f"the progress actor is gone: {why}. {_goes_on(folder)}") from error
    return state


def _why(error: BaseException) -> str:
    """What ended fit(), in a line."""
    if isinstance(error, WorkerGroupError):
        rank, failure = next(iter(error.worker_failures.items()))
        if not type(failure).__module__.startswith("ray."):  # of our own code, and not foreseen
            traceback.print_exception(failure)
        return f"worker {rank} failed, and --max-failures are used up: {failures.one_line(failure).rstrip('.')}"
    if isinstance(error, ControllerError):
        return f"Ray Train could not go on: {_last_line(error.controller_failure)}"
    return f"Ray Train ended: {failures.one_line(error).rstrip('.')}"


def _last_line(error: BaseException) -> str:
    """Of an error that may hold another machine's whole traceback: what it says at its end."""
    return str(error).strip().splitlines()[-1].rstrip(".") if str(error).strip() else repr(error)


def _goes_on(folder: Folder) -> str:
    return f"What is saved in {folder} stays; the same command goes on from there"


def _finish(folder: Folder) -> None:
    ticks, best = run_store.read_progress(folder)
    if best is None:
        raise UsageError(
            f"{folder}: no {BEST} here: its models were not measured yet (go on with more --images), or its workers "
            "wrote it where this node does not look (use a path that every node shares, or a URL)"
        )
    run_store.write_report(folder, ticks, best)
    print(
        f"train: {folder}: best model {best['model']}, {best['metric']} {best['value']:.5f} "
        f"after {best['images']:,} images"
    )
    print(f"train: next: jobs/generate.py --model {folder} --count 1e4")


if __name__ == "__main__":
    run(main, TrainSettings)
