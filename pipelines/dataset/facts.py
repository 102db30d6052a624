"""The facts about a dataset. Its cards, its preview and its page are made from this one value."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.dataset import manifest, reader, schema
from pipelines.dataset.attribution import NONE, Attribution
from pipelines.dataset.identity import Identity
from pipelines.dataset.layout import Index
from pipelines.dataset.manifest import EXTRA, ShardRecord
from pipelines.dataset.schema import SchemaError
from pipelines.images import EXTENSIONS
from pipelines.storage.folder import Folder, MissingError

_MEANING = {
    "key": "name of the sample's members in the tar: its index as 12 digits",
    "index": "global index, from 0",
    "shard": "number of the tar that holds it",
    "offset": "where the image's bytes begin in the tar",
    "size": "how many bytes they are",
    "sha256": "hash of the image's bytes",
    "label": "class, an index into the class names; null without classes",
    "source": "where the image came from, relative to the source",
    "seed": "names the latent vector that the image was made from",
    "logit": "the discriminator's raw output for the stored image",
    "score": "the sigmoid of the logit: how probably the image is real, if model/model.json holds a calibration",
}
_NOT_FOR = (
    "Not as a record or as evidence of persons, objects or events: none of them was in front of a camera.",
    "Not as the only data by which a system is tested or decisions about people are made.",
    "Not to be passed on as real images.",
)
_MODEL_CARD, _MAX_CARD_BYTES = "model/model.json", 1 << 20  # where `generate` puts its copy of the model


class Column(NamedTuple):
    """A column of the manifest."""

    name: str
    type: str  # as pyarrow names it
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How the model was trained that made a synthetic dataset, as far as its card says it."""

    data: str | None
    """The root of the real dataset."""
    images: int | None
    """Images seen in training, repetitions included."""
    recipe: str | None
    attribution: Attribution
    """Of the real dataset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known about a dataset."""

    identity: Identity
    attribution: Attribution
    training: Training | None
    """None for a real dataset."""
    shards: tuple[ShardRecord, ...]
    samples: int
    bytes: int
    """Of all tars."""
    root: str
    columns: tuple[Column, ...]

    @property
    def synthetic(self) -> bool:
        return self.identity.producer == "generate"

    @property
    def shape(self) -> str:
        """Height, width and channels, as 28x28x1."""
        return f"{self.identity.image_size}x{self.identity.image_size}x{self.identity.channels}"

    @property
    def extension(self) -> str:
        """The ending of the images' names in the tars."""
        return EXTENSIONS[self.identity.image.format]

    @property
    def title(self) -> str:
        """The title that was given, else one that counts the images."""
        kind = "synthetic images, made by a DCGAN" if self.synthetic else "images"
        return self.attribution.title or f"{self.samples:,} {kind}"

    @property
    def summary(self) -> str:
        """One sentence: how many images of which kind."""
        kind = "synthetic images, made by a DCGAN" if self.synthetic else "images"
        classes = f", {len(self.identity.classes):,} classes" if self.identity.classes else ""
        return f"{self.samples:,} {kind}, {self.shape}{classes}."

    @property
    def origin(self) -> str:
        """Sentences on what the images were made from."""
        training = self.training
        if training is None:
            return "Existing images, taken from one source. The column source names each image in it."
        real = f'the dataset "{training.attribution.title}"' if training.attribution.title else "a dataset"
        root = f" with root {training.data}" if training.data else ""
        licence = f" (licence: {training.attribution.licence})" if training.attribution.licence else ""
        seen = f" for {training.images:,} images" if training.images else ""
        first = self.identity.seed_start
        return (
            "No image was taken of the world: a generator made each from its seed. The model is the DCGAN with digest "
            f"{self.identity.model}, trained{seen} on {real}{root}{licence}. "
            f"Seeds: {first} to {first + self.identity.count - 1}."
        )

    @property
    def not_for(self) -> tuple[str, ...]:
        """What the images must not be used for."""
        return _NOT_FOR if self.synthetic else ()

    @property
    def version(self) -> str:
        """A semantic version whose build part is the beginning of the root: it changes with the content alone."""
        return f"1.0.0+{self.root[:12]}"

    @property
    def citation(self) -> str:
        """The citation that was given, else a BibTeX entry that names the dataset by its root."""
        year = f", year={{{self.attribution.date[:4]}}}" if self.attribution.date else ""
        title = re.sub(r"[\\{}]", " ", self.title)
        own = f"@misc{{ganmill-{self.root[:12]}, title={{{title}}}{year}, note={{root {self.root}}}}}"
        return self.attribution.citation or own


def gather(folder: Folder, identity: Identity, records: Mapping[int, ShardRecord]) -> Facts:
    """The facts about a dataset whose shards are all done. Reads its claim and its model's card."""
    shards = tuple(records[shard] for shard in sorted(records))
    index = Index(identity, shards, {}, "")
    fields = [*manifest.COLUMNS, *EXTRA[identity.producer]]
    return Facts(
        identity=identity,
        attribution=reader.read_claim(folder).attribution or NONE,
        training=_training(folder) if identity.producer == "generate" else None,
        shards=shards,
        samples=index.samples,
        bytes=index.bytes,
        root=reader.seal_json(index)["root"],
        columns=tuple(Column(field.name, str(field.type), _MEANING[field.name]) for field in fields),
    )


def _training(folder: Folder) -> Training:
    """The provenance in the card of the dataset's own model. What it lacks, or states in another form, is not known."""
    try:
        card = json.loads(folder.read(_MODEL_CARD, _MAX_CARD_BYTES))
    except (MissingError, ValueError, RecursionError):
        card = None
    found = card.get("provenance") if isinstance(card, dict) else None
    provenance: dict[str, Any] = found if isinstance(found, dict) else {}
    data, images, recipe = (provenance.get(name) for name in ("data", "images", "recipe"))
    return Training(
        data=data if isinstance(data, str) and re.fullmatch(r"[0-9a-f]{64}", data) else None,
        images=images if type(images) is int and images > 0 else None,
        recipe=recipe if isinstance(recipe, str) and re.fullmatch(r"[\w./-]{1,100}", recipe) else None,
        attribution=attribution_of(provenance),
    )


def attribution_of(provenance: Any) -> Attribution:
    """The attribution of the real dataset in a model's provenance; none if it has no valid one."""
    try:
        return schema.validate(Attribution, provenance["attribution"])
    except (KeyError, SchemaError, TypeError):
        return NONE
