"""Selections: a subset of the samples of a sealed dataset, as one small Parquet file. No shard changes.

    key      as in the manifest, to join with it          index     int64, ascending
    weight   float32: how often the sample occurs in an epoch, a whole number; jobs/curate.py writes 1

The footer's `ganmill` names the dataset (by its root), the rule and the outcome. `narrow` applies a selection to a
dataset: it gives an index whose shards hold only the selected samples. All other code reads it like any index.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.dataset import manifest, schema
from pipelines.dataset.claim import canonical
from pipelines.dataset.layout import Index
from pipelines.dataset.reader import open_sealed
from pipelines.dataset.schema import MAX_FOOTER_BYTES, MAX_SELECTED, MAX_SELECTION_BYTES
from pipelines.errors import DatasetError
from pipelines.storage.folder import Folder, MissingError, TooLargeError

COLUMNS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
    ]
)
_FORMAT = 1
ROWS_A_GROUP = 1 << 16  # a reader holds a group's keys twice
KEY_DIGITS = 12


class SelectionError(DatasetError):
    """A selection that is missing, damaged, or of another dataset. The text says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The footer of a selection. All values are plain JSON."""

    dataset: str  # the root of the dataset
    rule: str
    parameters: Mapping[str, str | int | float | None]
    images: int  # of the dataset
    classes: Sequence[Mapping[str, int | None]]  # {"label", "taken", "of"}; one with label None without classes
    report: Mapping[str, Any] = field(default_factory=dict)  # further findings of the rule


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection that was read. N samples, each repeated by its weight."""

    facts: Facts
    digest: str  # sha256 of the file, as `sha256sum` prints it
    index_N: np.ndarray  # int64, ascending

    def protocol(self) -> dict[str, Any]:
        """The entry for this selection in a protocol."""
        facts = self.facts
        return {**facts.parameters, "digest": self.digest, "rule": facts.rule, "of": facts.images}


def encode(facts: Facts, index_N: np.ndarray, weight_N: np.ndarray | None = None) -> bytes:
    """The file. The same selection gives the same bytes under one version of pyarrow.

    Args:   index_N: ascending and distinct. weight_N: whole numbers; None for all 1.
    """
    assert 0 < len(index_N) <= MAX_SELECTED
    footer = canonical({"format": _FORMAT, "selected": len(index_N), **asdict(facts)})
    weight_N = np.ones(len(index_N), np.float32) if weight_N is None else weight_N.astype(np.float32)
    sink = io.BytesIO()
    # Keys are PLAIN: with a delta encoding they could not be read as a dictionary, see _read_rows.
    encodings = {"key": "PLAIN", "index": "DELTA_BINARY_PACKED"}
    options = {"compression": "zstd", "use_dictionary": ["weight"], "column_encoding": encodings}
    with pq.ParquetWriter(sink, COLUMNS, store_schema=False, **options) as writer:
        for start in range(0, len(index_N), ROWS_A_GROUP):
            index, weight = (pa.array(column[start : start + ROWS_A_GROUP]) for column in (index_N, weight_N))
            writer.write_table(pa.table([keys(index), index, weight], COLUMNS), row_group_size=ROWS_A_GROUP)
        writer.add_key_value_metadata({manifest.FOOTER: footer})
    return sink.getvalue()


def decode(data: bytes, where: str) -> Selection:
    """Read a selection. `where` is its URL, for errors.

    The file may be hostile: metadata that describes other types is refused, and memory is bounded by the limits in
    schema.py and a page. Raises SelectionError for any other file.
    """
    try:
        meta, footer = manifest.read_footer(data)
        facts = _facts(footer, meta.num_rows)
        index_N = _read_rows(data, meta)
    except (pa.ArrowException, OSError, KeyError, RecursionError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())  # Arrow's texts have several lines
        raise SelectionError(f"{where}: not a selection, or damaged: {why}; make it with jobs/curate.py") from error
    return Selection(facts, hashlib.sha256(data).hexdigest(), index_N)


def read(url: str) -> Selection:
    """The selection at a URL. Raises SelectionError if there is none."""
    parent, name = split(url)
    try:
        return decode(parent.read(name, MAX_SELECTION_BYTES), url)
    except (MissingError, TooLargeError) as error:
        raise SelectionError(f"{error}; make a selection with jobs/curate.py") from error


def split(url: str) -> tuple[Folder, str]:
    """A file's folder and name."""
    parent, _, name = url.rpartition("/")
    return Folder(parent or "/"), name


def narrow(index: Index, selection: Selection, where: str) -> Index:
    """Apply a selection to a dataset. `where` is the selection's URL, for errors.

    Root and identity stay the dataset's; each shard counts its selected samples. Raises SelectionError for a selection
    of another dataset, or of samples that the dataset cannot have.
    """
    if selection.facts.dataset != index.root:
        raise SelectionError(
            f"{where}: made of the dataset with root {selection.facts.dataset[:12]}, but this one has "
            f"{index.root[:12]}; give that dataset, or make another selection with jobs/curate.py"
        )
    if selection.index_N[-1] >= index.identity.count:
        raise SelectionError(f"{where}: names index {selection.index_N[-1]}, the dataset has {index.identity.count:,}")
    return restrict(index, selection.index_N)


def restrict(index: Index, index_N: np.ndarray) -> Index:
    """A dataset whose shards hold only the samples of these indices, ascending, each as often as it occurs there."""
    bounds = np.arange(len(index.shards) + 1) * index.identity.shard_size
    chosen = np.diff(np.searchsorted(index_N, bounds)).tolist()
    shards = tuple(replace(record, samples=n) for record, n in zip(index.shards, chosen, strict=True))
    return replace(index, shards=shards, chosen_N=index_N)


def open_through(folder: Folder, url: str | None) -> Index:
    """A sealed dataset, narrowed by the selection at `url` if there is one. Raises as open_sealed and narrow."""
    index = open_sealed(folder)
    return index if url is None else narrow(index, read(url), url)


def keys(index: pa.Array) -> pa.Array:
    """The keys of indices: twelve digits."""
    return pc.utf8_lpad(pc.cast(index, pa.string()), KEY_DIGITS, "0")


def open_keyed(data: bytes, meta: pq.FileMetaData, columns: pa.Schema) -> pq.ParquetFile:
    """A file of keys and other columns, to be read by row groups. Raises ValueError for other columns or large groups.

    Keys are read as dictionaries: a long key in every row is held once.
    """
    found = meta.schema.to_arrow_schema()
    if not found.equals(columns):
        raise ValueError(f"its columns are {', '.join(str(one) for one in found)[:200]}")
    if any(meta.row_group(group).num_rows > ROWS_A_GROUP for group in range(meta.num_row_groups)):
        raise ValueError(f"a row group of more than {ROWS_A_GROUP:,} rows")
    return pq.ParquetFile(io.BytesIO(data), metadata=meta, read_dictionary=["key"])


def _facts(footer: bytes, rows: int) -> Facts:
    """The footer's content. Raises ValueError for a wrong footer."""
    if len(footer) > MAX_FOOTER_BYTES or footer.count(b"{") + footer.count(b"[") > 2 * 100_000 + 1000:
        raise ValueError(f"its footer has {len(footer):,} bytes, or more entries than classes")
    fields = json.loads(footer)
    schema.check_selection(fields)
    if fields.pop("format") != _FORMAT or fields.pop("selected") != rows:
        raise ValueError(f"its footer does not match its {rows:,} rows")
    return Facts(**fields)


def _read_rows(data: bytes, meta: pq.FileMetaData) -> np.ndarray:
    """index_N, each repeated by its weight."""
    file = open_keyed(data, meta, COLUMNS)
    chunks, last, total = [], -1, 0
    for group in range(meta.num_row_groups):
        batch = file.read_row_group(group, use_threads=False).combine_chunks()
        index_N, weight_N = (batch[name].to_numpy() for name in ("index", "weight"))
        if not len(index_N):
            continue
        if index_N[0] <= last or np.any(np.diff(index_N) <= 0):
            raise ValueError("its indices are not ascending")
        if (pc.max(pc.binary_length(batch["key"].chunk(0).dictionary)).as_py() or 0) != KEY_DIGITS or not pc.all(
            pc.equal(batch["key"].cast(pa.string()), keys(batch["index"]))
        ).as_py():
            raise ValueError(f"keys between {last + 1} and {index_N[-1]} are not those of their indices")
        if not np.all((weight_N >= 1) & (weight_N <= MAX_SELECTED) & (weight_N == np.floor(weight_N))):
            raise ValueError("a weight must be a whole number from 1 on: how often the sample occurs in an epoch")
        total += int(weight_N.sum(dtype=np.float64))
        if total > MAX_SELECTED:
            raise ValueError(f"its weights add up to more than {MAX_SELECTED:,}")
        last = int(index_N[-1])
        chunks.append(index_N if np.all(weight_N == 1) else np.repeat(index_N, weight_N.astype(np.int64)))
    if not chunks:
        raise ValueError("it has no rows")
    return np.concatenate(chunks)
