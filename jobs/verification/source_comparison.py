"""Compare an ingested dataset with its source, image by image: `verify --against`."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import PIL.features

from jobs.command.errors import UsageError
from pipelines import images
from pipelines.dataset import layout, reader
from pipelines.dataset.identity import Identity, IngestIdentity
from pipelines.dataset.layout import Index
from pipelines.dataset.manifest import Part
from pipelines.errors import CorruptError, DatasetError, SourceError
from pipelines.images import ImageError, Pixels
from pipelines.ingest import catalogue, preparation
from pipelines.ingest.relabel import Relabelling
from pipelines.sources import registry
from pipelines.sources.base import Choice, Item
from pipelines.sources.registry import Origin, open_source
from pipelines.storage.folder import Folder, StorageError, normalise

# Grey levels of 255. Other versions of the libraries that decode and scale differ by a few.
TOLERANCE = 8
_DUPLICATES = ("duplicate:", "near duplicate:")
_SENTENCES = {  # by kind of difference: {0} of {1} images, {2} the source, {3} the first one
    "differs": "{0:,} of {1:,} images differ from those of {2}, the first is sample {3}",
    "gone": "{0:,} of {1:,} images are no longer in {2}, the first is sample {3}",
    "missing": "{0:,} images of {2} are neither in the dataset nor among its rejects, the first is {3}",
    "taken": "{0:,} rejected images of {2} are valid now, the first is {3}",
}


@dataclass(frozen=True, slots=True)
class SourceReading:
    """The settings by which the source of a dataset was read, from the dataset's claim."""

    origin: Origin
    relabel: dict[str, str | None]
    labelled: bool
    seed: int
    holdout: float
    held_out: bool  # the dataset is the holdout


def source_reading(folder: Folder, source: str) -> SourceReading:
    """The settings to read `source` by, from the dataset's claim. Raises UsageError, DatasetError, StorageError."""
    claimed = reader.read_claim(folder)
    identity = claimed.identity
    if not isinstance(identity, IngestIdentity):
        raise UsageError(f"--against {source}: {folder} was generated and has no source; see --regenerate")
    if not source.startswith(registry.BUILT_IN):
        source = normalise(source)
    try:
        settings = {name: claimed.settings.get(name) for name in ("split", "base", "image_column", "label_column")}
        kind, labels = claimed.settings.get("kind", "auto"), claimed.settings.get("labels", "auto")
        texts = (kind, labels, *filter(None, settings.values()))
        if kind not in ("auto", *registry.KINDS) or not all(isinstance(text, str) for text in texts):
            raise TypeError("settings of other types")
        lacking = {"limits", "seed", "holdout", "relabel"} - identity.model_fields_set
        if lacking or identity.limits is None:
            raise ValueError(f"its identity has no {min(lacking, default='limits')}")
    except (AttributeError, TypeError, ValueError) as error:
        raise DatasetError(f"{folder}/{layout.CLAIM}: does not say how its source was read: {error}") from error
    origin = Origin(
        source,
        registry.kind_of(source) if kind == "auto" else kind,
        Choice(**settings, max_bytes=identity.limits.bytes),
    )
    holdout = identity.holdout
    return SourceReading(
        origin,
        identity.relabel or {},
        labels == "auto",
        identity.seed,
        holdout.share if holdout else 0.0,
        holdout is not None and holdout.part != "kept",
    )


class SourceListing:
    """The items of a source that belong in a dataset, by name. Each takes some 150 bytes of memory."""

    def __init__(self, how: SourceReading) -> None:
        self.url = how.origin.url
        self.source = open_source(how.origin.url, how.origin.kind, how.origin.choice)
        # The list is mapped into memory: it stays readable when its file is gone, and nothing is left behind.
        with tempfile.TemporaryDirectory(prefix="ganmill-verify-") as scratch:
            relabelling = Relabelling(how.relabel)
            parts = catalogue.plan(
                relabelling.items(self.source),
                how.origin.url,
                relabelling.classes(self.source),
                how.labelled,
                how.seed,
                how.holdout,
                Path(scratch),
            )
        part = parts[how.held_out]
        assert part is not None, "a holdout has a share"
        self.classes, self._table = part.classes, part.table
        self._rows = {self._table["name"][row].as_py(): row for row in part.rows_N.tolist()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def item(self, name: str) -> Item | None:
        """The item of this name, or None."""
        row = self._rows.get(name)
        return None if row is None else Item(*(column[row].as_py() for column in self._table.columns))


class Comparison:
    """Compares the shards of a dataset with its source."""

    def __init__(self, folder: Folder, index: Index, how: SourceReading) -> None:
        self.folder, self.index, self.listing = folder, index, SourceListing(how)
        self.labelled = bool(index.classes or self.listing.classes)
        self.tolerance = tolerance(index.identity)
        assert isinstance(index.identity, IngestIdentity), "as reading() found"
        self.identity = index.identity

    def compare(self, shard: int) -> dict[str, Any]:
        """Compare every image of a shard with the source's. Each is read alone: this shows errors of batched reads."""
        record = self.index.shards[shard]
        part = reader.read_sealed_part(self.folder, record)
        tar = reader.read_shard(self.folder, record)
        wrong: dict[str, list[Any]] = {}
        equal = furthest = 0
        for row in part.table.select(["key", "offset", "size", "label", "source"]).to_pylist():
            where = f"{row['key']} ({row['source']})"
            item = self.listing.item(row["source"])
            if item is None:
                _note(wrong, "gone", where)
                continue
            try:
                stored = images.decode(tar[row["offset"] : row["offset"] + row["size"]], self.index.image_shape[2])
            except ImageError as error:
                raise CorruptError(f"{self.folder}/{record.tar}: sample {row['key']}: {error}") from error
            distance, why = self._difference(item, stored, row["label"])
            if why:
                _note(wrong, "differs", f"{where}: {why}")
            else:
                equal, furthest = equal + 1, max(furthest, distance)
        for reject in part.rejects:
            item = self.listing.item(reject.source)
            if item is not None and not reject.reason.startswith(_DUPLICATES) and not self._image(item)[1]:
                _note(wrong, "taken", f"{reject.source} (was: {reject.reason})")
        return {"equal": equal, "furthest": furthest, "wrong": wrong}

    def _difference(self, item: Item, stored: Pixels, label: int | None) -> tuple[int, str]:
        """The largest difference of a pixel, and the reason why the images or labels differ; '' if they are equal."""
        classes = self.index.classes
        mine = classes[label] if classes and label is not None else None
        theirs = item.label if self.labelled else None
        if mine != theirs:
            return 0, f"its class is {mine!r}, that of the source {theirs!r}"
        image, why = self._image(item)
        if image is None:
            return 0, f"the source's image is rejected: {why}"
        distance = int(np.abs(image.astype(int) - stored.astype(int)).max())
        return distance, f"a pixel differs by {distance} of 255 grey levels" if distance > self.tolerance else ""

    def _image(self, item: Item) -> tuple[Pixels | None, str]:
        """An item's image as the dataset would hold it, or the reason why it is rejected."""
        try:
            [content] = self.listing.source.read([item])
            image = preparation.prepare(content, item.label, self.identity)
        except (ImageError, SourceError, StorageError) as error:
            return None, str(error)
        return image, ""


def missing(listing: Iterable[str], parts: Iterable[Part]) -> dict[str, list[Any]]:
    """The source's images that the dataset neither holds nor rejected."""
    known: set[str] = set()
    for part in parts:
        known.update(part.table["source"].to_pylist(), (reject.source for reject in part.rejects))
    wrong: dict[str, list[Any]] = {}
    for name in listing:
        if name not in known:
            _note(wrong, "missing", name)
    return wrong


def summarise(found: Iterable[Mapping[str, list[Any]]], samples: int, source: str) -> str:
    """All differences in one line, from the results of the shards in order; '' if there are none."""
    wrong: dict[str, list[Any]] = {}
    for one in found:
        for kind, (count, first) in one.items():
            wrong.setdefault(kind, [0, first])[0] += count
    return "; ".join(
        sentence.format(wrong[kind][0], samples, source, wrong[kind][1])
        for kind, sentence in _SENTENCES.items()
        if kind in wrong
    )


def tolerance(identity: Identity) -> int:
    """The allowed difference of a pixel: 0 if the libraries that decode and scale have the dataset's versions."""
    here = {"opencv": cv2.__version__, "pillow": PIL.__version__, "jpeg": str(PIL.features.version("jpg"))}
    return 0 if all(identity.arithmetic.get(name) == version for name, version in here.items()) else TOLERANCE


def _note(wrong: dict[str, list[Any]], kind: str, first: str) -> None:
    wrong.setdefault(kind, [0, first])[0] += 1
