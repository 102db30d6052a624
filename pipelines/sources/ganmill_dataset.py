"""A sealed dataset of ganmill's as a source: to resize, relabel or split it, or to remove duplicates."""

import hashlib
from collections.abc import Iterator, Sequence

from pipelines.dataset import reader
from pipelines.dataset.attribution import NONE
from pipelines.dataset.manifest import ShardRecord
from pipelines.errors import CorruptError, SourceError
from pipelines.images import LimitError
from pipelines.sources.base import Choice, Content, Item, Source, distinct
from pipelines.sources.tar_members import read_pieces
from pipelines.storage.folder import Folder


class SealedSource(Source):
    """A sealed dataset. Parts are checked against the seal when they are listed, and images when they are read."""

    sealed = True

    def __init__(self, folder: Folder, choice: Choice) -> None:
        super().__init__()
        if choice.split:
            raise SourceError(f"--split {choice.split}: {folder} is a dataset of ganmill's, which has no splits")
        self._folder, self._limit = folder, choice.max_bytes
        self._index = reader.open_sealed(folder)
        known = reader.read_claim(folder).attribution or NONE
        self.attribution = known.model_copy(update={"date": None})
        self._records = {record.tar: record for record in self._index.shards}
        self._place, self._hashes = "", dict[str, bytes]()  # the hashes of one shard's images, by key
        self.classes = None if self._index.classes is None else distinct(self._index.classes)
        size, _, channels = self._index.image_shape
        self.shape = (size, channels)

    def items(self) -> Iterator[Item]:
        for record in self._index.shards:
            part = reader.read_sealed_part(self._folder, record)
            rows = (part.table.column(name).to_pylist() for name in ("key", "offset", "size", "label"))
            for key, offset, size, label in self.tally.over(zip(*rows, strict=True)):
                yield Item(key, record.tar, offset, size, self._class(label, record, key), record.tar)

    def _class(self, label: int | None, record: ShardRecord, key: str) -> str | None:
        names = self.classes
        if label not in (range(len(names)) if names is not None else (None,)):
            raise CorruptError(
                f"{self._folder}/{record.part}: sample {key}: its class is {label}, of {len(names or [])}"
            )
        return names[label] if names is not None and label is not None else None

    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        """As Source.read. Raises CorruptError naming shard and sample for an image that changed after the seal."""
        for item, content in zip(items, read_pieces(self._folder, items, self._limit), strict=True):
            where = f"{self._folder}/{item.place}: sample {item.name}"
            if isinstance(content, bytes):
                if hashlib.sha256(content).digest() != self._sha256(item):
                    raise CorruptError(f"{where}: its image changed after the seal (its sha256 differs)")
            elif not isinstance(content, LimitError):
                raise CorruptError(f"{where}: {content}")
            yield content

    def _sha256(self, item: Item) -> bytes | None:
        """The hash of an item's image in its manifest row."""
        if item.place != self._place:
            table = reader.read_sealed_part(self._folder, self._records[item.place]).table
            keys, hashes = (table.column(name).to_pylist() for name in ("key", "sha256"))
            self._place, self._hashes = item.place, dict(zip(keys, hashes, strict=True))
        return self._hashes.get(item.name)
