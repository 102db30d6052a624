"""The identity of a dataset: all that decides its bytes. It is part of dataset.json, and the root hash covers it.

`to_json(from_json(value))` is `value` itself: a field that an older version did not write stays absent, and a field
that this version does not know stays there. Without that, the root hash of an existing dataset would change.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipelines.dataset import schema
from pipelines.dataset.schema import MAX_COUNT, MAX_IMAGE_SIZE, MAX_SHARD_IMAGES, Hash, Name

_Label = Annotated[int, Field(ge=0, lt=100_000, strict=True)]
_Weight = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
_Level = Annotated[int, Field(ge=0, le=255, strict=True)]


def _channels(number: int) -> int:
    if number not in (1, 3):
        raise ValueError("must be 1 or 3")
    return number


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow")


class _Closed(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class ImageFormat(_Record):
    """How images are stored."""

    format: Literal["png", "jpeg", "webp"]
    quality: int = Field(95, ge=1, le=100)
    """Of jpeg and webp."""
    resize: Literal["crop", "pad", "stretch"] | None = None
    """Ingest: what happens to an image of another shape."""
    # JSON has no tuples, so only their elements are strict.
    background: Annotated[tuple[_Level, _Level, _Level], Field(strict=False)] | None = None
    """Ingest: the RGB colour behind transparent images."""


class Cycle(_Closed):
    """Labels that are repeated in this order."""

    cycle: list[_Label] = Field(min_length=1, max_length=100_000)


class Weights(_Closed):
    """The share of each label, as pairs of label and weight."""

    weights: list[Annotated[tuple[_Label, _Weight], Field(strict=False)]] = Field(min_length=1, max_length=100_000)


class Limits(_Record):
    """Larger images are rejected."""

    bytes: int
    pixels: int


class Dedupe(_Record):
    """How duplicates were found."""

    mode: Literal["exact", "near"]
    against: str | None
    """The catalogue of the dataset whose images are removed too; for a holdout."""
    bits: int | None = None
    """near: in how many bits two hashes may differ."""
    levels: int | None = None
    """near: by how many grey levels two thumbnails may differ."""


class Holdout(_Record):
    """The split of one source into two datasets."""

    share: float
    """Of the images that are held out."""
    part: Literal["kept", "held out"]
    """Which of the two this dataset is."""


class Identity(_Record):
    """The fields of every dataset."""

    producer: Literal["ingest", "generate"]
    count: int = Field(ge=1, le=MAX_COUNT)
    """Images, rejected ones included."""
    shard_size: int = Field(ge=1, le=MAX_SHARD_IMAGES)
    """Images of a shard, except perhaps the last."""
    image_size: int = Field(ge=1, le=MAX_IMAGE_SIZE)
    """Height and width, in pixels."""
    channels: Annotated[int, AfterValidator(_channels)]
    """1 (grey) or 3 (RGB)."""
    image: ImageFormat
    classes: list[Name] | None = Field(max_length=100_000)
    """Class names, in the order of the labels; None without classes."""
    arithmetic: dict[str, str]
    """The hardware and the libraries on which the bytes depend."""
    model: Hash = ""
    """Digest of the generating model; '' for an ingested dataset."""
    seed_start: int = Field(0, ge=0, lt=2**63)
    """Seed of the first generated image."""
    labels: Cycle | Weights | None = None
    """The label policy of a generated dataset; None without classes."""
    batch: int = Field(128, ge=1, le=4096)
    """Images that the networks generate at once."""

    def to_json(self) -> dict[str, Any]:
        """The fields as dataset.json has them, for claim.canonical."""
        return self.model_dump(exclude_unset=True)


class IngestIdentity(Identity):
    """An ingested dataset. A default replaces a field that an older version did not write."""

    producer: Literal["ingest"]
    source: str = ""
    """Digest of the catalogue."""
    seed: int = 0
    """Of the order of the images."""
    relabel: dict[str, str | None] | None = None
    dedupe: Dedupe | None = None
    holdout: Holdout | None = None
    limits: Limits | None = None
    reader: int = 1
    """Revision of the source's reader (sources/base.py); written where it is above 1."""


class GenerateIdentity(Identity):
    """A generated dataset."""

    producer: Literal["generate"]


def from_json(value: Any) -> Identity:
    """Read an identity. Raises SchemaError naming the first field that is missing, or of another type or range."""
    producer = value.get("producer") if isinstance(value, dict) else None
    kinds: dict[str, type[Identity]] = {"ingest": IngestIdentity, "generate": GenerateIdentity}
    identity = schema.validate(kinds.get(str(producer), Identity), value)
    schema.check_size(identity.count, identity.shard_size, identity.image_size, identity.channels)
    return identity
