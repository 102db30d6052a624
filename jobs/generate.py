#!/usr/bin/env python3
"""Map a trained generator over consecutive seeds, and publish the images as a sealed dataset."""

if __name__ == "__main__":
    from jobs.command import signals

    signals.arm()

from typing import Any, ClassVar, Literal

from pydantic import Field

from dcgan import numerics
from dcgan.model_files import ModelError
from dcgan.sampling import latents
from dcgan.sampling.sampler import Sampler
from jobs.cluster import connection
from jobs.cluster.shard_job import ShardJob, ShardJobResult, run_shard_job
from jobs.command import model_store
from jobs.command.entry import run
from jobs.command.errors import UsageError
from jobs.command.model_store import OpenedModel
from jobs.command.settings import ClusterSettings, GpuShare, JobSettings, Number, Url
from jobs.generation.class_policy import parse_classes
from jobs.generation.worker import GenerateShard, ScoreHistogram, fingerprint
from pipelines import images
from pipelines.dataset import layout, reader, writer
from pipelines.dataset.identity import Cycle, GenerateIdentity, ImageFormat, Weights
from pipelines.dataset.labels import labels_of
from pipelines.dataset.layout import DatasetError
from pipelines.dataset.shards import CorruptError
from pipelines.storage.folder import Folder


class GenerateSettings(ClusterSettings):
    """The settings of `jobs/generate.py`."""

    not_stored: ClassVar[frozenset[str]] = JobSettings.not_stored | {"gpus_per_worker", "limit_shards", "dry_run"}
    changeable: ClassVar[frozenset[str]] = frozenset({"count"})  # a larger count extends the dataset
    command: ClassVar[str] = "generate"
    about: ClassVar[str] = "Make a synthetic dataset from a trained model: image i is made from seed SEED_START + i."
    examples: ClassVar[tuple[str, ...]] = (
        "jobs/generate.py --count 1e6",
        "jobs/generate.py --model runs/faces --output s3://bucket/faces-1m --count 1e6 --workers 8",
    )

    model: Url = Field("{root}/run", description="a model, or a run, whose best model is taken")
    output: Url = Field("{root}/synthetic", description="where the dataset goes")
    count: Number = Field(ge=1, le=10**12, description="number of images, exactly")
    seed_start: Number = Field(0, ge=0, le=latents.MAX_SEED, description="seed of the first image")
    shard_size: Number = Field(10_000, ge=1, le=100_000, description="images a shard")
    classes: str = Field(
        "balanced", description="labels of a conditional model: balanced, a list as 0,1,7, or weights as 0:3,7:0.5"
    )
    image_format: Literal["png", "jpeg", "webp"] = Field("png", description="png is lossless; the others are smaller")
    quality: Number = Field(95, ge=1, le=100, description="quality of jpeg and webp")
    workers: Number | None = Field(None, ge=1, le=10_000, description="actors; default: one a GPU, or one a CPU")
    batch_size: Number = Field(128, ge=1, le=4096, description="images in one forward pass; it decides the bytes")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the hardware has it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: GPUs where there are any")
    gpus_per_worker: GpuShare = Field(1.0, description="GPUs of each actor: a share, or a whole number")
    limit_shards: Number | None = Field(None, ge=1, description="for a trial: stop after this many shards, unsealed")
    dry_run: bool = Field(False, description="print the plan, start nothing and write nothing")


def main(settings: GenerateSettings) -> None:
    if settings.seed_start + settings.count > latents.MAX_SEED:
        raise UsageError(
            f"--seed-start {settings.seed_start} + --count {settings.count}: seeds end at {latents.MAX_SEED}"
        )
    opened = model_store.open_model(Folder(settings.model))
    config, classes = opened.model.config, opened.model.classes
    writer.check_size(settings.count, settings.shard_size, config.image_size, config.channels)
    labels = parse_classes(settings.classes, classes)
    if settings.dry_run:
        return _print_plan(settings, opened, labels)
    pool = connection.connect(
        settings.workers, settings.device, settings.gpus_per_worker, settings.verbose, settings.wait_s
    )
    chosen, here = connection.probe(pool, settings.precision, fingerprint)
    identity = GenerateIdentity(
        producer="generate",
        model=opened.digest,
        seed_start=settings.seed_start,
        count=settings.count,
        shard_size=settings.shard_size,
        image=_image(settings),
        image_size=config.image_size,
        channels=config.channels,
        classes=classes,
        labels=labels,
        batch=settings.batch_size,
        arithmetic=here,
    )
    output = Folder(settings.output)
    _claim(output, identity, settings.stored(), opened)
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
        worker=GenerateShard,
        arguments={"output": output.url, "chosen": chosen},
        existing=[f"{model_store.IN_DATASET}/{name}" for name in model_store.FILES],
        limit=settings.limit_shards,
        collect=scores.add,
    )
    _print_result(output, run_shard_job(job, pool), scores)


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


def _claim(output: Folder, identity: GenerateIdentity, stored: dict[str, Any], opened: OpenedModel) -> None:
    """Claim the output, and copy the model into it; an interrupted start may have copied a part.

    Raises: DatasetError if the output has another identity, or holds another model without a claim.
    """
    copy = output / model_store.IN_DATASET
    different = model_store.compare_files(opened.files, copy)
    if (strange := [name for name, differs in different.items() if differs]) and not output.exists(layout.CLAIM):
        raise DatasetError(f"{copy}/{strange[0]}: another model is here, without a dataset; use another --output")
    try:
        writer.claim(output, identity, stored)
    except DatasetError as error:
        raise _another_model(output, opened) or error from error
    model_store.store_files(opened.files, copy, different)


def _another_model(output: Folder, opened: OpenedModel) -> DatasetError | None:
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


def _print_plan(settings: GenerateSettings, opened: OpenedModel, labels: Cycle | Weights | None) -> None:
    """Print the plan. The size is an estimate from 64 images that are made here and discarded."""
    chosen = numerics.choose("fp32", "cpu")
    cycle = labels_of(labels, range(64))
    made = Sampler(opened.model, chosen, 64).sample(range(settings.seed_start, settings.seed_start + 64), cycle)
    image = _image(settings)
    sizes = [len(images.encode(one, image.format, image.quality)) for one in made.images_NHWC]
    blocks = sum(-(-size // 512) + 1 for size in sizes) / len(sizes) + (2 if labels else 0)
    shards = -(-settings.count // settings.shard_size)
    print(f"generate: would make {settings.count:,} images with model {opened.digest[:12]} of {opened.folder}")
    megabytes = settings.count * blocks * 512 / 1e6
    objects = 2 * shards + len(model_store.FILES) + 5
    print(f"generate: {shards:,} shards of {settings.shard_size:,}, about {megabytes:,.0f} MB in tars")
    print(f"generate: {objects:,} objects under {settings.output}; --dry-run: nothing was written")


if __name__ == "__main__":
    run(main, GenerateSettings)
