"""Parquet with images in a column: bytes, or Hugging Face's struct of `bytes` and `path`."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.images import ImageError
from pipelines.sources.base import Choice, Content, Item, Source, SourceError, of_split, too_large
from pipelines.storage import Folder

_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp", "bytes", "image_bytes", "content")
_LABEL_COLUMNS = ("label", "labels", "class", "cls", "fine_label")
MAX_GROUP_BYTES = 2 << 30  # of a row group's column: it is read whole


class ParquetSource(Source):
    """Parquet files, one or a folder of them. The rows of a row group are read together.

    Args:   names: the files, in `folder`.
    """

    def __init__(self, folder: Folder, names: Sequence[str], choice: Choice) -> None:
        self._folder, self._choice = folder, choice
        self._names = of_split(names, choice.split, str(folder))
        self._open_name, self._open_file = "", None
        schema = self._file(self._names[0]).schema_arrow
        where = f"{folder}/{self._names[0]}"
        features = _features(schema)
        images = [name for name, feature in features.items() if feature.get("_type") == "Image"]
        self._image = _pick(schema, choice.image_column, [*images, *_IMAGE_COLUMNS], "--image-column", where, _is_image)
        named = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
        wanted = choice.label_column
        self._label = _pick(schema, wanted, [*named, *_LABEL_COLUMNS], "--label-column", where, _is_label)
        if not self._image:
            raise SourceError(f"{where}: no column of images; it has {', '.join(schema.names)}; see --image-column")
        names_of_classes = features.get(self._label, {}).get("names")
        self.classes = [str(name) for name in names_of_classes] if isinstance(names_of_classes, list) else None

    def items(self) -> Iterator[Item]:
        for name in self._names:
            file = self._file(name)
            missing = {self._image, self._label} - {"", *file.schema_arrow.names}
            if missing:
                raise SourceError(f"{self._folder}/{name}: no column {missing.pop()}, which the first file has")
            row = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                labels = self._labels(file, group) if self._label else [None] * rows
                for label in labels:
                    yield Item(f"{name}#{row}", name, row, label=label, block=f"{name}#{group}")
                    row += 1

    def _labels(self, file: pq.ParquetFile, group: int) -> list[str | None]:
        values = file.read_row_group(group, columns=[self._label]).column(0).to_pylist()
        if self.classes is None:
            return [None if value is None else str(value) for value in values]
        known = len(self.classes)  # -1 is Hugging Face's way to say that there is none
        return [self.classes[value] if value is not None and 0 <= value < known else None for value in values]

    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        place, first, column = "", 0, None  # of the row group that is held
        for item in items:
            if column is None or item.place != place or not first <= item.offset < first + len(column):
                file = self._file(item.place)
                group, first = _find(file.metadata, item.offset)
                place, column = item.place, self._read_group(file, item.place, group)
            value = column[item.offset - first].as_py()
            data = value.get("bytes") if isinstance(value, dict) else value
            if not data:
                yield ImageError("empty")
            elif len(data) > self._choice.max_bytes:
                yield too_large(len(data), self._choice.max_bytes)
            else:
                yield data

    def _read_group(self, file: pq.ParquetFile, name: str, group: int) -> pa.ChunkedArray:
        metadata = file.metadata.row_group(group)
        columns = [metadata.column(i) for i in range(metadata.num_columns)]
        size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == self._image)
        if size > MAX_GROUP_BYTES:
            raise SourceError(
                f"{self._folder}/{name}: a row group of {size / 1e9:.1f} GB, which a worker would have to hold; "
                f"write it with row groups of up to {MAX_GROUP_BYTES / 1e9:.1f} GB"
            )
        return file.read_row_group(group, columns=[self._image]).column(0)

    def _file(self, name: str) -> pq.ParquetFile:
        if name != self._open_name:
            try:
                self._open_name, self._open_file = name, pq.ParquetFile(self._folder.open(name))
            except (pa.ArrowException, OSError) as error:
                raise SourceError(f"{self._folder}/{name}: not a Parquet file: {error}") from error
        assert self._open_file is not None
        return self._open_file


def _find(metadata: pq.FileMetaData, row: int) -> tuple[int, int]:
    """The row group that holds a row, and its first row."""
    first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row < first + rows:
            return group, first
        first += rows
    raise IndexError(row)


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What Hugging Face's datasets wrote of each column; {} in other files."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_image(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_label(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _pick(schema: pa.Schema, wanted: str | None, usual: Sequence[str], flag: str, where: str, fits: Any) -> str:
    """The column that is wanted, else the first of the usual that is there and fits; '' if there is none."""
    kinds = {field.name: field.type for field in schema}
    if wanted is None:
        return next((name for name in usual if name in kinds and fits(kinds[name])), "")
    if wanted not in kinds or not fits(kinds[wanted]):
        what = f"is {kinds[wanted]}" if wanted in kinds else f"is not there; it has {', '.join(kinds)}"
        raise SourceError(f"{where}: {flag} {wanted}: {what}")
    return wanted
