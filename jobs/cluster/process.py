"""What a job's processes ask of the operating system."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# glibc's names for what mallopt sets: from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def silence_ray_core() -> None:
    """Leave stderr to Python. Ray's C++ core writes there too, at each pool an error that is none (ray#57733)."""
    sys.stderr.flush()
    ours = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.stderr = os.fdopen(ours, "w", buffering=1)


@contextmanager
def report_sudden_end(text: str) -> Iterator[None]:
    """Have `text` on stderr if this process ends inside without a word of its own.

    Ray's core leaves by _exit(1) when the cluster is gone, and the kernel's OOM killer says nothing either. So a shell
    waits for a line from here, or for the end of its pipe.
    """
    try:
        stderr: int | None = sys.stderr.fileno()
    except OSError:  # not a file: a test's
        stderr = None
    command = ["/bin/sh", "-c", 'read -r over || printf "%s\\n" "$1" >&2', "sh", text]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=stderr) as shell:
        try:
            yield
        finally:
            with suppress(OSError):  # Ctrl-C ends it too
                shell.communicate(b"over\n")


def keep_freed_memory() -> None:
    """Have glibc's malloc keep what this process frees, up to 1 GB.

    Else the memory of each batch's activations goes back to the kernel, and 6,000 to 20,000 page faults a thousand
    images bring it in again: a tenth to a fifth of the time, measured at 28x28.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not on macOS, nor with musl
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that it takes
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
