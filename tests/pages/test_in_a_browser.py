"""Every page in Chromium: wide and on a phone, light and dark, with the keyboard, and as a screen reader gets it."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests import chromium

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def looks(pages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What tests/browser/look.mjs saw. With SCREENSHOTS=FOLDER the screenshots stay there."""
    shots = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    return chromium.look({name: page.as_uri() for name, page in pages.items()}, shots)


def test_every_page_is_seen_in_every_view(looks: list[dict[str, Any]], pages: dict[str, Path]) -> None:
    assert {(look["page"], look["view"]) for look in looks} == {
        (name, view) for name in pages for view in ("desktop", "desktop-dark", "phone", "phone-dark")
    }


def test_no_error_no_request_and_every_picture(looks: list[dict[str, Any]], pages: dict[str, Path]) -> None:
    for look in looks:
        assert look["console"] == []
        assert look["requests"] == [pages[look["page"]].as_uri()]
        assert look["pictures"]["count"] > 0
        assert look["pictures"]["broken"] == 0


def test_it_fits_its_width_also_with_everything_folded_out(looks: list[dict[str, Any]]) -> None:
    for look in looks:
        assert (look["overflow"], look["overflowOpened"]) == (0, 0), (look["page"], look["view"])


def test_dark_is_dark(looks: list[dict[str, Any]]) -> None:
    for look in looks:
        red = int(look["background"].removeprefix("rgb(").split(",")[0])
        assert red < 64 if look["view"].endswith("-dark") else red > 192


def test_sliders_move_by_the_keyboard(looks: list[dict[str, Any]]) -> None:
    for look in looks:
        for slider in look["sliders"]:
            end, before, start = slider["states"]
            assert [state["value"] for state in slider["states"]] == [slider["frames"] - 1, slider["frames"] - 2, 0]
            assert all(state["visible"] == 1 and state["spoken"] == state["words"] for state in slider["states"])
            assert len({state["shown"] for state in (end, before, start)}) == 3
    assert any(look["sliders"] for look in looks)


def test_everything_folds_out_by_the_keyboard(looks: list[dict[str, Any]]) -> None:
    assert all(look["opened"] for look in looks)


def test_what_a_screen_reader_gets_has_names(looks: list[dict[str, Any]]) -> None:
    """In the accessibility tree a name follows its role in quotes."""
    for look in looks:
        lines = [line.strip().removeprefix("- ") for line in look["tree"].splitlines()]
        for role in ("img", "slider", "checkbox", "region", "heading"):
            for line in lines:
                if line == role or line.startswith((f"{role} ", f"{role}:")):
                    assert line.startswith(f'{role} "'), line
        assert any(line.startswith('img "') for line in lines)


def test_axe_finds_nothing_serious(looks: list[dict[str, Any]]) -> None:
    for look in looks:
        serious = [one for one in look["violations"] if one["impact"] in ("serious", "critical")]
        assert serious == [], (look["page"], look["view"])
