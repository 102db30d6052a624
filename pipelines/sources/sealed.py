"""Our own datasets as a source: to resize, to relabel, to split, to take the duplicates out."""

from collections.abc import Iterator, Sequence

from pipelines import dataset
from pipelines.sources.base import Choice, Content, Item, Source, SourceError
from pipelines.sources.tars import read_pieces
from pipelines.storage import Folder


class SealedSource(Source):
    """A sealed dataset. Every part is checked against the seal when it is listed, and every image when it is read."""

    def __init__(self, folder: Folder, choice: Choice) -> None:
        if choice.split:
            raise SourceError(f"--split {choice.split}: {folder} is a dataset of ganmill's, which has no splits")
        self._folder, self._limit = folder, choice.max_bytes
        self._index = dataset.open_sealed(folder)
        self.classes = self._index.classes
        size, _, channels = self._index.image_shape
        self.shape = (size, channels)

    def items(self) -> Iterator[Item]:
        for record in self._index.shards:
            part = dataset.read_sealed_part(self._folder, record)
            for key, offset, size, label in zip(
                *(part.table.column(name).to_pylist() for name in ("key", "offset", "size", "label")), strict=True
            ):
                name = self.classes[label] if self.classes and label is not None else None
                yield Item(key, record.tar, offset, size, name, record.tar)

    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        return read_pieces(self._folder, items, self._limit)
