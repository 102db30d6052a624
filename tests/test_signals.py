"""Ctrl-C and SIGTERM, to real commands at any moment: one line, the status of the signal, and nothing left behind."""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.processes import Run, until, workers

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
BOTH = pytest.mark.parametrize("how", list(STATUS), ids=lambda how: how.name)


def _stop(run: Run, how: signal.Signals) -> str:
    """Send a signal, as a terminal does (to all of the group) or as Kubernetes does (to the command); the last line."""
    if how == signal.SIGINT:
        os.killpg(run.process.pid, how)
    else:
        run.process.send_signal(how)
    run.wait(STATUS[how], within_s=60)
    log = run.log()
    assert "Traceback" not in log
    assert "Exception" not in log
    return log.splitlines()[-1]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The commands' TMPDIR. Ray keeps its own: the paths of its sockets must be short."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setenv("TMPDIR", str(place))
    return place


def _takes_signals(run: Run) -> bool:
    [line] = [line for line in Path(f"/proc/{run.process.pid}/status").read_text().splitlines() if "SigCgt" in line]
    return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@BOTH
@pytest.mark.parametrize("command", ["train", "explore"])
def test_a_command_that_is_still_importing(command: str, how: signal.Signals, tmp_path: Path) -> None:
    run = Run(command, tmp_path / "log", "--data", tmp_path / "none")
    until(lambda: _takes_signals(run), "it has come to its first import", within_s=30)
    assert _stop(run, how) == f"{command}: stopped before it began"


def test_a_command_is_stopped_while_ray_starts_then_in_its_work_and_goes_on(tmp_path: Path, scratch: Path) -> None:
    def ingest(log: str) -> Run:
        flags = ("--source", "digits", "--output", output, "--shard-size", 10, "--workers", 1)
        return Run("ingest", tmp_path / log, *flags)

    output = tmp_path / "real"
    goes_on = "ingest: stopped; the same command goes on from here"
    run = ingest("starting.txt")
    until(lambda: "images (images)" in run.log() or "shards" in run.log(), "Ray is about to start")
    assert _stop(run, signal.SIGTERM) == goes_on
    assert list(scratch.iterdir()) == []

    run = ingest("working.txt")
    until(lambda: len(list(output.glob("manifest/*.parquet"))) > 2, "it has written some shards")
    assert _stop(run, signal.SIGINT) == goes_on
    assert list(scratch.iterdir()) == []
    assert not (output / "index.json").exists()

    run = ingest("again.txt")
    run.wait()
    assert "going on: " in run.log()

    run = Run("verify", tmp_path / "verify.txt", "--dataset", output, "--workers", 1)
    until(lambda: bool(workers(psutil.Process(run.process.pid), "MapWorker")), "it is at work")
    assert _stop(run, signal.SIGTERM) == "verify: stopped; the same command starts anew"
