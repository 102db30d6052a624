"""Parquet with images in a column: bytes, or Hugging Face's struct of `bytes` and `path`."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import SourceError
from pipelines.images import ImageError
from pipelines.sources.base import (
    Choice,
    Content,
    Item,
    Source,
    changed,
    class_of,
    distinct,
    find_column,
    is_junk,
    of_split,
    too_large,
)
from pipelines.storage.folder import Folder, StorageError

ENDING = ".parquet"

_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp", "bytes", "image_bytes", "content")
_LABEL_COLUMNS = ("label", "labels", "class", "cls", "fine_label")
MAX_GROUP_BYTES = 2 << 30  # of one column in a row group, which is read whole


class ParquetSource(Source):
    """One Parquet file, or a folder of them. The rows of a row group are one block.

    Args:   names: the files in `folder`. Only those that end in .parquet are read.
    """

    def __init__(self, folder: Folder, names: Sequence[str], choice: Choice) -> None:
        super().__init__()
        self._folder, self._choice = folder, choice
        tables = [name for name in names if name.lower().endswith(ENDING) and not is_junk(name)]
        for name in self.tally.over(sorted({*names} - {*tables})):
            self.tally.ignore_file(name)
        if not tables:
            raise SourceError(f"{folder}: no Parquet files here; check --source and --kind")
        self._names = of_split(tables, choice.split, str(folder), self.tally)
        self.revision = 2 if len(self._names) > 1 else 1  # revision 1 took images of one file for those of another
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
        self.classes = self._named(schema)

    def items(self) -> Iterator[Item]:
        for name in self._names:
            file = self._file(name)
            self._check(file.schema_arrow, f"{self._folder}/{name}")
            row = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                labels = self._labels(file, name, group, row) if self._label else [None] * rows
                for label in self.tally.over(labels):
                    yield Item(f"{name}#{row}", name, row, label=label, block=f"{name}#{group}")
                    row += 1

    def _named(self, schema: pa.Schema) -> list[str] | None:
        """The class names that a file declares for the numbers in its column of labels."""
        names = _features(schema).get(self._label, {}).get("names")
        return distinct(names) if isinstance(names, list) else None

    def _check(self, schema: pa.Schema, where: str) -> None:
        """Raises SourceError if a file's columns differ from the first file's."""
        for column, fits in ((self._image, _is_image), (self._label, _is_label)):
            if column and schema.names.count(column) != 1:
                times = "no column" if column not in schema.names else "two columns"
                raise SourceError(f"{where}: {times} {column}, of which the first file has one")
            if column and not fits(schema.field(column).type):
                raise SourceError(f"{where}: its {column} is {schema.field(column).type}, unlike the first file's")
        classes = self._named(schema)
        if classes is not None and classes != self.classes:
            raise SourceError(f"{where}: its {self._label} names other classes than the first file's")

    def _labels(self, file: pq.ParquetFile, name: str, group: int, first: int) -> list[str | None]:
        values = self._column(file, name, group, self._label).to_pylist()
        if self.classes is None:
            return [None if value in (None, "") else str(value) for value in values]
        where = f"{self._folder}/{name}: row"
        odd = next((number for number, value in enumerate(values) if isinstance(value, str)), None)
        if odd is not None:
            raise SourceError(f"{where} {first + odd}: its label is text, but its classes are numbers")
        return [
            None if value is None else class_of(value, self.classes, f"{where} {first + number}")
            for number, value in enumerate(values)
        ]

    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        place, first, column = "", 0, None  # of the row group in memory
        for item in items:
            if column is None or item.place != place or not first <= item.offset < first + len(column):
                file = self._file(item.place)
                group, first = _find(file.metadata, item.offset)
                if group < 0:
                    raise changed(f"{self._folder}/{item.place}", f"row {item.offset:,} is missing")
                place, column = item.place, self._column(file, item.place, group, self._image)
            value = column[item.offset - first].as_py()
            data = value.get("bytes") if isinstance(value, dict) else value
            if not data:
                yield ImageError("empty")
            elif len(data) > self._choice.max_bytes:
                yield too_large(len(data), self._choice.max_bytes)
            else:
                yield data

    def _column(self, file: pq.ParquetFile, name: str, group: int, column: str) -> pa.ChunkedArray:
        """A column of a row group, whole."""
        where = f"{self._folder}/{name}: row group {group}"
        try:
            size = _size(file.metadata.row_group(group), column) if column == self._image else 0
            if size > MAX_GROUP_BYTES:
                raise SourceError(
                    f"{where}: has {size / 1e9:.1f} GB, too much for a worker; write it with row groups of "
                    f"up to {MAX_GROUP_BYTES / 1e9:.1f} GB"
                )
            found = file.read_row_group(group, columns=[column]).column(column)
        except StorageError:
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise SourceError(f"{where} cannot be read: {_in_a_line(error)}") from error
        rows = file.metadata.row_group(group).num_rows
        if len(found) != rows:
            raise SourceError(f"{where}: {column} has {len(found):,} of its {rows:,} rows; damaged")
        return found

    def _file(self, name: str) -> pq.ParquetFile:
        if name != self._open_name:
            try:
                file = pq.ParquetFile(self._folder.open(name), page_checksum_verification=True)
                self._open_name, self._open_file = name, file
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise SourceError(f"{self._folder}/{name}: not a Parquet file: {_in_a_line(error)}") from error
        assert self._open_file is not None
        return self._open_file


def _size(group: pq.RowGroupMetaData, column: str) -> int:
    """Bytes of a row group's column, unpacked."""
    parts = [group.column(i) for i in range(group.num_columns)]
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column)


def _in_a_line(error: Exception) -> str:
    """An error of Arrow's, whose text may have several lines."""
    return " ".join(str(error).split())


def _find(metadata: pq.FileMetaData, row: int) -> tuple[int, int]:
    """The row group of a row, and the group's first row; -1 without one."""
    first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row < first + rows:
            return group, first
        first += rows
    return -1, first


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """The feature of each column as Hugging Face's datasets describe it; {} in other files."""
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
    """The wanted column, else the first usual one that exists and fits; '' without one."""
    kinds = {field.name: field.type for field in schema}
    if wanted is None:
        return find_column((name for name, kind in kinds.items() if fits(kind)), usual)
    if wanted not in kinds or not fits(kinds[wanted]):
        what = f"is {kinds[wanted]}" if wanted in kinds else f"is not there; it has {', '.join(kinds)}"
        raise SourceError(f"{where}: {flag} {wanted}: {what}")
    return wanted
