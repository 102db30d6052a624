"""Filters and orders of rows.py, against a plain list of the same rows."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.browsing.rows import PAGE, Filter, Rows
from pipelines.dataset import reader
from tests.jobs.browsing.conftest import COUNT, make

CHOSEN = [*range(3, COUNT, 7)]


@pytest.fixture(scope="module", params=["generate", "ingest"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Rows, list[dict[str, Any]]]:
    place = tmp_path_factory.mktemp("rows")
    folder: Any = make(place / "d", request.param)
    index = reader.open_sealed(folder)
    plain = [row for record in index.shards for row in reader.read_sealed_part(folder, record).table.to_pylist()]
    return Rows(folder, index, str(place), np.array(CHOSEN)), plain


@given(
    label=st.none() | st.integers(0, 3),
    low=st.none() | st.floats(0, 1),
    high=st.none() | st.floats(0, 1),
    source=st.sampled_from(["", "odd", "even/1", "'", "%", "<"]),
    selected=st.booleans(),
    order=st.integers(0, 3),
)
def test_any_filter_in_any_order_shows_what_a_list_shows(
    both: tuple[Rows, list[dict[str, Any]]],
    label: int | None,
    low: float | None,
    high: float | None,
    source: str,
    selected: bool,
    order: int,
) -> None:
    rows, plain = both
    scored = rows.synthetic
    chosen = Filter(label=label, selected=selected, **({"low": low, "high": high} if scored else {"source": source}))
    fits = [row for row in plain if label is None or row["label"] == label]
    fits = [row for row in fits if not selected or row["index"] in CHOSEN]
    if scored:
        ends = [np.float32(0 if low is None else low), np.float32(1 if high is None else high)]
        fits = [row for row in fits if ends[0] <= np.float32(row["score"]) <= ends[1]]
    else:
        fits = [row for row in fits if source in row["source"]]
    assert rows.count(chosen) == len(fits)
    assert rows.indices(chosen).tolist() == [row["index"] for row in fits]
    assert {label: (taken, of) for label, taken, of in rows.classes(chosen)} == {
        label: (sum(row["label"] == label for row in fits), sum(row["label"] == label for row in plain))
        for label in range(3)
    }
    keys: dict[str, Any] = {
        "index": lambda row: row["index"],
        "index-down": lambda row: -row["index"],
        "score-down": lambda row: (-row["logit"], row["index"]),
        "score": lambda row: (row["logit"], row["index"]),
        "source": lambda row: (row["source"], row["index"]),
    }
    name = [*rows.orders][order % len(rows.orders)]
    pages = [rows.page(chosen, name, page) for page in range(-(-COUNT // PAGE) + 1)]
    assert [row for page in pages for row in page] == sorted(fits, key=keys[name])
    assert all(len(page) <= PAGE for page in pages)
