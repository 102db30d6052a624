"""What a suite leaves behind: processes that it started, and folders in the temporary folder."""

import os
import sys
import tempfile
import time
from pathlib import Path

MARK = "STARTED_BY_SUITE"  # an environment variable, which every process that is started from here inherits
OURS = ("ganmill-", "gm-")  # prefixes of temporary folders
PATIENCE_S = 60.0  # Ray's agents notice within seconds that their node is gone, later on a busy machine


def begin() -> set[str]:
    """Mark this process and all that it will start. Returns the temporary folders that are there already."""
    os.environ.setdefault(MARK, str(os.getpid()))
    return _folders()


def find(before: set[str]) -> list[str]:
    """What is left, each in a line, after a while in which it may end by itself."""
    deadline = time.monotonic() + PATIENCE_S
    while (left := _processes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [*left, *(f"folder {tempfile.gettempdir()}/{name}" for name in sorted(_folders() - before))]


def _folders() -> set[str]:
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith(OURS)}


def _processes() -> list[str]:
    if sys.platform != "linux":
        return []
    mark = f"{MARK}={os.environ[MARK]}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark in (entry / "environ").read_bytes():
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if "multiprocessing.resource_tracker" not in words:  # it ends when the process ends that asks here
                        found.append(f"process {entry.name}: {words[:200]}")
            except OSError:  # another user's, or gone
                continue
    return found
