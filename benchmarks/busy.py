"""Processes that are always busy, for benchmarks of a machine that others use."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def processes(count: int) -> Iterator[None]:
    """So many foreign processes run meanwhile, each of which computes without an end."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
