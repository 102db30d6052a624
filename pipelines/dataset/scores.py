"""Second scores: a column for all images of a sealed dataset, as one Parquet file beside it. No shard changes.

    key      as in the manifest, to join with it          index     int64: 0, 1, 2, ...
    logit2   float32                                      score2    float32: the sigmoid of logit2

The footer's `ganmill` names the dataset (by its root), and states by what and how the images were scored.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.dataset import manifest, schema
from pipelines.dataset.claim import canonical
from pipelines.dataset.schema import MAX_FOOTER_BYTES, MAX_SCORES_BYTES, MAX_SELECTED
from pipelines.dataset.selection import KEY_DIGITS, ROWS_A_GROUP, keys, open_keyed, split
from pipelines.errors import DatasetError
from pipelines.storage.folder import MissingError, TooLargeError

COLUMNS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("logit2", pa.float32(), nullable=False),
        pa.field("score2", pa.float32(), nullable=False),
    ]
)
_FORMAT = 1


class ScoresError(DatasetError):
    """Scores that are missing, damaged, or of another dataset. The text says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The footer of a file of scores. All values are plain JSON."""

    dataset: str  # the root of the dataset
    images: int  # of the dataset
    protocol: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SecondScores:
    """A file of scores that was read."""

    facts: Facts
    digest: str  # sha256 of the file, as `sha256sum` prints it
    logit_N: np.ndarray  # float32, of the images in order


def encode(facts: Facts, logit_N: np.ndarray) -> bytes:
    """The file. The same logits give the same bytes under one version of pyarrow.

    Args: logit_N: float32, finite, of all images of the dataset in order.
    """
    assert len(logit_N) == facts.images
    assert np.isfinite(logit_N).all()
    sink = io.BytesIO()
    # As in a selection: keys are PLAIN, so that they can be read as a dictionary.
    encodings = {"key": "PLAIN", "index": "DELTA_BINARY_PACKED", "logit2": "PLAIN", "score2": "PLAIN"}
    options = {"compression": "zstd", "use_dictionary": False, "column_encoding": encodings}
    with pq.ParquetWriter(sink, COLUMNS, store_schema=False, **options) as writer:
        for start in range(0, len(logit_N), ROWS_A_GROUP):
            logit = logit_N[start : start + ROWS_A_GROUP].astype(np.float32)
            index = pa.array(np.arange(start, start + len(logit)))
            columns = [keys(index), index, pa.array(logit), pa.array(manifest.sigmoid(logit))]
            writer.write_table(pa.table(columns, COLUMNS), row_group_size=ROWS_A_GROUP)
        writer.add_key_value_metadata({manifest.FOOTER: canonical({"format": _FORMAT, **asdict(facts)})})
    return sink.getvalue()


def decode(data: bytes, where: str) -> SecondScores:
    """Read a file of scores. `where` is its URL, for errors.

    The file may be hostile: metadata that describes other types is refused, and memory is bounded by the limits in
    schema.py and a row group. Raises ScoresError for any other file.
    """
    try:
        meta, footer = manifest.read_footer(data)
        facts = _facts(footer, meta.num_rows)
        logit_N = _read_rows(data, meta)
    except (pa.ArrowException, OSError, KeyError, RecursionError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())  # Arrow's texts have several lines
        raise ScoresError(f"{where}: not a file of scores, or damaged: {why}; make it with jobs/score.py") from error
    return SecondScores(facts, hashlib.sha256(data).hexdigest(), logit_N)


def read(url: str, root: str) -> SecondScores:
    """The scores at a URL, of the dataset with this root. Raises ScoresError if there are none, or of another one."""
    parent, name = split(url)
    try:
        found = decode(parent.read(name, MAX_SCORES_BYTES), url)
    except (MissingError, TooLargeError) as error:
        raise ScoresError(f"{error}; make scores with jobs/score.py") from error
    if found.facts.dataset != root:
        raise ScoresError(
            f"{url}: made of the dataset with root {found.facts.dataset[:12]}, but this one has {root[:12]}; give that "
            "dataset, or make other scores with jobs/score.py"
        )
    return found


def _facts(footer: bytes, rows: int) -> Facts:
    if len(footer) > MAX_FOOTER_BYTES:
        raise ValueError(f"its footer has {len(footer):,} bytes")
    fields = json.loads(footer)
    schema.check_scores(fields)
    if fields.pop("format") != _FORMAT or fields["images"] != rows or rows > MAX_SELECTED:
        raise ValueError(f"its footer does not match its {rows:,} rows")
    return Facts(**fields)


def _read_rows(data: bytes, meta: pq.FileMetaData) -> np.ndarray:
    """logit_N."""
    file = open_keyed(data, meta, COLUMNS)
    logits, start = [np.zeros(0, np.float32)], 0
    for group in range(meta.num_row_groups):
        batch = file.read_row_group(group, use_threads=False).combine_chunks()
        if not batch.num_rows:
            continue
        index = pa.array(np.arange(start, start + batch.num_rows))
        longest = pc.max(pc.binary_length(batch["key"].chunk(0).dictionary)).as_py() or 0
        if longest != KEY_DIGITS or not batch["key"].chunk(0).cast(pa.string()).equals(keys(index)):
            raise ValueError(f"keys from {start} on are not those of consecutive indices")
        if not batch["index"].chunk(0).equals(index):
            raise ValueError(f"its indices from {start} on are not consecutive")
        logit, score = (batch[name].to_numpy() for name in ("logit2", "score2"))
        manifest.check_scores(logit, score)
        logits.append(logit)
        start += batch.num_rows
    return np.concatenate(logits)
