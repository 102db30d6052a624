"""Ctrl-C and SIGTERM, to real commands at any moment: one line, the status of the signal, and nothing left behind."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray

from tests.processes import Run, until, workers

pytestmark = pytest.mark.slow

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
BOTH = pytest.mark.parametrize("how", list(STATUS), ids=lambda how: how.name)


def _stop(run: Run, how: signal.Signals) -> str:
    """Send a signal, as a terminal does (to all of the group) or as Kubernetes does (to the command; a wrapper sends
    it again). Returns the last line."""
    if how == signal.SIGINT:
        os.killpg(run.process.pid, how)
    else:
        run.process.send_signal(how)
        time.sleep(0.05)
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
    # Its settings take a quarter of a second to import; then it has begun, and imports torch and Ray for three.
    goes_on = "goes on from here" if command == "train" else "starts anew"
    assert _stop(run, how) in (f"{command}: stopped before it began", f"{command}: stopped; the same command {goes_on}")


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
    until(lambda: bool(workers(psutil.Process(run.process.pid), "ShardRunner")), "it is at work")
    assert _stop(run, signal.SIGTERM) == "verify: stopped; the same command starts anew"


def _left_of(run: Run) -> list[str]:
    """The processes of a command's session that still live: Ray, which it started, and Ray's workers."""
    names = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == run.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                names.append(process.name())
    return names


def test_training_that_is_told_to_end_says_so_leaves_nothing_and_goes_on(
    digits: Path, tmp_path: Path, scratch: Path
) -> None:
    """Ray Train runs beside the main thread, which has the signals."""
    ray.shutdown()  # the session's own
    place = tmp_path / "run"

    def train(log: str) -> Run:
        shape = ("--width", 8, "--batch-size", 16, "--shuffle", 64, "--metric-images", 100, "--workers", 1)
        return Run("train", tmp_path / log, "--data", digits, "--run", place, *shape, "--images", 1280, "--tick", 128)

    run = train("told.txt")
    try:
        until(lambda: bool(list(place.glob("checkpoints/*/checkpoint.json"))), "it trains", within_s=200)
        assert {"raylet", "gcs_server"} <= {*_left_of(run)}
        assert _stop(run, signal.SIGTERM) == "train: stopped; the same command goes on from here"
        until(lambda: not _left_of(run), "all that it started has ended", within_s=30)
    finally:
        run.end()
    # Its worker was killed with all of Ray, and could not tidy up: the next start does, once the folder is not new.
    left = list(scratch.glob("ganmill-*"))
    assert all(name.name.startswith("ganmill-scratch-tensorboard-") for name in left)
    for folder in left:
        os.utime(folder, (folder.stat().st_mtime - 120,) * 2)

    run = train("again.txt")
    try:
        run.wait()
        assert list(scratch.glob("ganmill-*")) == []
        assert "; going on after " in run.log()
        assert f"train: {place}: best model " in run.log()
    finally:
        run.end()
