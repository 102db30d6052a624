#!/usr/bin/env python3
"""Map a trained generator over consecutive seeds, and publish the images as a sealed dataset."""

if __name__ == "__main__":
    from jobs import signals

    signals.arm()

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow
from pydantic import Field

from dcgan import arithmetic, latents
from dcgan.arithmetic import Arithmetic
from dcgan.model_files import ModelError
from dcgan.sampling import Sampler
from jobs import cluster, models, produce
from jobs.models import Taken
from jobs.settings import ClusterSettings, GpuShare, JobSettings, Number, Url, UsageError, run
from pipelines import dataset, images, manifest
from pipelines.dataset import CorruptError, DatasetError
from pipelines.shards import Sample
from pipelines.storage import Folder

MODEL = "model"  # the dataset carries its model: an image can be made again when the run is long gone


class GenerateSettings(ClusterSettings):
    """What `jobs/generate.py` takes."""

    passing: ClassVar[frozenset[str]] = JobSettings.passing | {"gpus_per_worker", "limit_shards", "dry_run"}
    command: ClassVar[str] = "generate"
    about: ClassVar[str] = "Make a synthetic dataset from a trained model: image i is made from seed SEED_START + i."
    examples: ClassVar[tuple[str, ...]] = (
        "jobs/generate.py --count 1e6",
        "jobs/generate.py --model runs/faces --output s3://bucket/faces-1m --count 1e6 --workers 8",
    )

    model: Url = Field("{root}/run", description="a model, or a run, whose best model is taken")
    output: Url = Field("{root}/synthetic", description="where the dataset goes")
    count: Number = Field(ge=1, le=10**12, description="how many images, exactly")
    seed_start: Number = Field(0, ge=0, le=latents.MAX_SEED, description="seed of the first image")
    shard_size: Number = Field(10_000, ge=1, le=100_000, description="images a shard")
    classes: str = Field(
        "balanced", description="labels of a conditional model: balanced, a list as 0,1,7, or weights as 0:3,7:0.5"
    )
    image_format: Literal["png", "jpeg", "webp"] = Field("png", description="png is lossless; the others are smaller")
    quality: Number = Field(95, ge=1, le=100, description="of jpeg and webp")
    workers: Number | None = Field(None, ge=1, le=10_000, description="actors; default: one a GPU, or one a CPU")
    batch_size: Number = Field(128, ge=1, le=4096, description="images that the networks take at once")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the hardware has it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: GPUs where there are any")
    gpus_per_worker: GpuShare = Field(1.0, description="share of a GPU that each actor holds, or how many")
    limit_shards: Number | None = Field(None, ge=1, description="stop after so many shards, to try; leaves no seal")
    dry_run: bool = Field(False, description="print the plan, start nothing and write nothing")


class GenerateShard:
    """An actor's work: load the model once, then make, encode and publish one whole shard a call."""

    def __init__(self, output: str, chosen: Arithmetic) -> None:
        self.folder = Folder(output)
        self.identity = dataset.read_claim(self.folder)["identity"]
        here = fingerprint(chosen)
        if here != self.identity["arithmetic"]:
            raise RuntimeError(
                f"this worker computes as {here}, the dataset was begun as {self.identity['arithmetic']}"
            )
        model = models.load_named(self.folder / MODEL, self.identity["model"])
        self.sampler = Sampler(model, chosen, self.identity["batch"])
        self.encoder = ThreadPoolExecutor(1, "encoder")

    def __call__(self, shard: int) -> dict[str, Any]:
        indices = dataset.shard_range(self.identity, shard)
        seed_start = self.identity["seed_start"]
        seeds = range(seed_start + indices.start, seed_start + indices.stop)
        labels = labels_of(self.identity, indices)
        logits, pending = [], []
        for batch in self.sampler.batches(seeds, labels):
            pending.append(self.encoder.submit(self.encode, batch.images_NHWC))  # while the next batch computes
            logits.append(batch.logits_N)
        encoded = [image for future in pending for image in future.result()]
        logits_N = np.concatenate(logits)
        if self.identity["image"]["format"] != "png":
            logits_N = self.score_again(encoded, labels)
        samples = (
            Sample(index, image, None if labels is None else int(labels[n]))
            for n, (index, image) in enumerate(zip(indices, encoded, strict=True))
        )
        scores_N = manifest.sigmoid(logits_N)
        extra = {"seed": np.arange(seeds.start, seeds.stop), "logit": logits_N, "score": scores_N}
        extension = images.EXTENSIONS[self.identity["image"]["format"]]
        record = dataset.commit(self.folder, shard, "generate", samples, extra, extension=extension)
        return {**produce.shard_result(record), "scores": Scores.count(scores_N)}

    def encode(self, images_NHWC: np.ndarray) -> list[bytes]:
        image = self.identity["image"]
        return [images.encode(image_HWC, image["format"], image.get("quality", 0)) for image_HWC in images_NHWC]

    def score_again(self, encoded: list[bytes], labels: np.ndarray | None) -> np.ndarray:
        """The logits of what a lossy format has left of the images: a score can be computed from the file alone."""
        channels = self.identity["channels"]
        return self.sampler.score(np.stack([images.decode(data, channels) for data in encoded]), labels)


class Scores:
    """A histogram of scores, added up over shards, and its quantiles."""

    BINS = 200

    def __init__(self) -> None:
        self.counts = np.zeros(self.BINS, np.int64)

    @classmethod
    def count(cls, scores_N: np.ndarray) -> list[int]:
        counts: list[int] = np.histogram(scores_N, cls.BINS, (0.0, 1.0))[0].tolist()
        return counts

    def add(self, result: dict[str, Any]) -> None:
        self.counts += np.array(result["scores"])

    def quantile(self, share: float) -> float:
        """The score below which `share` of the images lie, to 1 / BINS."""
        position = np.searchsorted(np.cumsum(self.counts), share * self.counts.sum())
        return float((position + 0.5) / self.BINS)


def fingerprint(chosen: Arithmetic) -> dict[str, str]:
    """The arithmetic of a dataset: all software and hardware that its bytes depend on."""
    return {**arithmetic.fingerprint(chosen), "pyarrow": pyarrow.__version__}


def labels_of(identity: dict[str, Any], indices: range) -> np.ndarray | None:
    """The labels of some indices, int64, a function of the index alone; None without classes.

    A list is taken over and over. Weights are met by a golden-ratio sequence, in any range of n indices to within a few
    images: Weyl's frac(i * phi), in 64-bit integers so that it is exact for every index.
    """
    policy = identity["labels"]
    if policy is None:
        return None
    index_N = np.arange(indices.start, indices.stop)
    if "cycle" in policy:
        return np.array(policy["cycle"], np.int64)[index_N % len(policy["cycle"])]
    labels, weights = zip(*policy["weights"], strict=True)
    bounds_K = np.cumsum(weights) / np.sum(weights)
    fraction_N = (index_N.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) / 2.0**64
    chosen_N = np.searchsorted(bounds_K, fraction_N, side="right").clip(max=len(labels) - 1)
    label_N: np.ndarray = np.array(labels, np.int64)[chosen_N]
    return label_N


def main(settings: GenerateSettings) -> None:
    if settings.seed_start + settings.count > latents.MAX_SEED:
        raise UsageError(
            f"--seed-start {settings.seed_start} + --count {settings.count}: seeds end at {latents.MAX_SEED}"
        )
    taken = models.take(Folder(settings.model))
    config, classes = taken.model.config, taken.model.classes
    dataset.check_size({**asdict(config), "count": settings.count, "shard_size": settings.shard_size})
    labels = parse_classes(settings.classes, classes)
    if settings.dry_run:
        return _print_plan(settings, taken, labels)
    pool = cluster.connect(
        settings.workers, settings.device, settings.gpus_per_worker, settings.verbose, settings.wait_s
    )
    chosen, here = cluster.probe(pool, settings.precision, fingerprint)
    identity = {
        "producer": "generate",
        "model": taken.digest,
        "seed_start": settings.seed_start,
        "count": settings.count,
        "shard_size": settings.shard_size,
        "image": _image(settings),
        "image_size": config.image_size,
        "channels": config.channels,
        "classes": classes,
        "labels": labels,
        "batch": settings.batch_size,
        "arithmetic": here,
    }
    output = Folder(settings.output)
    _claim(output, identity, settings.stored(), taken)
    print(
        f"generate: {settings.count:,} images in {dataset.num_shards(identity):,} shards, {pool.workers} workers, "
        f"{here['dtype']} on {here['device']}, model {taken.digest[:12]} of {taken.folder}",
        flush=True,
    )
    scores = Scores()
    product = produce.produce(
        "generate",
        output,
        identity,
        GenerateShard,
        {"output": output.url, "chosen": chosen},
        pool,
        existing=[f"{MODEL}/{name}" for name in models.FILES],
        limit=settings.limit_shards,
        collect=scores.add,
    )
    if product.made:
        tenth, median, ninetieth = (scores.quantile(share) for share in (0.1, 0.5, 0.9))
        print(
            f"generate: {product.made:,} images made in {product.seconds:,.0f} s; the discriminator's scores: "
            f"10 % below {tenth:.2f}, half below {median:.2f}, 90 % below {ninetieth:.2f}"
        )
    index = product.index
    if index is None:
        print(f"generate: {output}: stopped by --limit-shards, not sealed; leave the flag out to do the rest")
        return
    print(f"generate: {output}: {index.samples:,} images, {index.bytes / 1e6:,.1f} MB, sealed; root {index.root[:12]}")
    print(f"generate: next: jobs/verify.py --dataset {output} --regenerate 64")


def _claim(output: Folder, identity: dict[str, Any], stored: dict[str, Any], taken: Taken) -> None:
    """Take the output for this identity, and have the model in it: of a start that was cut off, a part may be there.

    Raises: DatasetError for an output that is another's, and for a model there that no dataset has claimed.
    """
    carried = output / MODEL
    others = models.other_files(taken.files, carried)
    if (strange := [name for name, other in others.items() if other]) and not output.exists(dataset.CLAIM):
        raise DatasetError(f"{carried}/{strange[0]}: of another model, and no dataset is here; use another --output")
    try:
        dataset.claim(output, identity, stored)
    except DatasetError as error:
        raise _another_model(output, taken) or error from error
    models.put(taken.files, carried, others)


def _another_model(output: Folder, taken: Taken) -> DatasetError | None:
    """The error that says how to go on with an output that was begun with another model; None if that is not why.

    A run that trains on has another best model than when the dataset was begun.
    """
    try:
        begun = dataset.read_claim(output)["identity"].get("model")
    except (DatasetError, CorruptError):
        return None
    if begun in (None, taken.digest):
        return None
    what = f'{output}: begun with model = "{begun}", this run has "{taken.digest}"'
    try:
        models.load_named(output / MODEL, begun)
    except (ModelError, CorruptError) as error:
        return DatasetError(f"{what}, and its own copy is not whole ({error}); give the former, or another --output")
    return DatasetError(f"{what}; --model {output / MODEL} goes on with the one that it carries; or another --output")


def _image(settings: GenerateSettings) -> dict[str, Any]:
    lossy = {} if settings.image_format == "png" else {"quality": settings.quality}
    return {"format": settings.image_format, **lossy}


def _print_plan(settings: GenerateSettings, taken: Taken, labels: dict[str, Any] | None) -> None:
    """What a run would make, its size judged by 64 images that are made here and thrown away."""
    chosen = arithmetic.choose("fp32", "cpu")
    cycle = labels_of({"labels": labels}, range(64))
    made = Sampler(taken.model, chosen, 64).sample(range(settings.seed_start, settings.seed_start + 64), cycle)
    image = _image(settings)
    sizes = [len(images.encode(one, image["format"], image.get("quality", 0))) for one in made.images_NHWC]
    blocks = sum(-(-size // 512) + 1 for size in sizes) / len(sizes) + (2 if labels else 0)
    shards = -(-settings.count // settings.shard_size)
    print(f"generate: would make {settings.count:,} images with model {taken.digest[:12]} of {taken.folder}")
    megabytes = settings.count * blocks * 512 / 1e6
    objects = 2 * shards + len(models.FILES) + 5
    print(f"generate: {shards:,} shards of {settings.shard_size:,}, about {megabytes:,.0f} MB in tars")
    print(f"generate: {objects:,} objects under {settings.output}; --dry-run: nothing was written")


def parse_classes(text: str, names: list[str] | None) -> dict[str, Any] | None:
    """The label policy: {"cycle": [...]} or {"weights": [[label, weight], ...]}; None for a model without classes.

    Raises: UsageError for a class that the model does not have, or a weight that is not above 0.
    """
    if names is None:
        if text != "balanced":
            raise UsageError(f"--classes {text}: the model has no classes; leave --classes out")
        return None
    if text == "balanced":
        return {"cycle": list(range(len(names)))}
    numbers = {str(number): number for number in range(len(names))} | {name: i for i, name in enumerate(names)}
    words = [word.strip().rpartition(":") if ":" in text else (word.strip(), "", "") for word in text.split(",")]
    for name, _, _ in words:
        if name not in numbers:
            raise UsageError(f"--classes {text}: no class {name!r}; the model has 0 to {len(names) - 1}")
    if ":" not in text:
        return {"cycle": [numbers[name] for name, _, _ in words]}
    return {"weights": [[numbers[name], _weight(text, weight)] for name, _, weight in words]}


def _weight(text: str, weight: str) -> float:
    try:
        value = float(weight)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise UsageError(f"--classes {text}: weight {weight!r} must be a number above 0")
    return value


if __name__ == "__main__":
    run(main, GenerateSettings)
