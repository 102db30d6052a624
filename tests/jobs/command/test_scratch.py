"""Temporary folders: gone with their owner, or with the next one's start where that was killed."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from jobs.command.scratch import Scratch
from tests.conftest import ROOT

OWNER = "from jobs.command.scratch import Scratch; place = Scratch('test'); print(place.name, flush=True); input()"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # it remembers where
    return tmp_path


def _owner() -> tuple[subprocess.Popen[str], Path]:
    """Another process with a folder of two minutes' age, and a file in it."""
    command = [sys.executable, "-c", OWNER]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    assert name, "the other process has no folder"
    folder = Path(name)
    (folder / "file").write_text("something")
    os.utime(folder, (folder.stat().st_mtime - 120,) * 2)
    return process, folder


def _fail_inside(place: Path) -> None:
    with Scratch("test") as name:
        (Path(name) / "deep").mkdir()
        assert list(place.iterdir()) == [Path(name)]
        raise OSError("full")


def test_a_folder_is_gone_after_an_exception(place: Path) -> None:
    with pytest.raises(OSError, match="full"):
        _fail_inside(place)
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(place: Path) -> None:
    (living, held), (killed, left) = _owner(), _owner()
    killed.kill()
    killed.communicate()
    strange = place / "ganmill-scratch-link"
    strange.symlink_to(place)
    with Scratch("test"):
        assert held.exists()
        assert not left.exists()
        assert strange.is_symlink()
    living.communicate("\n")
    assert living.returncode == 0
    assert not held.exists()


def test_a_folder_that_was_made_a_moment_ago_is_let_be(place: Path) -> None:
    """Its owner may be about to lock it."""
    fresh = place / "ganmill-scratch-fresh"
    fresh.mkdir()
    with Scratch("test"):
        assert fresh.exists()
    os.utime(fresh, (fresh.stat().st_mtime - 120,) * 2)
    with Scratch("test"):
        assert not fresh.exists()
