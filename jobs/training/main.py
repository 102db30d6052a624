"""Train a DCGAN with DistributedDataParallel on Ray Train workers, from a sealed dataset to a run with models."""

from typing import Any

from dcgan.configuration import identity as identity_of
from dcgan.evaluation import calibration
from dcgan.evaluation.features import LITE
from dcgan.families import registry
from dcgan.families.family import FamilyConfig
from dcgan.training.configuration import MethodConfig, check_fit
from jobs.cluster import connection
from jobs.cluster.connection import Pool
from jobs.cluster.probe import probe_for_training
from jobs.command import feature_weights
from jobs.command.errors import UsageError
from jobs.command.model_store import BEST
from jobs.training import checkpoints, driver, run_store
from jobs.training.driver import Workers
from jobs.training.report import REPORT, Report
from jobs.training.settings import TrainSettings
from jobs.training.training_job import TrainingJob
from pipelines.dataset import reader, selection
from pipelines.dataset.attribution import NONE
from pipelines.dataset.layout import Index
from pipelines.loading import order
from pipelines.loading.order import Plan
from pipelines.storage.folder import Folder

MOST_LEARNED = 250  # images measured in learned features: 25 to 45 a second on one core (docs/train.md)


def main(settings: TrainSettings) -> None:
    folder = Folder(settings.run)
    index, selected = _open_dataset(settings)
    network, method = _configurations(settings, index)
    plan = order.make_plan(
        tuple(record.samples for record in index.shards), settings.batch_size, settings.shuffle, settings.seed
    )
    pool, workers = _workers(settings, plan, network)
    threads = connection.threads(workers.most)
    connection.wait_for_room({**pool.bundle(), "CPU": threads}, workers.fewest, settings.wait_s)
    chosen, fingerprint = probe_for_training(pool, settings.precision)
    identity = {
        "data": index.root,
        "network": {"network": network.family, **identity_of(network)},
        "method": identity_of(method),
        "batch": settings.batch_size,
        "shuffle": settings.shuffle,
        "seed": settings.seed,
        "dtype": chosen.dtype_name,
        **selected,
    }
    try:
        run_store.claim_run(folder, identity, settings.stored())
    except ValueError as error:
        raise UsageError(str(error)) from error
    learned = _learned_metric(folder, index.image_shape)
    job = TrainingJob(
        data=Folder(settings.data).url,
        selection=settings.selection,
        holdout=_check_holdout(settings, index),
        run=folder.url,
        network=network,
        method=method,
        plan=plan,
        arithmetic=chosen,
        total=-(-settings.images // settings.batch_size) * settings.batch_size,
        tick=settings.tick,
        keep=settings.keep,
        metric_images=min(settings.metric_images, index.samples, MOST_LEARNED if learned else index.samples),
        learned_metric=learned,
        threads=threads,
        provenance={
            "data": index.root,
            "seed": settings.seed,
            "recipe": settings.recipe,
            "dtype": chosen.dtype_name,
            **selected,
            **_attribution(settings),
        },
        claim=run_store.claim_digest(folder),
    )
    saved = checkpoints.images_at_resume(folder, job.schedule())
    run_store.read_progress(folder, saved)
    if saved >= job.total:
        print(f"train: {folder} has seen {saved:,} images already; nothing to do (more: --images)", flush=True)
    else:
        _print_start(settings, job, index, workers, fingerprint, saved)
        driver.fit(job, workers, settings.max_failures, saved)
    _finish(folder, job.total)


def _learned_metric(run: Folder, image_shape: tuple[int, int, int]) -> bool:
    """Whether models are measured in learned features: colour images, where the weights are there.

    A run keeps the metric that it began with: the best model so far could not be compared with later ones.
    """
    if ticks := run_store.read_stats(run):
        return LITE in str(ticks[-1].get("protocol"))
    if not feature_weights.wanted(image_shape):
        return False
    if not feature_weights.installed():
        print(f"train: models are measured in random features, as {feature_weights.MISSING}", flush=True)
    return feature_weights.installed()


def _open_dataset(settings: TrainSettings) -> tuple[Index, dict[str, str]]:
    """The images to train on, and the identity of their selection. Raises UsageError if the recipe does not fit them.

    Without a selection its identity is empty, so that a run has the same identity as in earlier versions.
    """
    index = reader.open_sealed(Folder(settings.data))
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
    if not settings.selection:
        return index, {}
    chosen = selection.read(settings.selection)
    return selection.narrow(index, chosen, settings.selection), {"selection": chosen.digest}


def _attribution(settings: TrainSettings) -> dict[str, Any]:
    """Title, licence and citation of the dataset, for the models' provenance; nothing if none is known.

    They travel with a model to what it makes. They are no part of the run's identity.
    """
    known = reader.read_claim(Folder(settings.data)).attribution or NONE
    found = known.model_copy(update={"date": None}).to_json()
    return {"attribution": found} if found else {}


def _check_holdout(settings: TrainSettings, index: Index) -> str | None:
    """The URL of the holdout, if there is one. Raises UsageError for one that cannot calibrate the score."""
    if settings.holdout is None:
        return None
    holdout_folder = Folder(settings.holdout)
    holdout = reader.open_sealed(holdout_folder)
    different = [name for name in ("image_shape", "classes") if getattr(holdout, name) != getattr(index, name)]
    if different or holdout.samples < calibration.FEWEST:
        raise UsageError(
            f"--holdout {settings.holdout}: it must have the image size and the classes of --data, and at least "
            f"{calibration.FEWEST} images"
        )
    if holdout.root == index.root:
        raise UsageError(f"--holdout {settings.holdout}: this is --data itself; name images that are not trained on")
    return holdout_folder.url


def _configurations(settings: TrainSettings, index: Index) -> tuple[FamilyConfig, MethodConfig]:
    """The networks and the method. Raises UsageError for a value that is not allowed or does not fit the others."""
    try:
        network, method = settings.networks(index.classes), settings.method()
        check_fit(network, method)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return network, method


def _workers(settings: TrainSettings, plan: Plan, network: FamilyConfig) -> tuple[Pool, Workers]:
    """Connect to Ray, and fix the number of workers. Raises UsageError for a number that the settings exclude."""
    bounds = settings.bounds
    if bounds:
        order.check_workers(plan, bounds[1], equal=bounds[0] == bounds[1])
    pool = connection.connect(
        bounds[0] if bounds else None, settings.device, verbose=settings.verbose, wait_s=settings.wait_s
    )
    if settings.sync_batch_norm and not pool.gpus_per_worker:
        raise UsageError("--sync-batch-norm: torch has it on GPUs only; leave it out on CPUs")
    room = pool.workers if pool.gpus_per_worker else min(pool.workers, 2)
    default = max(n for n in range(1, room + 1) if plan.streams % n == 0)
    fewest, most = bounds or (default, default)
    least = registry.of(network).least_images
    if settings.batch_size < least * most:
        raise UsageError(
            f"--batch-size {settings.batch_size}: network {network.family} normalises over each worker's images and "
            f"needs {least} of them; with {most} workers use {least * most} or more, or fewer --workers"
        )
    return pool, Workers(fewest, most, gpu=pool.gpus_per_worker > 0)


def _print_start(
    settings: TrainSettings, job: TrainingJob, index: Index, workers: Workers, fingerprint: dict[str, str], saved: int
) -> None:
    network, kind = job.network, "selected images" if job.selection else "images"
    print(
        f"train: {network.family} {network.image_size}x{network.image_size}x{network.channels}, "
        f"{f'{network.num_classes} classes' if network.num_classes else 'unconditional'}, "
        f"{settings.workers or workers.most} workers, {fingerprint['dtype']} on {fingerprint['device']}, "
        f"{index.samples:,} {kind}, {job.total / index.samples:,.1f} epochs"
        + (f"; going on after {saved:,} images" if saved else ""),
        flush=True,
    )


def _finish(folder: Folder, total: int) -> None:
    """Write the report, and print the best model."""
    ticks, best = run_store.read_progress(folder)
    if best is None:
        raise UsageError(
            f"{folder}: no {BEST} here: its models were not measured yet (go on with more --images), or its workers "
            "wrote it where this node does not look (use a path that every node shares, or a URL)"
        )
    Report(folder, total).write(ticks, best)
    folder.abort_uploads()  # of dead workers
    print(
        f"train: {folder}: best model {best['model']}, {best['metric']} {best['value']:.5f} "
        f"after {best['images']:,} images"
    )
    print(f"train: how it went: {folder}/{REPORT}")
    print(f"train: next: jobs/generate.py --model {folder} --count 1e4")
