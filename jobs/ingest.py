#!/usr/bin/env python3
"""Turn images from anywhere into a sealed dataset."""

from collections import Counter
from typing import Annotated, Any, ClassVar, Literal

import cv2
import numpy as np
import PIL
import pyarrow
from pydantic import AfterValidator, Field

from dcgan.networks import IMAGE_SIZES
from jobs import cluster, produce
from jobs.settings import Channels, JobSettings, Number, Url, UsageError, run
from pipelines import dataset, images, sources
from pipelines.images import ImageError, Pixels
from pipelines.manifest import Reject
from pipelines.shards import Sample
from pipelines.sources import ArraySource, Source
from pipelines.storage import Folder, StorageError, normalise


def _colour(name: str) -> str:
    images.colour(name)
    return name


def _place(name: str) -> str:
    try:
        return name if name == "digits" else normalise(name)
    except StorageError as error:
        raise ValueError(str(error)) from error


class IngestSettings(JobSettings):
    """What `jobs/ingest.py` takes."""

    command: ClassVar[str] = "ingest"
    about: ClassVar[str] = (
        "Make a dataset from images: a folder with a folder a class, a zip of one, IDX files, or `digits`."
    )
    examples: ClassVar[tuple[str, ...]] = (
        "jobs/ingest.py --source digits",
        "jobs/ingest.py --source ~/pictures --output s3://bucket/pictures --image-size 64",
        "jobs/ingest.py --source mnist/ --split train",
    )

    source: Annotated[str, AfterValidator(_place)] = Field(
        description="a folder, a .zip, a folder of IDX files, or `digits` (5,000 of MNIST, built in)"
    )
    output: Url = Field("{root}/real", description="where the dataset goes")
    split: Literal["train", "test"] | None = Field(None, description="which part of a source that has several (IDX)")
    image_size: Number | None = Field(
        None, description=f"height and width: {', '.join(map(str, IMAGE_SIZES))}; default: the source's, else 64"
    )
    channels: Channels | None = Field(None, description="1 (grey) or 3 (RGB); default: the source's, else 3")
    resize: Literal["crop", "pad", "stretch"] = Field("crop", description="what to do with an image of another shape")
    background: Annotated[str, AfterValidator(_colour)] = Field(
        "white", description="behind transparent images: a CSS colour, as white or #102030"
    )
    shard_size: Number = Field(
        1000, ge=1, le=100_000, description="images a shard; at least as many shards as training workers"
    )
    seed: Number = Field(0, ge=0, le=2**63 - 1, description="of the order in which images are dealt to shards")
    workers: Number | None = Field(None, ge=1, le=10_000, description="actors; default: one a CPU")


class IngestShard:
    """An actor's work: open the source once, then read, normalise, encode and publish one whole shard a call."""

    def __init__(
        self, output: str, source: str, split: str | None, resize: str, background: tuple[int, int, int]
    ) -> None:
        self.folder = Folder(output)
        self.identity = dataset.read_claim(self.folder)["identity"]
        self.source = sources.open_source(source, split)
        if self.source.digest != self.identity["source"]:
            raise RuntimeError(f"{source} has changed since the dataset was begun")
        self.order = permutation(self.identity["seed"], len(self.source))
        self.resize, self.background = resize, background

    def __call__(self, shard: int) -> dict[str, Any]:
        samples, rejects, names = [], [], []
        for index in dataset.shard_range(self.identity, shard):
            item = int(self.order[index])
            try:
                image = images.encode(self.pixels(item))
            except ImageError as error:
                rejects.append(Reject(index, self.source.name(item), str(error)))
                continue
            samples.append(Sample(index, image, self.source.label(item)))
            names.append(self.source.name(item))
        record = dataset.commit(self.folder, shard, "ingest", samples, {"source": names}, rejects)
        return produce.shard_result(record, rejects)

    def pixels(self, item: int) -> Pixels:
        """An item's image as the dataset will hold it. Raises ImageError with the reason if it cannot be taken."""
        data = self.source.image(item)
        content = data if isinstance(data, bytes) else images.encode(data)
        size, channels = self.identity["image_size"], self.identity["channels"]
        return images.normalise(content, size, channels, self.resize, self.background)


def permutation(seed: int, count: int) -> np.ndarray:
    """The item at each index: sources come sorted, by class often, and a shard should be a fair sample of all."""
    return np.random.default_rng(seed).permutation(count)


def main(settings: IngestSettings) -> None:
    source = sources.open_source(settings.source, settings.split)
    size, channels = _shape(settings, source)
    background = images.colour(settings.background)
    identity = {
        "producer": "ingest",
        "source": source.digest,
        "count": len(source),
        "shard_size": settings.shard_size,
        "seed": settings.seed,
        "image": {"format": "png", "resize": settings.resize, "background": list(background)},
        "image_size": size,
        "channels": channels,
        "classes": source.classes,
        "arithmetic": {
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "pillow": PIL.__version__,
            "pyarrow": pyarrow.__version__,
        },
    }
    output = Folder(settings.output)
    dataset.claim(output, identity, settings.stored())
    print(
        f"ingest: {len(source):,} images, {len(source.classes or []) or 'no'} classes, to {size}x{size}x{channels} in "
        f"{dataset.num_shards(identity):,} shards",
        flush=True,
    )
    pool = cluster.connect(settings.workers, "cpu", verbose=settings.verbose)
    arguments = {
        "output": output.url,
        "source": settings.source,
        "split": settings.split,
        "resize": settings.resize,
        "background": background,
    }
    product = produce.produce("ingest", output, identity, IngestShard, arguments, pool)
    index = product.index
    assert index is not None, "ingest has no limit"
    for reason, count in Counter(reject.reason.split(":")[0] for reject in product.rejects).most_common():
        print(f"ingest: {count:,} not taken: {reason} (each with its source in {output}/{dataset.REJECTS})")
    print(f"ingest: {output}: {index.samples:,} images, {index.bytes / 1e6:,.1f} MB, sealed; root {index.root[:12]}")
    print(f"ingest: next: jobs/train.py --data {output}")


def _shape(settings: IngestSettings, source: Source) -> tuple[int, int]:
    """The dataset's image size and channels: as asked, else the source's own, else 64x64 in colour."""
    own_size, own_channels = 64, 3
    if isinstance(source, ArraySource):
        height, width, own_channels = np.shape(source.image(0))
        own_size = height if height == width and height in IMAGE_SIZES else 64
    size = settings.image_size or own_size
    if size not in IMAGE_SIZES:
        raise UsageError(f"--image-size {size}: must be one of {', '.join(map(str, IMAGE_SIZES))}")
    return size, settings.channels or own_channels


if __name__ == "__main__":
    run(main, IngestSettings)
