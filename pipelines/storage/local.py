"""The local disk. A write goes to a temporary name, is synced and then renamed: no reader sees half a file."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

import fsspec

from pipelines.storage.errors import MissingError, StorageError
from pipelines.storage.store import Attempt, Store

T = TypeVar("T")


class LocalStore(Store):
    """Files on a disk of this machine, or on one that is mounted."""

    remote = False
    passing = (OSError,)

    def __init__(self) -> None:
        self.fs = fsspec.filesystem("file")

    def final(self, error: BaseException, where: str) -> OSError:
        """A disk's error is always final."""
        if isinstance(error, FileExistsError):
            return StorageError(f"{where}: a file is where its folder should be")
        if isinstance(error, PermissionError):
            return StorageError(f"{where}: permission denied")
        if isinstance(error, IsADirectoryError):
            return StorageError(f"{where}: a folder is where a file should be; move it away")
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return MissingError(f"{where}: not found")
        return OSError(getattr(error, "errno", None) or 0, f"{where}: {getattr(error, 'strerror', None) or error}")

    def walk(self, path: str, attempt: Attempt) -> Iterator[tuple[str, int]]:
        """As Store.walk. A hidden folder is named, as `.git/`, and not searched.

        Raises: StorageError for a folder that cannot be read, and for a link to a folder, which is not followed: the
                files behind them would be missing.
        """

        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):  # there is no folder, or no longer
                raise self.final(error, error.filename) from error

        for at, folders, files in os.walk(path, onerror=refuse):
            inside = os.path.relpath(at, path)
            below = "" if inside == "." else f"{inside}/"
            for name in folders:
                if name.startswith("."):
                    yield f"{below}{name}/", 0
                elif os.path.islink(os.path.join(at, name)):
                    raise StorageError(f"{os.path.join(at, name)}: a link to a folder is not followed; copy it there")
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                size = self._size(os.path.join(at, name))
                if size is not None:
                    yield f"{below}{name}", size

    def _size(self, path: str) -> int | None:
        """A file's size in bytes; -1 for a link to nothing and for no regular file; None for a file that is gone."""
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return -1 if os.path.lexists(path) else None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return -1
            raise self.final(error, path) from error
        return status.st_size if stat.S_ISREG(status.st_mode) else -1

    def open(self, path: str, read_range: Callable[[int, int], bytes]) -> IO[bytes]:
        return open(path, "rb")

    def read(self, path: str, limit: int | None) -> bytes:
        """As Store.read. Raises StorageError for a device or a pipe."""
        # Without O_NONBLOCK a named pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(path)
            if not stat.S_ISREG(mode):
                raise StorageError(f"{path}: not a regular file")
            return file.read(-1 if limit is None else limit + 1)

    def write(self, path: str, data: bytes) -> None:
        _unswept(lambda: _publish(Path(path), data))

    def create(self, path: str, data: bytes) -> bool:
        return _unswept(lambda: _create(Path(path), data))

    def delete(self, path: str) -> None:
        """As Store.delete. A folder that this empties goes too, as on an object store."""
        with contextlib.suppress(FileNotFoundError):
            super().delete(path)
        with contextlib.suppress(OSError):  # it holds other files
            Path(path).parent.rmdir()

    def remove(self, path: str) -> None:
        with contextlib.suppress(OSError):
            Path(path).rmdir()

    def sweep(self, path: str) -> None:
        for leftover in Path(path).glob(".*.tmp"):
            leftover.unlink(missing_ok=True)


def _unswept(write: Callable[[], T]) -> T:
    """A write, repeated once if its temporary file is gone: another run sealed the same dataset and swept the file."""
    try:
        return write()
    except FileNotFoundError:
        return write()


def _publish(target: Path, data: bytes) -> None:
    temporary = _write_temporary(target, data)
    try:
        os.replace(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _create(target: Path, data: bytes) -> bool:
    """A hard link fails where the file exists, so exactly one of several writers succeeds."""
    temporary = _write_temporary(target, data)
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)
    return True


def _write_temporary(target: Path, data: bytes) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut: on Linux the folder itself must be synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
