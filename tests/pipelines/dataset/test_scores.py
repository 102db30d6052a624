"""Files of second scores: what is written is read back and joined by others, and nothing else is read as one."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.dataset import manifest, scores
from pipelines.dataset.scores import Facts, ScoresError
from pipelines.dataset.selection import ROWS_A_GROUP

ROOT = "ab" * 32


def encoded(logits: list[float]) -> bytes:
    facts = Facts(dataset=ROOT, images=len(logits), protocol={"seed": 3})
    return scores.encode(facts, np.array(logits, np.float32))


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50))
def test_what_is_written_is_read_back(logits: list[float]) -> None:
    data = encoded(logits)
    read = scores.decode(data, "x")
    assert read.logit_N.tolist() == logits
    assert (read.logit_N.dtype, read.digest) == (np.float32, hashlib.sha256(data).hexdigest())
    assert (read.facts.dataset, read.facts.images, read.facts.protocol) == (ROOT, len(logits), {"seed": 3})
    assert encoded(logits) == data


def test_more_rows_than_a_group_holds() -> None:
    logits = np.linspace(-3, 3, 2 * ROWS_A_GROUP + 5).astype(np.float32)
    data = encoded(logits.tolist())
    assert pq.read_metadata(io.BytesIO(data)).num_row_groups == 3
    assert np.array_equal(scores.decode(data, "x").logit_N, logits)


def test_others_join_it_by_key(tmp_path: Path) -> None:
    (tmp_path / "s.parquet").write_bytes(encoded([0.0, 1.0, -1.0]))
    rows = duckdb.sql(f"select * from '{tmp_path}/s.parquet' order by key").fetchall()
    assert [row[:3] for row in rows] == [("000000000000", 0, 0.0), ("000000000001", 1, 1.0), ("000000000002", 2, -1.0)]
    assert [row[3] for row in rows] == manifest.sigmoid(np.array([0.0, 1.0, -1.0], np.float32)).tolist()
    assert b"ARROW:schema" not in (tmp_path / "s.parquet").read_bytes()


def test_scores_of_another_dataset_are_refused(tmp_path: Path) -> None:
    (tmp_path / "s.parquet").write_bytes(encoded([0.0]))
    assert scores.read(str(tmp_path / "s.parquet"), ROOT).logit_N.tolist() == [0.0]
    with pytest.raises(ScoresError, match="made of the dataset with root abababababab, but this one has cdcdcdcdcdcd"):
        scores.read(str(tmp_path / "s.parquet"), "cd" * 32)
    with pytest.raises(ScoresError, match=r"not found; make scores with jobs/score\.py"):
        scores.read(str(tmp_path / "none.parquet"), ROOT)


def changed(column: str = "", values: list[Any] | None = None, **footer: Any) -> bytes:
    """A file of three scores with another column, or other facts in its footer."""
    good = io.BytesIO(encoded([0.0, 1.0, -1.0]))
    table, facts = pq.read_table(good), json.loads(pq.read_metadata(good).metadata[b"ganmill"])
    if values is not None:
        place = table.schema.get_field_index(column)
        table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, store_schema=False, use_dictionary=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({b"ganmill": json.dumps({**facts, **footer})})
    return sink.getvalue()


def test_the_file_of_the_test_below_is_refused_for_its_change_alone() -> None:
    assert scores.decode(changed(), "x").logit_N.tolist() == [0.0, 1.0, -1.0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PAR1",
        changed("key", ["000000000000", "000000000002", "000000000001"]),
        changed("key", ["000000000000", "000000000001", "2" * 13]),
        changed("index", [0, 2, 1]),
        changed("index", [1, 2, 3]),
        changed("logit2", [0.0, 1.0, float("nan")]),
        changed("score2", [0.5, 0.5, 0.5]),
        changed(images=4),
        changed(dataset="no root"),
        changed(format=2),
        changed(protocol=[]),
        changed(more=1),
        *(encoded([0.0, 1.0])[:size] for size in range(1, len(encoded([0.0, 1.0])), 101)),
    ],
)
def test_what_is_no_file_of_scores_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(ScoresError, match=r"^here: not a file of scores, or damaged: .*; make it with jobs/score\.py$"):
        scores.decode(data, "here")
