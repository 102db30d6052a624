"""Manifest parts: one Parquet file a shard, one row a sample, written after its tar: it marks the shard as done.

Types are plain: any Parquet reader opens them, and there is nothing to execute. Facts about the whole shard (size and
hash of the tar, rejected sources) are in the footer under the key `ganmill`, so that one atomic write finishes a shard.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.dataset.schema import MAX_PART_BYTES, MAX_SHARD_IMAGES
from pipelines.dataset.shards import Packed, key
from pipelines.errors import CorruptError

COLUMNS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),  # of the image's bytes in the tar
        pa.field("size", pa.int32(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),  # of the image's bytes
        pa.field("label", pa.int32()),  # null without classes
    ]
)
EXTRA = {  # the further columns of each producer
    "ingest": [pa.field("source", pa.string(), nullable=False)],
    "generate": [
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("logit", pa.float32(), nullable=False),  # the discriminator's raw output
        pa.field("score", pa.float32(), nullable=False),  # the sigmoid of the logit, or of the calibrated logit
    ],
}
_FIELDS = {producer: [*COLUMNS, *extra] for producer, extra in EXTRA.items()}
FOOTER = b"ganmill"
MAX_FACTOR = 1e9  # of a calibration: a product with a logit stays finite
MAX_TEXT_BYTES = 1 << 16  # of a source's name
_REJECTS = pa.schema([("index", pa.int64()), ("source", pa.string()), ("reason", pa.string())])


class PartError(CorruptError):
    """A manifest part with wrong content."""


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """The entry of one shard in the seal. Both files are named by the shard's number, in six digits or more."""

    shard: int
    samples: int
    bytes: int
    sha256: str  # of the tar
    part_bytes: int
    part_sha256: str

    @property
    def tar(self) -> str:
        return tar_name(self.shard)

    @property
    def part(self) -> str:
        return part_name(self.shard)


@dataclass(frozen=True, slots=True)
class Reject:
    """A source image that was rejected: its index stays empty."""

    index: int
    source: str
    reason: str


class Calibration(NamedTuple):
    """Calibrated logit = slope * logit + intercept. Without a calibration a logit is its own."""

    slope: float = 1.0
    intercept: float = 0.0


NONE = Calibration()


@dataclass(frozen=True, slots=True)
class Part:
    """A part that was read: its rows, and the facts in its footer."""

    table: pa.Table
    shard: int
    tar_bytes: int
    tar_sha256: str
    rejects: tuple[Reject, ...]
    calibration: Calibration


def sigmoid(logits_N: np.ndarray, calibration: Calibration = NONE) -> np.ndarray:
    """The score of each logit, the sigmoid of the calibrated one: computed in float64, rounded to float32."""
    from scipy.special import expit  # takes a quarter of a second to import

    calibrated_N = calibration.slope * logits_N.astype(np.float64) + calibration.intercept
    scores: np.ndarray = expit(calibrated_N).astype(np.float32)
    return scores


def check_scores(logits_N: np.ndarray, scores_N: np.ndarray, calibration: Calibration = NONE) -> None:
    """Raises ValueError naming the row whose logit is not finite, or whose score is not its sigmoid.

    A score may differ in its last bit: libraries round an exponential differently.
    """
    exact_N = sigmoid(logits_N, calibration)
    far_N = (scores_N < np.nextafter(exact_N, np.float32(-1))) | (scores_N > np.nextafter(exact_N, np.float32(2)))
    bad_N = np.flatnonzero(~np.isfinite(logits_N) | ~np.isfinite(scores_N) | far_N)
    if len(bad_N):
        row, many = int(bad_N[0]), len(bad_N)
        raise ValueError(
            f"row {row}: logit {logits_N[row]:.6g} and score {scores_N[row]:.6g}, which must be its sigmoid and finite "
            f"({many:,} such rows)"
        )


def tar_name(shard: int) -> str:
    return f"shards/{shard:06d}.tar"


def part_name(shard: int) -> str:
    return f"manifest/{shard:06d}.parquet"


def columns(producer: str) -> list[str]:
    """The names of a part's columns, in order."""
    return [field.name for field in _FIELDS[producer]]


def encode(
    producer: str,
    shard: int,
    packed: Packed,
    extra: Mapping[str, Sequence[Any]],
    rejects: Sequence[Reject] = (),
    calibration: Calibration = NONE,
) -> bytes:
    """The part of a packed shard. `extra` holds the producer's own columns (EXTRA), one value a sample.

    The footer holds the calibration of the scores, if there is one. The same rows give the same bytes under one version
    of pyarrow.

    Raises: ValueError for a logit that is not finite, or a score that is not its sigmoid.
    """
    if "logit" in extra:
        logit_N, score_N = (np.asarray(extra[name], np.float32) for name in ("logit", "score"))
        check_scores(logit_N, score_N, calibration)
    footer: dict[str, Any] = {
        "shard": shard,
        "tar_bytes": len(packed.data),
        "tar_sha256": hashlib.sha256(packed.data).hexdigest(),
        "rejects": [asdict(reject) for reject in rejects],
    }
    if calibration != NONE:
        footer["calibration"] = calibration._asdict()
    fields = _FIELDS[producer]
    schema = pa.schema(fields)
    columns = {
        "key": [key(index) for index in packed.index],
        "index": packed.index,
        "shard": [shard] * len(packed.index),
        "offset": packed.offset,
        "size": packed.size,
        "sha256": packed.sha256,
        "label": packed.label,
        **extra,
    }
    sink = io.BytesIO()
    table = pa.table([pa.array(columns[field.name], field.type) for field in fields], schema=schema)
    with pq.ParquetWriter(sink, schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table, row_group_size=max(1, len(table)))
        writer.add_key_value_metadata({FOOTER: json.dumps(footer, sort_keys=True).encode()})
    return sink.getvalue()


def decode(data: bytes, where: str) -> Part:
    """Read a part. `where` is its URL, for errors.

    The file may be hostile: only our own columns are read, metadata that describes other types (`ARROW:schema`,
    `pandas`) is refused, and memory is limited to MAX_PART_BYTES and a page. Raises PartError for any other file.
    """
    try:
        meta, footer = read_footer(data)
        facts = _facts(json.loads(footer))
        if meta.num_rows > MAX_SHARD_IMAGES or meta.num_row_groups > 1:
            raise ValueError(
                f"{meta.num_rows:,} rows in {meta.num_row_groups:,} groups, not {MAX_SHARD_IMAGES:,} in one"
            )
        names = meta.schema.names
        fields = next((fields for fields in _FIELDS.values() if names == [field.name for field in fields]), None)
        if fields is None:
            raise ValueError(f"its columns are {', '.join(names)[:200]}")
        rows = _read_rows(data, meta, pa.schema(fields))
        if "logit" in rows.column_names:
            check_scores(_values(rows["logit"]), _values(rows["score"]), facts[-1])
        return Part(rows, *facts)
    except (pa.ArrowException, OSError, KeyError, RecursionError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())  # Arrow's texts have several lines
        raise PartError(f"{where}: not a manifest part: {why}") from error


def read_footer(data: bytes) -> tuple[pq.FileMetaData, bytes]:
    """The metadata of a Parquet file, and our entry in its footer. Raises ValueError for any other entry in the footer.

    Arrow's own exceptions and KeyError pass through.
    """
    # Arrow would build the types that this entry describes, with any code that is registered for them.
    if b"ARROW:schema" in data[-8 - int.from_bytes(data[-8:-4], "little") :] or not data.endswith(b"PAR1"):
        raise ValueError("its footer holds ARROW:schema, or there is none")
    meta = pq.read_metadata(io.BytesIO(data))
    unknown = sorted(name.decode(errors="replace") for name in {*(meta.metadata or {})} - {FOOTER})
    if unknown:
        raise ValueError(f"its footer holds {', '.join(unknown)[:100]}")
    footer: bytes = meta.metadata[FOOTER]
    return meta, footer


def _read_rows(data: bytes, meta: pq.FileMetaData, schema: pa.Schema) -> pa.Table:
    """The rows, in batches. Texts are read as dictionaries: one long text in every row is held in memory once."""
    texts = [field.name for field in schema if field.type == pa.string()]
    file = pq.ParquetFile(io.BytesIO(data), metadata=meta, read_dictionary=texts)
    batches, held = [], 0
    for batch in file.iter_batches(1024):
        longest = max(pc.max(pc.binary_length(batch[name].dictionary)).as_py() or 0 for name in texts)
        held += batch.nbytes
        if longest > MAX_TEXT_BYTES or held > MAX_PART_BYTES:
            raise ValueError(f"a text of {longest:,} bytes, and {held:,} bytes of rows; no part of ours has so many")
        batches.append(batch.cast(schema))
    return pa.Table.from_batches(batches, schema)


def _values(column: pa.ChunkedArray) -> np.ndarray:
    """A column without nulls. Arrow's to_numpy() imports pandas: half a second and 75 MB."""
    return np.concatenate([np.empty(0, column.type.to_pandas_dtype()), *map(np.from_dlpack, column.chunks)])


def _facts(footer: Any) -> tuple[int, int, str, tuple[Reject, ...], Calibration]:
    """The footer's shard, tar_bytes, tar_sha256, rejects and calibration. Raises TypeError, KeyError or ValueError."""
    rejects = tuple(Reject(**reject) for reject in footer["rejects"])
    shard, size, sha256 = footer["shard"], footer["tar_bytes"], footer["tar_sha256"]
    plain = (type(shard), type(size), type(sha256)) == (int, int, str) and all(
        (type(r.index), type(r.source), type(r.reason)) == (int, str, str) for r in rejects
    )
    if not plain:
        raise TypeError("the footer has other types")
    return shard, size, sha256, rejects, _calibration(footer)


def _calibration(footer: Mapping[str, Any]) -> Calibration:
    if "calibration" not in footer:
        return NONE
    found = Calibration(**footer["calibration"])
    if {*map(type, found)} != {float} or not (0 < found.slope <= MAX_FACTOR and abs(found.intercept) <= MAX_FACTOR):
        raise ValueError(f"its scores are calibrated by {found}")
    return found


def record(data: bytes, part: Part) -> ShardRecord:
    """The entry of a shard in the seal, from its part and the part's bytes."""
    return ShardRecord(
        shard=part.shard,
        samples=len(part.table),
        bytes=part.tar_bytes,
        sha256=part.tar_sha256,
        part_bytes=len(data),
        part_sha256=hashlib.sha256(data).hexdigest(),
    )


def encode_rejects(rejects: Sequence[Reject]) -> bytes:
    """`rejects.parquet`: every rejected source, and the reason."""
    sink = io.BytesIO()
    table = pa.Table.from_pylist([asdict(reject) for reject in rejects], schema=_REJECTS)
    pq.write_table(table, sink, compression="zstd", store_schema=False)
    return sink.getvalue()
