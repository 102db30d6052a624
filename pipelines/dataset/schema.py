"""The schema and limits of dataset.json, index.json and a selection's footer. Every reader checks them.

A dataset may be hostile. A value of another type or beyond these limits is refused before any shard is read. The limits
bound the memory that one shard can take.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

MAX_COUNT = 10**12  # a key has 12 digits
MAX_SHARD_IMAGES = 100_000
MAX_SHARDS = 10**6  # index.json has some 300 bytes a shard, and is read whole
MAX_SHARD_PIXELS = 2 << 30  # bytes of one shard's pixels: a worker holds it in memory
MAX_IMAGE_SIZE = 1024
MAX_CLAIM_BYTES = 32 << 20
MAX_PART_BYTES = 256 << 20
MAX_SELECTED = 10**8  # samples of a selection, repeated by weight: 8 bytes each in every reader's memory
MAX_SELECTION_BYTES = 1 << 29  # 2.6 a sample, when half of all are selected
MAX_SCORES_BYTES = 1 << 31  # of a file of second scores; 10 a sample
MAX_FOOTER_BYTES = 16 << 20  # 100,000 classes with their counts
_ENTRY_BYTES, _SEAL_BYTES = 400, 1 << 20  # of a shard in the seal; of the rest of it, except for class names

Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Model = TypeVar("Model", bound=BaseModel)
Name = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


class SchemaError(ValueError):
    """A field with a value that is not allowed. The text has its name, its value and the allowed ones."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Shard(_Strict):
    samples: int = Field(ge=0, le=MAX_SHARD_IMAGES)
    bytes: int = Field(ge=0)
    sha256: Hash
    part_bytes: int = Field(ge=0, le=MAX_PART_BYTES)
    part_sha256: Hash


class _Seal(_Strict):
    format: int
    samples: int
    bytes: int
    classes: list[str] | None
    shards: list[_Shard]
    files: dict[Name, Hash] = Field(max_length=1000)
    root: Hash


class _Taken(_Strict):
    label: int | None = Field(ge=0, lt=100_000)  # null without classes
    taken: int = Field(ge=0, le=MAX_SELECTED)
    of: int = Field(ge=0, le=MAX_COUNT)


class _Selection(_Strict):
    format: Literal[1]
    dataset: Hash
    rule: Name
    parameters: dict[Name, str | int | float | None] = Field(max_length=100)
    images: int = Field(ge=1, le=MAX_COUNT)
    selected: int = Field(ge=1, le=MAX_SELECTED)
    classes: list[_Taken] = Field(min_length=1, max_length=100_000)
    report: dict[Name, Any] = Field(max_length=100)


class _Scores(_Strict):
    format: Literal[1]
    dataset: Hash
    images: int = Field(ge=1, le=MAX_SELECTED)
    protocol: dict[Name, Any] = Field(max_length=100)


def check_seal(seal: Any) -> None:
    """Raises SchemaError for a seal of other fields or types. The reader checks whether its content is true."""
    validate(_Seal, seal)


def check_selection(footer: Any) -> None:
    """Raises SchemaError for a selection's footer of other fields or types."""
    validate(_Selection, footer)


def check_scores(footer: Any) -> None:
    """Raises SchemaError for a footer of second scores with other fields or types."""
    validate(_Scores, footer)


def check_size(count: int, shard_size: int, image_size: int, channels: int) -> None:
    """Raises SchemaError for more shards than a seal can list, or a shard that may not fit into a worker's memory."""
    shards = -(-count // shard_size)
    if shards > MAX_SHARDS:
        raise SchemaError(
            f"count {count:,} in shards of {shard_size:,} makes {shards:,} shards, more than {MAX_SHARDS:,}; "
            f"use a shard size of at least {-(-count // MAX_SHARDS):,}"
        )
    pixels = image_size * image_size * channels
    if shard_size * pixels > MAX_SHARD_PIXELS:
        held = shard_size * pixels / 2**30
        raise SchemaError(
            f"shard size {shard_size:,} of {image_size}x{image_size}x{channels} holds {held:.1f} GiB of pixels, "
            f"more than {MAX_SHARD_PIXELS / 2**30:.0f}; use at most {MAX_SHARD_PIXELS // pixels:,}"
        )


def max_tar_bytes(samples: int, pixels: int) -> int:
    """The largest size of a shard: images that do not compress, headers and padding."""
    return samples * (2 * pixels + 4096) + 20_480


def max_seal_bytes(shards: int, class_names: int) -> int:
    """The largest size of index.json, by the content of dataset.json. Both have the class names."""
    return _SEAL_BYTES + shards * _ENTRY_BYTES + class_names


def validate(model: type[Model], value: Any) -> Model:
    """A value as its model. Raises SchemaError naming the first field that does not fit, and its value."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SchemaError(f"{where} is {_short(first['input'])}: {first['msg']}") from None


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, int | float | str | None) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."
