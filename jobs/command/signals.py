"""Ctrl-C and SIGTERM (Kubernetes, `ray job stop`): one line, nothing left behind, exit status 130 or 143.

A command arms this before its other imports: they take seconds, and a signal may come during them. So this module
imports only the standard library.
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

# Terminals and wrappers send a signal twice. A second one after this time means that the user does not want to wait.
_PATIENCE_S = 1.0


class _State:
    """The signal state of this process."""

    armed = False
    started = False  # whether there is something to clean up
    received: signal.Signals | None = None
    since = 0.0
    stderr: TextIO | None = None  # for the one line; all other output after a signal is muted


def arm() -> None:
    """Install the handlers, in the main thread of a command; again after a library has replaced them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's, or a shell's in the background
            signal.signal(number, _handle)
    _State.armed = True


def arm_again() -> None:
    """Reinstall the handlers after Ray has replaced them with its own, which end a command silently."""
    if _State.armed and threading.current_thread() is threading.main_thread():
        arm()


def begin() -> None:
    """From here on a signal raises KeyboardInterrupt, so that the command can clean up.

    Not an exception class of our own: Ray's core swallows all but KeyboardInterrupt and SystemExit.
    """
    _State.started = True


def leave_if_given(error: BaseException, line: str) -> None:
    """End the process with `line` if a signal caused `error`; else return.

    Not through the interpreter's own exit: Ray's and Arrow's threads still run then, and some exits were SIGSEGV.
    """
    if isinstance(error, SystemExit) and error.code == signal.SIGTERM:  # from Ray's handler, while Ray starts
        _State.received = signal.SIGTERM
    if isinstance(error, KeyboardInterrupt) and _State.received is None:  # before arm(), or raised by hand
        _State.received = signal.SIGINT
    if _State.received is not None:
        print(line, file=_State.stderr or sys.stderr, flush=True)
        _mute()
        atexit._run_exitfuncs()  # ends Ray's processes, if Ray was started here
        _end(_State.received)


def _handle(number: int, frame: FrameType | None) -> None:
    if _State.received is not None:
        if time.monotonic() - _State.since > _PATIENCE_S:
            _end(_State.received)
        return
    _State.received, _State.since = signal.Signals(number), time.monotonic()
    if _State.started:
        _mute()
        raise KeyboardInterrupt
    os.write(2, f"{Path(sys.argv[0]).stem}: stopped before it began\n".encode())
    _end(_State.received)


def _mute() -> None:
    """Drop stderr: Ray reports every worker that it ends."""
    if _State.stderr is None:
        _State.stderr, sys.stderr = sys.stderr, open(os.devnull, "w")  # noqa: SIM115  # as long as the process


def _end(number: signal.Signals) -> NoReturn:
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # closed, or interrupted during the flush
        sys.stdout.flush()
    os._exit(128 + number)
