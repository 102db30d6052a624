"""The page of a training run."""

import base64
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.training import report, run_store
from jobs.training.report import MOST_GRIDS, Report
from pipelines import images
from tests.pages import parsed
from tests.pages.conftest import run_of, write_run_page


def test_it_says_what_it_is_and_how_it_goes(run_page: Path) -> None:
    page = parsed.check(run_page.read_bytes())
    assert "140,000 of 300,000 images seen (47%)" in page.words
    assert "It gets better" in page.words
    assert "Warning: the discriminator is too strong from 20,000 to 60,000 images" in page.words
    assert "No warnings" not in page.words
    [reload] = [element for element in page.all("input") if element.attributes["type"] == "checkbox"]
    assert reload.attributes["id"] == "watch"
    for setting in ("generator_lr", "0.0004", "of weights, order and latents"):
        assert setting in page.words


def test_its_slider_has_the_grids_pixel_by_pixel(run_page: Path) -> None:
    page = parsed.check(run_page.read_bytes())
    [slider] = [element for element in page.all("input") if element.attributes["type"] == "range"]
    frames = [element for element in page.elements if "data-frame" in element.attributes]
    assert (slider.attributes["min"], slider.attributes["max"]) == ("0", str(len(frames) - 1))
    assert [("hidden" in frame.attributes) for frame in frames] == [True] * 6 + [False]
    shown = [element for element in page.all("img") if "Synthetic" in (element.attributes["alt"] or "")]
    for picture, frame in zip(shown, sorted((run_page.parent / "grids").iterdir()), strict=True):
        there = images.decode(base64.b64decode((picture.attributes["src"] or "").split(",")[1]), 1)
        assert np.array_equal(there.repeat(2, 0).repeat(2, 1), images.decode(frame.read_bytes(), 1))


def test_a_finished_run_without_warnings(tmp_path: Path) -> None:
    page = parsed.check(write_run_page(run_of(tmp_path / "run", 3), 60_000).read_bytes())
    assert "Finished" in page.words
    assert "No warnings" in page.words
    assert [element for element in page.all("input") if element.attributes["type"] == "checkbox"] == []


def test_a_run_that_no_longer_gets_better(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 7)
    ticks, best = run_store.read_progress(run)
    assert best is not None
    early = {**best, "images": 20_000, "value": 0.001, "model": f"models/{20_000:012d}"}
    assert b"It no longer gets better" in Report(run, 140_000).render(ticks, early)


@pytest.mark.parametrize(("size", "kind"), [(28, "png"), (64, "webp")])
def test_large_grids_are_stored_small(tmp_path: Path, size: int, kind: str) -> None:
    page = parsed.check(write_run_page(run_of(tmp_path / "run", 2, size=size, channels=3), 40_000).read_bytes())
    assert {(element.attributes["src"] or "")[:15] for element in page.all("img")} == {f"data:image/{kind};"[:15]}


def test_equal_runs_have_equal_pages_whether_written_in_one_go_or_tick_by_tick(tmp_path: Path) -> None:
    """A picture that the page held before is not read again: the grids may be gone meanwhile."""
    run = run_of(tmp_path / "run", 30)
    ticks, best = run_store.read_progress(run)
    page = Report(run, 600_000)
    for number in range(1, 31):
        step_by_step = page.render(ticks[:number], {**(best or {}), "images": ticks[number - 1]["images"]})
    assert step_by_step == Report(run, 600_000).render(ticks, best)


def test_a_page_is_skipped_while_it_costs_too_much(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 3)
    ticks, _ = run_store.read_progress(run)
    page = Report(run, 60_000)
    page.tick(ticks[:1])
    first = run.read(report.REPORT)
    page.tick(ticks)  # at once: its cost would be most of the time since
    assert run.read(report.REPORT) == first


@given(st.integers(1, 3000), st.integers(1, 50), st.data())
def test_thinned_ticks_are_few_and_were_all_shown_before(count: int, most: int, data: st.DataObject) -> None:
    ticks = [{"images": number} for number in range(1, count + 1)]
    kept = {data.draw(st.integers(1, count))}
    now = [tick["images"] for tick in report._thinned(ticks, most, kept)]
    assert now == sorted({*now})
    assert {count} | kept <= {*now}
    assert len(now) <= most + 2
    assert len(now) >= min(count, most // 2)
    before = {tick["images"] for tick in report._thinned(ticks[:-1], most, kept)}
    assert {*now} - before <= {count} | kept


def test_a_grid_that_someone_deleted_is_left_out(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 3)
    run.delete("grids/000000040000.png")
    run.delete("reals.png")
    page = parsed.check(write_run_page(run, 60_000).read_bytes())
    assert len([element for element in page.elements if "data-frame" in element.attributes]) == 2


def test_a_long_runs_page_holds_few_pictures(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 50)
    page = parsed.check(write_run_page(run, 1_000_000).read_bytes())
    assert len(page.all("img")) <= MOST_GRIDS + 3
