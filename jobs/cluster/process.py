"""Operating system settings of a job's processes: stderr, a message at a sudden end, and malloc."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def silence_ray_core() -> None:
    """Keep Ray's C++ core off stderr: at each pool it reports an error that is none (ray#57733)."""
    sys.stderr.flush()
    ours = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.stderr = os.fdopen(ours, "w", buffering=1)


@contextmanager
def report_sudden_end(text: str) -> Iterator[None]:
    """Print `text` on stderr if this process ends inside the block without a message.

    Ray's core calls _exit(1) when the cluster is gone, and the kernel's OOM killer prints nothing either. So a shell
    waits for a line from this process, or for the end of its pipe.
    """
    try:
        stderr: int | None = sys.stderr.fileno()
    except OSError:  # not a file, as in a test
        stderr = None
    command = ["/bin/sh", "-c", 'read -r over || printf "%s\\n" "$1" >&2', "sh", text]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=stderr) as shell:
        try:
            yield
        finally:
            with suppress(OSError):  # Ctrl-C ends the shell too
                shell.communicate(b"over\n")


def one_thread() -> None:
    """Have torch, imported or not yet, compute on one core: a worker has one, and sums have one order everywhere."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def keep_freed_memory() -> None:
    """Make glibc's malloc keep freed memory, up to 1 GB, for reuse.

    Otherwise the memory of each batch's activations returns to the kernel, and 6,000 to 20,000 page faults for each
    thousand images map it again: 10 to 20 % of the time, measured at 28x28.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not on macOS, nor with musl
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest value that it accepts
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
