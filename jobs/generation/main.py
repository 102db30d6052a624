"""Map a trained generator over consecutive seeds, and publish the images as a sealed dataset."""

from functools import partial
from typing import Any

from dcgan.arithmetic import Arithmetic
from dcgan.errors import ModelError
from dcgan.families.family import FamilyConfig
from dcgan.sampling import latents
from jobs.cluster import connection
from jobs.cluster.connection import Pool
from jobs.cluster.probe import probe
from jobs.cluster.shard_job import ShardJob, ShardJobResult, run_shard_job
from jobs.cluster.shard_worker import ShardWorker
from jobs.command import model_store
from jobs.command.errors import UsageError
from jobs.command.model_store import StoredModel
from jobs.generation.class_policy import parse_classes
from jobs.generation.score_histogram import ScoreHistogram
from jobs.generation.settings import GenerateSettings
from pipelines import images
from pipelines.dataset import attribution, layout, reader, writer
from pipelines.dataset.attribution import NONE, Attribution
from pipelines.dataset.identity import Cycle, GenerateIdentity, ImageFormat, Weights
from pipelines.dataset.labels import labels_of
from pipelines.errors import CorruptError, DatasetError
from pipelines.storage.folder import Folder


def main(settings: GenerateSettings) -> None:
    if settings.seed_start + settings.count > latents.MAX_SEED:
        raise UsageError(
            f"--seed-start {settings.seed_start} + --count {settings.count}: seeds end at {latents.MAX_SEED}"
        )
    place = Folder(settings.model)
    _check_fit(settings, *model_store.read_card(place))  # what is wrong shows before Ray starts
    if settings.dry_run:
        return _print_plan(settings, place)
    with connection.connect(
        settings.workers, settings.device, settings.gpus_per_worker, settings.verbose, settings.wait_s
    ) as pool:
        _generate(settings, place, pool)


def _generate(settings: GenerateSettings, place: Folder, pool: Pool) -> None:
    """Open the model in a worker, claim the output, make what is missing, and seal it."""
    shards = -(-settings.count // settings.shard_size)
    workers = shards if shards <= pool.workers else 1  # more of them are a Ray Data plan, which starts its own
    chosen, (opened, here) = probe(pool, settings.precision, partial(_open_in_worker, place), workers)
    config, labels = opened.config, _check_fit(settings, opened.config, opened.classes)
    identity = GenerateIdentity(
        producer="generate",
        model=opened.digest,
        seed_start=settings.seed_start,
        count=settings.count,
        shard_size=settings.shard_size,
        image=_image(settings),
        image_size=config.image_size,
        channels=config.channels,
        classes=opened.classes,
        labels=labels,
        batch=settings.batch_size,
        arithmetic=here,
    )
    output = Folder(settings.output)
    _claim(output, identity, settings.stored(), opened, settings.asked())
    print(
        f"generate: {settings.count:,} images in {layout.num_shards(identity):,} shards, {pool.workers} workers, "
        f"{here['dtype']} on {here['device']}, model {opened.digest[:12]} of {opened.folder}",
        flush=True,
    )
    scores = ScoreHistogram()
    job = ShardJob(
        command="generate",
        folder=output,
        identity=identity,
        worker=_make_worker,
        arguments={"output": output.url, "chosen": chosen},
        existing=[f"{model_store.IN_DATASET}/{name}" for name in model_store.FILES],
        batch=True,
        limit=settings.limit_shards,
        collect=scores.add,
    )
    _print_result(output, run_shard_job(job, pool), scores)


def _check_fit(settings: GenerateSettings, config: FamilyConfig, classes: list[str] | None) -> Cycle | Weights | None:
    """The labels of the images. Raises UsageError, DatasetError if the settings do not fit the model."""
    writer.check_size(settings.count, settings.shard_size, config.image_size, config.channels)
    return parse_classes(settings.classes, classes)


def _open_in_worker(place: Folder, chosen: Arithmetic) -> tuple[StoredModel, dict[str, str]]:
    """The whole model, checked, and what a worker computes with. Both need torch, which this process does not."""
    from jobs.generation.worker import fingerprint

    _, opened = model_store.open_model(place)
    return opened, fingerprint(chosen)


def _make_worker(**arguments: Any) -> ShardWorker:
    from jobs.generation.worker import GenerateShard

    return GenerateShard(**arguments)


def _print_result(output: Folder, result: ShardJobResult, scores: ScoreHistogram) -> None:
    if result.made:
        tenth, median, ninetieth = (scores.quantile(share) for share in (0.1, 0.5, 0.9))
        print(
            f"generate: {result.made:,} images made in {result.seconds:,.0f} s; the discriminator's scores: "
            f"10 % below {tenth:.2f}, half below {median:.2f}, 90 % below {ninetieth:.2f}"
        )
    index = result.index
    if index is None:
        print(f"generate: {output}: stopped by --limit-shards, not sealed; leave the flag out to do the rest")
        return
    print(f"generate: {output}: {index.samples:,} images, {index.bytes / 1e6:,.1f} MB, sealed; root {index.root[:12]}")
    print(f"generate: next: jobs/verify.py --dataset {output} --regenerate 64")


def _claim(
    output: Folder, identity: GenerateIdentity, stored: dict[str, Any], opened: StoredModel, asked: Attribution = NONE
) -> None:
    """Claim the output, and copy the model into it; an interrupted start may have copied a part.

    Where nothing is asked, the cards have the licence and the citation of the model's training images.

    Raises: DatasetError if the output has another identity, or holds another model without a claim.
    """
    copy = output / model_store.IN_DATASET
    different = model_store.compare_files(opened.files, copy)
    if (strange := [name for name, differs in different.items() if differs]) and not output.exists(layout.CLAIM):
        raise DatasetError(f"{copy}/{strange[0]}: another model is here, without a dataset; use another --output")
    try:
        real = opened.attribution
        found = Attribution(licence=real.licence, citation=real.citation, date=attribution.today())
        writer.claim(output, identity, stored, asked=asked, found=found)
    except DatasetError as error:
        raise _another_model(output, opened) or error from error
    model_store.store_files(opened.files, copy, different)


def _another_model(output: Folder, opened: StoredModel) -> DatasetError | None:
    """The error for an output that was claimed with another model; None if the model is the same.

    A run that continues to train may have a new best model since the dataset was claimed.
    """
    try:
        claimed = reader.read_claim(output).identity.model
    except (DatasetError, CorruptError):
        return None
    if claimed in ("", opened.digest):
        return None
    problem = f'{output}: claimed with model = "{claimed}", this run has "{opened.digest}"'
    try:
        model_store.load_copy(output / model_store.IN_DATASET, claimed)
    except (ModelError, CorruptError) as error:
        return DatasetError(
            f"{problem}, and its copy is damaged ({error}); name the first model, or use another --output"
        )
    return DatasetError(
        f"{problem}; use --model {output / model_store.IN_DATASET} to go on with its own model, or another --output"
    )


def _image(settings: GenerateSettings) -> ImageFormat:
    if settings.image_format == "png":
        return ImageFormat(format="png")
    return ImageFormat(format=settings.image_format, quality=settings.quality)


def _print_plan(settings: GenerateSettings, place: Folder) -> None:
    """Print the plan. The size is an estimate from 64 images that are made here and discarded."""
    from dcgan.sampling.sampler import Sampler  # and torch

    model, opened = model_store.open_model(place)
    labels = _check_fit(settings, opened.config, opened.classes)
    cycle = labels_of(labels, range(64))
    made = Sampler(model, Arithmetic("cpu", "float32"), 64).sample(
        range(settings.seed_start, settings.seed_start + 64), cycle
    )
    image = _image(settings)
    sizes = [len(images.encode(one, image.format, image.quality)) for one in made.images_NHWC]
    blocks = sum(-(-size // 512) + 1 for size in sizes) / len(sizes) + (2 if labels else 0)
    shards = -(-settings.count // settings.shard_size)
    print(f"generate: would make {settings.count:,} images with model {opened.digest[:12]} of {opened.folder}")
    megabytes = settings.count * blocks * 512 / 1e6
    objects = 2 * shards + len(model_store.FILES) + 5
    print(f"generate: {shards:,} shards of {settings.shard_size:,}, about {megabytes:,.0f} MB in tars")
    print(f"generate: {objects:,} objects under {settings.output}; --dry-run: nothing was written")
