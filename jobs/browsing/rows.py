"""The rows of a dataset's manifest in DuckDB, to be filtered, sorted and counted in little memory.

The parts are read once, each checked against the seal, into a database file in a temporary folder: so a store is asked
for each part once, and a part that changes later changes nothing here.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.dataset import reader
from pipelines.dataset.layout import Index
from pipelines.dataset.manifest import Part, ShardRecord
from pipelines.errors import CorruptError
from pipelines.sources.base import ahead
from pipelines.storage.folder import Folder

PAGE = 100  # images
_MEMORY = "64MB"  # of DuckDB; it spills to the temporary folder
_AT_ONCE = 2  # parts that are read at the same time
_COLUMNS = 'index, shard, "offset", size, sha256, label'
ORDERS = {  # by the name in the address
    "index": ("index", "key, ascending"),
    "index-down": ("index desc", "key, descending"),
    "score-down": ("logit desc, index", "score, best first"),
    "score": ("logit, index", "score, worst first"),
    "source": ("source, index", "source"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which rows are shown. None, '' and False do not filter."""

    label: int | None = None
    low: float | None = None  # scores, both ends included
    high: float | None = None
    source: str = ""  # a part of the source's name
    selected: bool = False  # only those of the selection

    def where(self) -> tuple[str, list[Any]]:
        """The condition, and its parameters: no value is ever a part of the query's text."""
        conditions = {
            "label = ?": self.label,
            "score >= ?::float": self.low,
            "score <= ?::float": self.high,
            "contains(source, ?)": self.source or None,
        }
        given = {text: value for text, value in conditions.items() if value is not None}
        chosen = ["index in (select index from chosen)"] if self.selected else []
        return " and ".join([*given, *chosen]) or "true", [*given.values()]


class Rows:
    """A dataset's rows. Threads may ask at the same time."""

    def __init__(
        self,
        folder: Folder,
        index: Index,
        scratch: str,
        chosen_N: np.ndarray | None = None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Read the manifest. Raises CorruptError for a part that is not as it was sealed.

        Args:   chosen_N: the indices of a selection. progress: is called with the number of rows so far.
        """
        self._scratch = scratch
        self.synthetic = index.identity.producer == "generate"
        extra = "seed, logit, score" if self.synthetic else "source"
        self._names = [*_COLUMNS.replace('"', "").split(", "), *extra.split(", ")]
        self._columns = f"{_COLUMNS}, {extra}"
        self._base = duckdb.connect(f"{scratch}/rows.duckdb")
        self._lock = threading.Lock()
        for setting in (
            f"memory_limit = '{_MEMORY}'", "threads = 2", f"temp_directory = '{scratch}/spill'",
            "autoload_known_extensions = false", "autoinstall_known_extensions = false",
        ):  # fmt: skip
            self._base.execute(f"set {setting}")
        kinds = "seed bigint, logit float, score float" if self.synthetic else "source varchar"
        self._base.execute(
            f'create table rows (index bigint, shard integer, "offset" bigint, size integer, sha256 blob, '
            f"label integer, {kinds})"
        )
        self._base.execute("create table chosen (index bigint)")
        count = 0
        for part in ahead(partial(_read, folder, index), (r for r in index.shards if r.samples), _AT_ONCE):
            self._insert("rows", part.table.select(self._names), self._columns)
            count += len(part.table)
            progress(count)
        if chosen_N is not None:
            self._insert("chosen", pa.table({"index": np.unique(chosen_N)}), "index")
        self._base.execute("checkpoint")
        self._base.execute("set enable_external_access = false")

    def _insert(self, table: str, rows: pa.Table, columns: str) -> None:
        """Add rows to a table by way of a file: DuckDB's own way from Arrow imports pandas, 60 MB."""
        path = f"{self._scratch}/insert.parquet"
        pq.write_table(rows, path, compression="none", store_schema=False)
        self._base.execute(f"insert into {table} select {columns} from read_parquet(?)", [path])
        os.unlink(path)

    def count(self, chosen: Filter) -> int:
        where, values = chosen.where()
        return int(self._ask(f"select count(*) from rows where {where}", values)[0][0])

    def page(self, chosen: Filter, order: str, page: int) -> list[dict[str, Any]]:
        """The rows of a page, from page 0 on. `order` is one of `orders`."""
        where, values = chosen.where()
        by = ORDERS[order][0]
        # Only what is sorted by is sorted: with hashes and places a million rows would not fit into the memory.
        found = f"select index from rows where {where} order by {by} limit {PAGE} offset ?"
        query = f"select {self._columns} from rows where index in ({found}) order by {by}"
        return self._named(self._ask(query, [*values, page * PAGE]))

    def row(self, index: int) -> dict[str, Any] | None:
        """The row of an index; None if the dataset has no such image."""
        found = self._named(self._ask(f"select {self._columns} from rows where index = ?", [index]))
        return found[0] if found else None

    def neighbours(self, row: dict[str, Any], reach: int) -> list[dict[str, Any]]:
        """The rows around a row in its tar, itself included."""
        values = [row["shard"], row["index"] - reach, row["index"] + reach]
        query = f"select {self._columns} from rows where shard = ? and index between ? and ? order by index"
        return self._named(self._ask(query, values))

    def indices(self, chosen: Filter) -> np.ndarray:
        """The indices of all rows that a filter shows, ascending."""
        where, values = chosen.where()
        with self._cursor() as cursor:
            cursor.execute(f"select index from rows where {where} order by index", values)
            batches = iter(partial(cursor.fetchmany, 10_000), [])  # fetchnumpy() imports pandas
            return np.concatenate([np.empty(0, np.int64), *(np.array(batch, np.int64)[:, 0] for batch in batches)])

    def classes(self, chosen: Filter) -> list[tuple[int | None, int, int]]:
        """Each label with the number of rows that a filter shows, and of all."""
        where, values = chosen.where()
        query = f"select label, count(*) filter ({where}), count(*) from rows group by label order by label"
        return [(label, shown, total) for label, shown, total in self._ask(query, values)]

    @property
    def orders(self) -> dict[str, str]:
        """The orders that these rows can be shown in, with their descriptions."""
        left_out = "source" if self.synthetic else "score"
        return {name: words for name, (_, words) in ORDERS.items() if not name.startswith(left_out)}

    def _ask(self, query: str, values: list[Any]) -> list[tuple[Any, ...]]:
        with self._cursor() as cursor:
            return cursor.execute(query, values).fetchall()

    @contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor of its own for each question: a connection answers one at a time."""
        with self._lock:
            cursor = self._base.cursor()
        try:
            yield cursor
        finally:
            cursor.close()

    def _named(self, found: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
        rows = [dict(zip(self._names, row, strict=True)) for row in found]
        for row in rows:
            row["key"] = f"{row['index']:012d}"
        return rows


def _read(folder: Folder, index: Index, record: ShardRecord) -> Part:
    """A part as it was sealed, whose rows are those of its shard and lie in its tar."""
    part = reader.read_sealed_part(folder, record)
    where = f"{folder}/{record.part}"
    reader.check_rows(index.identity, part, record.shard, where)
    table = part.table
    if pc.min(table["offset"]).as_py() < 0 or pc.min(table["size"]).as_py() < 0:
        raise CorruptError(f"{where}: a row lies before the beginning of its tar")
    if pc.max(pc.add(table["offset"], table["size"])).as_py() > record.bytes:
        raise CorruptError(f"{where}: a row lies behind the end of its tar")
    return part
