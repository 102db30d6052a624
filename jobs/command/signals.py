"""Ctrl-C and SIGTERM (Kubernetes, `ray job stop`): one line, nothing left behind, exit status 130 or 143.

A command arms this before its other imports: they take seconds, and a signal comes then too. So only the standard
library is imported here.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

# Terminals and wrappers send a signal twice; who sends it again later does not want to wait for the end of Ray.
_PATIENCE_S = 1.0


class _State:
    """What this process has been told; one a process, as its signals are."""

    armed = False
    begun = False  # whether there is something to clean up
    given: signal.Signals | None = None
    since = 0.0
    stderr: TextIO | None = None  # where the one line goes: no other comes after a signal


def arm() -> None:
    """Take the signals, in the main thread of a command; once more after a library has taken them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's, or a shell's in the background
            signal.signal(number, _handle)
    _State.armed = True


def arm_again() -> None:
    """Take the signals back from Ray, which has handlers of its own that end a command without a word."""
    if _State.armed and threading.current_thread() is threading.main_thread():
        arm()


def begin() -> None:
    """From here on a signal is a KeyboardInterrupt, so that all that was begun is left in good order.

    No class of our own: Ray's core swallows all but this one and SystemExit.
    """
    _State.begun = True


def leave_if_given(error: BaseException, line: str) -> None:
    """End the process with `line` if `error` is what became of a signal; else return.

    Not through the interpreter's own end: Ray's and Arrow's threads run on into it, and some ends were SIGSEGV.
    """
    if isinstance(error, SystemExit) and error.code == signal.SIGTERM:  # by Ray's handler, while Ray started
        _State.given = signal.SIGTERM
    if isinstance(error, KeyboardInterrupt) and _State.given is None:  # before arm(), or raised by hand
        _State.given = signal.SIGINT
    if _State.given is not None:
        print(line, file=_State.stderr or sys.stderr, flush=True)
        _mute()
        atexit._run_exitfuncs()  # Ray's processes, when it was started here
        _end(_State.given)


def _handle(number: int, frame: FrameType | None) -> None:
    if _State.given is not None:
        if time.monotonic() - _State.since > _PATIENCE_S:
            _end(_State.given)
        return
    _State.given, _State.since = signal.Signals(number), time.monotonic()
    if _State.begun:
        _mute()
        raise KeyboardInterrupt
    os.write(2, f"{Path(sys.argv[0]).stem}: stopped before it began\n".encode())
    _end(_State.given)


def _mute() -> None:
    """Ray tells of each worker that it ends, with an advice or two."""
    if _State.stderr is None:
        _State.stderr, sys.stderr = sys.stderr, open(os.devnull, "w")  # noqa: SIM115  # as long as the process


def _end(number: signal.Signals) -> NoReturn:
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # closed, or interrupted in the middle of this
        sys.stdout.flush()
    os._exit(128 + number)
