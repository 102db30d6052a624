"""Temporary folders that are always removed: a later process removes those that a killed one left."""

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_PREFIX = "ganmill-scratch-"
_YOUNG_S = 60.0  # a folder exists for a moment before its owner locks it


class Scratch(tempfile.TemporaryDirectory[str]):
    """A TemporaryDirectory whose owner holds a lock on it. The kernel releases the lock when the process ends."""

    def __init__(self, name: str) -> None:
        _sweep(Path(tempfile.gettempdir()))
        super().__init__(prefix=f"{_PREFIX}{name}-", ignore_cleanup_errors=True)
        self._lock = os.open(self.name, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def cleanup(self) -> None:
        super().cleanup()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _sweep(place: Path) -> None:
    """Remove this user's folders that no process holds."""
    for path in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, held, or already removed
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(folder).st_mtime > _YOUNG_S:
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(folder)
