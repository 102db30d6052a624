"""The settings of `jobs/ingest.py`."""

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from dcgan.families.family import IMAGE_SIZES
from jobs.command.settings import CardSettings, Channels, JobSettings, Number, Url
from pipelines.image_header import MAX_PIXELS
from pipelines.storage.folder import StorageError, normalise


def _colour(name: str) -> str:
    from pipelines.images import colour  # with OpenCV

    colour(name)
    return name


def _place(name: str) -> str:
    from pipelines.sources import registry  # with pyarrow

    try:
        return name if name.startswith(registry.BUILT_IN) else normalise(name)
    except StorageError as error:
        raise ValueError(str(error)) from error


def _allowance(value: str) -> str:
    """A share of the images as `0.05`, or a number of them as `100`. Raises ValueError for anything else."""
    if re.fullmatch(r"\d{1,15}", value) or (re.fullmatch(r"\d*\.\d+|1\.0*", value) and float(value) <= 1):
        return value
    raise ValueError("must be a share, as 0.05, or a number of images, as 100")


class IngestSettings(CardSettings):
    """The settings of `jobs/ingest.py`."""

    command: ClassVar[str] = "ingest"
    about: ClassVar[str] = (
        "Make a dataset from images: a folder, a zip or tar of one, WebDataset shards, Parquet, a CSV or JSONL list,\n"
        "IDX files, torchvision:NAME, another dataset, or `digits`. docs/ingest.md describes each."
    )
    examples: ClassVar[tuple[str, ...]] = (
        "jobs/ingest.py --source digits",
        "jobs/ingest.py --source ~/pictures --output s3://bucket/pictures --image-size 64 --holdout 0.1",
        "jobs/ingest.py --source s3://bucket/laion/ --label-column category --dedupe near --max-rejects 1000",
        "jobs/ingest.py --source mnist/ --split train",
    )
    changeable: ClassVar[frozenset[str]] = frozenset()
    not_stored: ClassVar[frozenset[str]] = JobSettings.not_stored | {"max_rejects"}

    source: Annotated[str, AfterValidator(_place)] = Field(
        description="a path or URL of images in any of the forms above; `digits` is 5,000 of MNIST, built in"
    )
    output: Url = Field("{root}/real", description="where the dataset goes")
    kind: Literal["auto", "images", "webdataset", "parquet", "idx", "stacked-mnist"] = Field(
        "auto",
        description="how to read a folder that could be read in several ways; stacked-mnist: of IDX digits, three as "
        "one colour image",
    )
    split: str | None = Field(None, description="part of a source that has several, as train or test")
    labels: Literal["auto", "none"] = Field("auto", description="auto: the classes of the source; none: no classes")
    image_column: str | None = Field(None, description="Parquet, lists: the column of images; default: the usual names")
    label_column: str | None = Field(
        None, description="Parquet, lists: the column of classes; WebDataset: the field of .json instead of .cls"
    )
    relabel: Path | None = Field(
        None, description='JSON file of new class names, as {"tabby": "cat", "car": null}; null excludes a class'
    )
    base: Url | None = Field(None, description="lists: where their paths start; default: the list's own folder")
    image_size: Number | None = Field(
        None, description=f"height and width: {', '.join(map(str, IMAGE_SIZES))}; default: the source's, else 64"
    )
    channels: Channels | None = Field(None, description="1 (grey) or 3 (RGB); default: the source's, else 3")
    resize: Literal["crop", "pad", "stretch"] = Field("crop", description="how an image becomes square")
    background: Annotated[str, AfterValidator(_colour)] = Field(
        "white", description="behind transparent images: a CSS colour, as white or #102030"
    )
    dedupe: Literal["none", "exact", "near"] = Field(
        "none", description="keep one of equal images (exact), or of images that look the same (near)"
    )
    holdout: float = Field(
        0.0, ge=0.0, le=0.9, description="share of the images that go to a second dataset, for evaluation"
    )
    holdout_output: Url | None = Field(None, description="where the second dataset goes; default: OUTPUT-holdout")
    max_rejects: Annotated[str, BeforeValidator(str), AfterValidator(_allowance)] = Field(
        "0.1", description="images that may fail, a share or a number; duplicates do not count"
    )
    max_image_bytes: Number = Field(64 << 20, ge=1, le=1 << 30, description="larger files are rejected")
    max_image_pixels: Number = Field(
        MAX_PIXELS, ge=1, le=1 << 30, description="images with more pixels are rejected undecoded"
    )
    shard_size: Number = Field(
        1000, ge=1, le=100_000, description="images a shard; at least as many shards as training workers"
    )
    seed: Number = Field(0, ge=0, le=2**63 - 1, description="seed of the order in which images are dealt to shards")
    workers: Number | None = Field(None, ge=1, le=10_000, description="actors; default: one a CPU")
