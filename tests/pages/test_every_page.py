"""What holds for every page, and for the engine that makes them."""

import base64
import hashlib
import math
from pathlib import Path

import jinja2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import images
from pipelines.pages import engine, figures
from tests.pages import parsed


def test_pages_need_nothing_beside_them_and_can_be_read_by_everyone(pages: dict[str, Path]) -> None:
    for page in pages.values():
        parsed.check(page.read_bytes())


def test_only_the_pages_own_script_runs(pages: dict[str, Path]) -> None:
    """The policy names the hash of the bytes between the tags, as a browser takes it."""
    for page in pages.values():
        source = page.read_bytes()
        script = source.split(b"<script>")[1].split(b"</script>")[0]
        digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
        assert f"script-src &#39;sha256-{digest}&#39;".encode() in source


@given(st.text(max_size=60))
def test_a_fact_is_text_whatever_it_holds(text: str) -> None:
    hostile = f"</title><script>alert(1)</script><img src=http://x onerror=alert(1)>{text}"
    facts = {
        "run": hostile,
        "sentence": hostile,
        "going": False,
        "verdict": {"grade": hostile, "title": "", "words": ""},
    }
    rest = {"state": "", "real": "", "conditional": False, "grids": [], "thinned": 0, "charts": [], "best": None}
    table = {"title": hostile, "columns": [(hostile, False)], "rows": [[hostile]]}
    page = engine.render("run.html", **facts, **rest, warnings=[], table=table, settings=[], data_root=hostile)
    parsed.check(page)


def test_a_missing_fact_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="sentence"):
        engine.render("run.html", run="x")


@given(
    st.lists(st.floats(-1e9, 1e9) | st.just(math.nan), min_size=1, max_size=40).filter(lambda all: all[0] == all[0]),
    st.booleans(),
)
def test_figures_are_drawn_of_any_numbers_and_equal_ones_are_equal(values: list[float], log: bool) -> None:
    """A value that is not finite, as runs of an earlier version have, is left out."""
    y_N = [abs(value) + 1e-9 for value in values] if log else values
    x_N = [*range(1, len(y_N) + 1)]
    first, second = (figures.lines("t", "w", "x", x_N, {"a": y_N, "b": y_N}, log=log, mark=(1, y_N[0])) for _ in "12")
    assert first == second
    assert str(first.svg).startswith("<svg")
    for word in ("<script", "<style", "pygal.org", ' id="', "nan", "inf "):
        assert word not in first.svg


def test_a_long_line_is_thinned_and_keeps_its_ends() -> None:
    x_N = [*range(10_000)]
    chart = figures.lines("t", "w", "x", x_N, {"a": x_N})
    assert len(chart.svg) < 40 * figures.MAX_POINTS
    [path] = [piece for piece in chart.svg.split("<path") if "reactive" in piece]
    points = path.split('"')[1].replace("M", "").replace("L", "").split()
    assert figures.MAX_POINTS / 2 < len(points) / 2 <= figures.MAX_POINTS + 1
    assert float(points[0]) < float(points[-2])


def test_a_histogram_is_in_shares_of_each_set() -> None:
    edges = np.linspace(0, 1, 5).tolist()
    one, many = (figures.histograms("t", "w", "x", edges, {"a": [n, 2 * n, n, 0]}) for n in (1, 1000))
    assert one == many


def test_numbers_and_pictures() -> None:
    assert engine.number(None) == "-"
    assert engine.number(0.012345) == "0.01235"
    for kind in ("png", "jpeg", "webp"):
        data = images.encode(np.zeros((4, 4, 3), np.uint8), kind)
        assert engine.data_url(data).startswith(f"data:image/{kind};base64,")
