"""The entry of a command: load the settings, print them, call main, and turn errors into one line and a status."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from jobs.command import signals
from jobs.command.errors import FAILURES, USER_ERRORS
from jobs.command.settings import S, load


def run(main: Callable[[S], None], settings: type[S]) -> None:
    """Run a command. A user's mistake is one line and status 2; lost work is one line and status 1."""
    signals.begin()
    # Read when torch is imported, here or in a worker of a Ray that starts here. By default a thread that waits for
    # another one spins: on a busy machine it takes the CPU of the one that it waits for (docs/experiments/startup.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    then = "goes on from here" if settings.resumable else "starts anew"
    try:
        try:
            loaded = load(settings, sys.argv[1:])
            values = ", ".join(f"{name}={value}" for name, value in loaded.describe().items())
            print(f"ganmill {settings.command}: {values}", flush=True)
            main(loaded)
        except BaseException as error:  # a signal may have become any error by now
            signals.leave_if_given(error, f"{settings.command}: stopped; the same command {then}")
            raise
    except USER_ERRORS as error:
        _exit(settings.command, error, 2)
    except FAILURES as error:
        _exit(settings.command, error, 1)


def _exit(command: str, error: Exception, status: int) -> NoReturn:
    print(f"{command}: error: {error}", file=sys.stderr, flush=True)
    sys.exit(status)
