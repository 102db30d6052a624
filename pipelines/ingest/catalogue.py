"""The catalogue: which image of a source has which index. The driver plans it once; workers read one shard's rows.

    catalogue/000000.parquet   the items of some shards, one row group a shard; removed after the seal

The order is that of a hash of the seed and the item's name, or of its block's name: the items of a block stay together.
That is a fair shuffle without a list of all items. Another hash, of the name alone, decides about the holdout: an image
keeps its side when others are added. The items are in a file on local disk; memory holds some 40 bytes for each.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import SourceError
from pipelines.sources.base import Item
from pipelines.storage.folder import Folder, MissingError

FOLDER = "catalogue"
ROWS_A_FILE = 65_536
MAX_CLASSES = 100_000
MAX_NAME = 1000  # letters of a class name, as in pipelines/dataset/schema.py
_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("place", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("label", pa.string()),
    ]
)
_DIGEST = b"ganmill"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The items of one dataset, in the order of their indices."""

    table: pa.Table  # of all items, memory-mapped
    rows_N: np.ndarray  # of `table`, one an index
    classes: list[str] | None
    digest: str  # of names, sizes, offsets and labels: a run does not continue with another source

    def __len__(self) -> int:
        return len(self.rows_N)

    def name(self, index: int) -> str:
        name: str = self.table["name"][int(self.rows_N[index])].as_py()
        return name

    def publish(self, folder: Folder, shard_size: int) -> None:
        """Write the files that workers read. A second run writes the same files."""
        numbers = {name: number for number, name in enumerate(self.classes or [])}
        step = _shards_a_file(shard_size) * shard_size
        for number, start in enumerate(range(0, len(self), step)):
            rows = self.table.take(pa.array(self.rows_N[start : start + step]))
            labels = pa.array([numbers.get(name) for name in rows["label"].to_pylist()], pa.int32())
            rows = rows.set_column(rows.schema.get_field_index("label"), "label", labels)
            rows = rows.replace_schema_metadata({_DIGEST: self.digest.encode()})
            sink = io.BytesIO()
            pq.write_table(rows, sink, row_group_size=shard_size, compression="zstd")
            folder.write(f"{FOLDER}/{number:06d}.parquet", sink.getvalue())


class Reader:
    """A worker's view of a published catalogue."""

    def __init__(self, folder: Folder, digest: str, shard_size: int) -> None:
        self._folder, self._digest, self._shards_a_file = folder, digest, _shards_a_file(shard_size)
        self._number, self._file = -1, b""

    def shard(self, shard: int) -> tuple[list[Item], list[int | None]]:
        """The items of a shard, and their labels. Raises SourceError for the catalogue of another dataset."""
        number, group = divmod(shard, self._shards_a_file)
        if number != self._number:
            name = f"{FOLDER}/{number:06d}.parquet"
            try:
                self._number, self._file = number, self._folder.read(name)
            except MissingError as error:
                raise SourceError(f"{self._folder}/{name}: missing: did another run seal this dataset?") from error
        file = pq.ParquetFile(io.BytesIO(self._file))
        if file.metadata.metadata.get(_DIGEST) != self._digest.encode():
            raise SourceError(f"{self._folder}/{FOLDER}: planned for another source; start the command again")
        *columns, labels = (column.to_pylist() for column in file.read_row_group(group).columns)
        return [Item(*row) for row in zip(*columns, strict=True)], labels


def plan(
    items: Iterable[Item],
    where: str,
    declared: list[str] | None,
    labelled: bool,
    seed: int,
    holdout: float,
    scratch: Path,
) -> tuple[Catalogue, Catalogue | None]:
    """Put a source's items in order.

    Args:    where: the source, for errors. declared: the classes, where the source declares them.
             labelled: False to ignore the labels. holdout: the share of the images that is held out.
             scratch: a local folder that must exist as long as the catalogues.
    Returns: the catalogue, and that of the holdout; None for a share of 0.
    Raises:  SourceError if there are no items, two items of one name, too many classes, or an invalid class name.
    """
    file = scratch / "items.arrow"
    keys, names = [], []
    found: set[str] = set()
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        for batch in _batched(items, ROWS_A_FILE):
            columns = list(zip(*batch, strict=True))
            if odd := next((name for name in (*columns[0], *columns[4]) if name and not _is_utf8(name)), None):
                raise SourceError(f"{where}: {odd!r}: this name is not UTF-8; rename it")
            keys.append(_hashes((block or name for name, block in zip(columns[0], columns[5], strict=True)), f"{seed}"))
            names.append(_hashes(columns[0], "name"))
            labels = columns[4] if labelled else [None] * len(batch)
            found.update(label for label in labels if label is not None)
            if len(found) > MAX_CLASSES:
                raise SourceError(
                    f"{where}: more than {MAX_CLASSES:,} classes: is this the column of labels? See --label-column"
                )
            writer.write_batch(pa.record_batch([*map(pa.array, columns[:4]), pa.array(labels, pa.string())], _SCHEMA))
    if not keys:
        raise SourceError(f"{where}: no images here; check --source")
    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    name_N, key_N = np.concatenate(names), np.concatenate(keys)
    _check_unique(table, name_N, where)
    order_N = np.lexsort((np.arange(len(key_N)), key_N))
    held_N = name_N[order_N] < int(holdout * 2**64) if holdout else np.zeros(len(key_N), bool)
    classes = _classes(declared if labelled else None, found)
    if odd := next((name for name in classes or () if not 0 < len(name) <= MAX_NAME), None):
        raise SourceError(f"{where}: {odd[:40]!r}: a class's name has 1 to {MAX_NAME:,} letters; see --relabel")
    kept = _catalogue(table, order_N[~held_N], classes)
    return kept, _catalogue(table, order_N[held_N], classes) if holdout else None


def _shards_a_file(shard_size: int) -> int:
    return max(1, ROWS_A_FILE // shard_size)


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    waiting = iter(items)
    while batch := list(islice(waiting, size)):
        yield batch


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _hashes(texts: Iterable[str], key: str) -> np.ndarray:
    """64 bits of each text's BLAKE2, keyed."""
    secret = key.encode()
    digests = (hashlib.blake2b(text.encode(), digest_size=8, key=secret).digest() for text in texts)
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def _check_unique(table: pa.Table, name_N: np.ndarray, where: str) -> None:
    order_N = np.argsort(name_N, kind="stable")
    for same in np.flatnonzero(name_N[order_N][1:] == name_N[order_N][:-1]):
        first, second = (table["name"][int(order_N[i])].as_py() for i in (same, same + 1))
        if first == second:
            raise SourceError(f"{where}: {first}: occurs twice; each image needs a unique name")


def _classes(declared: list[str] | None, found: set[str]) -> list[str] | None:
    """The class names: as declared, else sorted, and numbers by value. None for a single class."""
    if declared is not None or len(found) < 2:
        return declared
    if all(name.isdecimal() and name.isascii() for name in found):
        return sorted(found, key=lambda name: (int(name), name))
    return sorted(found)


def _catalogue(table: pa.Table, rows_N: np.ndarray, classes: list[str] | None) -> Catalogue:
    digest = hashlib.sha256()
    for start in range(0, len(rows_N), ROWS_A_FILE):
        rows = table.take(pa.array(rows_N[start : start + ROWS_A_FILE])).drop_columns("place")
        for name, offset, size, label in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            digest.update(f"{name}\0{offset}\0{size}\0{label}\0".encode())
    return Catalogue(table, rows_N, classes, digest.hexdigest())
