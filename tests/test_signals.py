"""Ctrl-C and SIGTERM, to real commands at any moment: one line, the status of the signal, and nothing left behind."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.processes import Run, until

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
