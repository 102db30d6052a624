#!/usr/bin/env python3
"""Map a trained generator over consecutive seeds, and publish the images as a sealed dataset."""

from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow
from pydantic import Field

from dcgan import arithmetic, latents, model_files
from dcgan.arithmetic import Arithmetic
from dcgan.sampling import Sampler
from jobs import cluster, models, produce
from jobs.settings import JobSettings, Number, Url, UsageError, run
from pipelines import dataset, images
from pipelines.shards import Sample
from pipelines.storage import Folder

MODEL = "model"  # the dataset carries its model: an image can be made again when the run is long gone


class GenerateSettings(JobSettings):
    """What `jobs/generate.py` takes."""

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
    classes: str = Field("balanced", description="labels of a conditional model: balanced, or a list as 0,1,7")
    workers: Number | None = Field(None, ge=1, le=10_000, description="actors; default: one a GPU, or one a CPU")
    batch_size: Number = Field(128, ge=1, le=4096, description="images that the networks take at once")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the hardware has it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: GPUs where there are any")
    gpus_per_worker: float = Field(1.0, gt=0, le=8, description="share of a GPU that each actor holds")


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
        model, digest = models.load(self.folder / MODEL)
        assert digest == self.identity["model"], "the dataset's own copy of its model is another model"
        self.sampler = Sampler(model, chosen, self.identity["batch"])

    def __call__(self, shard: int) -> dict[str, Any]:
        indices = dataset.shard_range(self.identity, shard)
        seed_start = self.identity["seed_start"]
        seeds = range(seed_start + indices.start, seed_start + indices.stop)
        labels = labels_of(self.identity, indices)
        made = self.sampler.sample(seeds, labels)
        samples = [
            Sample(index, images.encode_png(image), None if labels is None else int(labels[n]))
            for n, (index, image) in enumerate(zip(indices, made.images_NHWC, strict=True))
        ]
        extra = {"seed": np.arange(seeds.start, seeds.stop), "logit": made.logits_N, "score": sigmoid(made.logits_N)}
        return produce.shard_result(dataset.commit(self.folder, shard, "generate", samples, extra))


def fingerprint(chosen: Arithmetic) -> dict[str, str]:
    """The arithmetic of a dataset: all software and hardware that its bytes depend on."""
    return {**arithmetic.fingerprint(chosen), "pyarrow": pyarrow.__version__}


def labels_of(identity: dict[str, Any], indices: range) -> np.ndarray | None:
    """The labels of some indices, int64: the identity's list over and over. None without classes."""
    cycle = identity["labels"]
    return None if cycle is None else np.array(cycle, np.int64)[np.arange(indices.start, indices.stop) % len(cycle)]


def sigmoid(logits_N: np.ndarray) -> np.ndarray:
    """In float64, rounded to float32."""
    scores: np.ndarray = (1.0 / (1.0 + np.exp(-logits_N.astype(np.float64)))).astype(np.float32)
    return scores


def main(settings: GenerateSettings) -> None:
    if settings.seed_start + settings.count > latents.MAX_SEED:
        raise UsageError(
            f"--seed-start {settings.seed_start} + --count {settings.count}: seeds end at {latents.MAX_SEED}"
        )
    source = models.resolve(Folder(settings.model))
    card_bytes = source.read(model_files.CARD)
    card = model_files.read_card(card_bytes)
    labels = parse_classes(settings.classes, card["classes"])
    pool = cluster.connect(settings.workers, settings.device, settings.gpus_per_worker, settings.verbose)
    chosen, here = cluster.probe(pool, settings.precision, settings.device, fingerprint)
    identity = {
        "producer": "generate",
        "model": model_files.digest(card_bytes),
        "seed_start": settings.seed_start,
        "count": settings.count,
        "shard_size": settings.shard_size,
        "image": {"format": "png"},
        "image_size": card["network"]["image_size"],
        "channels": card["network"]["channels"],
        "classes": card["classes"],
        "labels": labels,
        "batch": settings.batch_size,
        "arithmetic": here,
    }
    output = Folder(settings.output)
    dataset.claim(output, identity, settings.describe())
    models.copy(source, output / MODEL)
    print(
        f"generate: {settings.count:,} images in {dataset.num_shards(identity):,} shards, {pool.workers} workers, "
        f"{here['dtype']} on {here['device']}, model {identity['model'][:12]} of {source}",
        flush=True,
    )
    product = produce.produce(
        "generate",
        output,
        identity,
        GenerateShard,
        {"output": output.url, "chosen": chosen},
        pool,
        existing=[f"{MODEL}/{name}" for name in (model_files.CARD, *model_files.WEIGHTS)],
    )
    index = product.index
    print(f"generate: {output}: {index.samples:,} images, {index.bytes / 1e6:,.1f} MB, sealed; root {index.root[:12]}")
    print(f"generate: next: jobs/verify.py --dataset {output} --regenerate 64")


def parse_classes(text: str, names: list[str] | None) -> list[int] | None:
    """The labels to cycle through. Raises UsageError for a class that the model does not have."""
    if names is None:
        if text != "balanced":
            raise UsageError(f"--classes {text}: the model has no classes; leave --classes out")
        return None
    if text == "balanced":
        return list(range(len(names)))
    numbers = {name: number for number, name in enumerate(names)}
    numbers.update({str(number): number for number in range(len(names))})
    for word in text.split(","):
        if word.strip() not in numbers:
            raise UsageError(f"--classes {text}: no class {word.strip()!r}; the model has 0 to {len(names) - 1}")
    return [numbers[word.strip()] for word in text.split(",")]


if __name__ == "__main__":
    run(main, GenerateSettings)
