"""jobs/browse.py in Chromium: a hostile dataset's pages make no error, ask nobody else, and are there for everybody."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests import chromium
from tests.jobs.browsing.conftest import TOKEN, Site

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def looks(site: Site, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What was seen. With SCREENSHOTS=FOLDER the screenshots stay there."""
    here = f"http://127.0.0.1:{site.port}"
    pages = {"browse": f"{here}/?order=index&token={TOKEN}", "image": f"{here}/image/000000000003?token={TOKEN}"}
    return chromium.look(pages, Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots")))


def test_no_error_no_other_server_and_every_picture(looks: list[dict[str, Any]], site: Site) -> None:
    assert len(looks) == 8
    for look in looks:
        assert look["console"] == []
        assert {request.split("/")[2] for request in look["requests"]} == {f"127.0.0.1:{site.port}"}
        assert look["pictures"]["count"] >= 10
        assert look["pictures"]["broken"] == 0


def test_it_fits_its_width(looks: list[dict[str, Any]]) -> None:
    assert {look["overflow"] for look in looks} == {0}


def test_axe_finds_nothing_serious(looks: list[dict[str, Any]]) -> None:
    for look in looks:
        assert [one for one in look["violations"] if one["impact"] in ("serious", "critical")] == []
