"""The one door to storage: a folder under any fsspec URL, with reads that are bounded and writes that are whole.

Nothing half-written is ever visible. A local write goes to a temporary name, is synced and renamed; an object store
gets one PUT (or one completed multipart upload). Endpoint, region and credentials come from the environment that the
store's own library reads (docs/storage.md lists it), never from data. What differs between stores is in store_*.py.
"""

import contextlib
import errno
import io
import os
import random
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

import fsspec

from pipelines.storage import endpoints, s3

T = TypeVar("T")

SCHEMES = ("file", "s3", "gs", "az")
# A store that throttles or restarts is back within seconds; waits of 0.2, 0.4, ... s (jittered) span about 6 s, and
# under them S3's client waits about 9 s more.
ATTEMPTS = 6
FIRST_WAIT_S = 0.2
# One call, whatever its size: it ends a body that comes in drops, each just before stores.READ_S.
CALL_S = 900.0
# Up to here a bounded read is one ranged request; above, s3fs reads in parallel ranges, which is faster.
_RANGED_BYTES = 64 << 20
DAY_S = 86_400.0


class StorageError(OSError):
    """Storage that cannot be used as asked: missing, refused or not allowed. Trying again will not help."""


class MissingError(StorageError):
    """No such file or object."""


class TooLargeError(StorageError):
    """A file with more bytes than its kind may have; they were not read."""


class UnreachableError(StorageError):
    """A store that does not answer: its address is wrong, or it is down for longer than the attempts took."""


class Folder:
    """A folder of files in one store. Names are relative, with `/`; a file's content is bytes."""

    def __init__(self, url: str) -> None:
        """Raises StorageError for a scheme that is not allowed or a URL that carries credentials."""
        self.url = normalise(url)
        scheme, self._path = _split(self.url)
        self._local = scheme == "file"
        self.call_s = CALL_S
        self._bucket_seen = False
        self._store = None if self._local else _store(scheme, self.url)
        self._passing: tuple[type[BaseException], ...] = self._store.PASSING if self._store else (OSError,)
        try:
            self._fs = self._store.open_filesystem() if self._store else fsspec.filesystem("file")
        except endpoints.EndpointError as error:
            raise StorageError(str(error)) from error

    def __str__(self) -> str:
        return self.url

    @property
    def remote(self) -> bool:
        """Whether every access is a request, which others may run beside."""
        return not self._local

    def __truediv__(self, name: str) -> "Folder":
        self._at(name)
        return Folder(f"{self.url}/{name}")

    def __reduce__(self) -> tuple[type["Folder"], tuple[str]]:
        return Folder, (self.url,)  # a process opens its own connections

    def list(self, name: str = "") -> dict[str, int]:
        """The files directly in folder `name`, with their sizes in bytes; {} if there is none. Without hidden files."""
        base = self._at(name).rstrip("/") or "/"

        def listing() -> dict[str, int]:
            try:
                entries = self._ask("ls", base, detail=True)
            except FileNotFoundError as error:
                if self._no_bucket(error):
                    raise
                return {}
            return {
                entry["name"].rsplit("/", 1)[-1]: int(entry["size"] or 0)
                for entry in entries
                if entry["type"] == "file" and not entry["name"].rsplit("/", 1)[-1].startswith(".")
            }

        return self._try(listing, name)

    def tree(self) -> dict[str, int]:
        """Every file below the folder, by its name relative to it, with sizes in bytes. Hidden files are left out."""
        return dict(self.walk())

    def walk(self, hidden: bool = False) -> Iterator[tuple[str, int]]:
        """As tree(), but one file at a time and in no order: memory does not grow with their number.

        The size is -1 where a name leads to no file: a link to nothing, a pipe.

        Args:   hidden: name hidden files too, and hidden local folders, as `.git/`, which are never looked into.
        Raises: StorageError for a folder that cannot be read, and for a link to a folder, which is not followed: what
                lies behind them would be missing.
        """
        if self._local:
            found = self._walk_local()
        elif self.url.startswith("s3://"):
            found = self._walk_s3()
        else:
            found = iter(self._try(self._find, "").items())
        for name, size in found:
            if hidden or not any(part.startswith(".") for part in name.split("/")):
                yield name, size

    def _walk_local(self) -> Iterator[tuple[str, int]]:
        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):  # no folder there, or gone since
                raise _final_local(error, error.filename) from error

        for path, folders, files in os.walk(self._path, onerror=refuse):
            inside = os.path.relpath(path, self._path)
            below = "" if inside == "." else f"{inside}/"
            for name in folders:
                if name.startswith("."):
                    yield f"{below}{name}/", 0
                elif os.path.islink(os.path.join(path, name)):
                    raise StorageError(f"{os.path.join(path, name)}: a link to a folder is not followed; copy it there")
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                size = _size(os.path.join(path, name))
                if size is not None:
                    yield f"{below}{name}", size

    def _walk_s3(self) -> Iterator[tuple[str, int]]:
        bucket, _, prefix = self._path.removeprefix("s3://").partition("/")
        prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        after: dict[str, str] = {}
        while True:
            request = {"Bucket": bucket, "Prefix": prefix, **after}
            page = self._try(partial(self._ask, "call_s3", "list_objects_v2", **request), "")
            for entry in page.get("Contents", ()):
                name = entry["Key"][len(prefix) :]
                if name and not name.endswith("/"):  # an object that stands for a folder
                    yield name, int(entry["Size"])
            if not page.get("IsTruncated"):
                return
            after = {"ContinuationToken": page["NextContinuationToken"]}

    def _find(self) -> dict[str, int]:
        found = self._ask("find", self._path, detail=True)
        if not found and self._no_bucket(None):
            raise FileNotFoundError(self._path)
        start = len(self._path.rstrip("/")) + 1
        return {path[start:]: int(at["size"] or 0) for path, at in found.items() if not path.endswith("/")}

    def open(self, name: str) -> IO[bytes]:
        """A file to seek in, read piece by piece. Raises MissingError if there is no such file."""
        if self._local:
            return self._try(lambda: open(self._at(name), "rb"), name)
        size = self._try(lambda: int(self._ask("info", self._at(name))["size"]), name)
        return io.BufferedReader(_Ranges(self, name, size), 256 << 10)

    def read(self, name: str, limit: int | None = None) -> bytes:
        """A file's whole content.

        Args:   limit: bytes that it may have; more are not read.
        Raises: MissingError if there is no such file; TooLargeError.
        """
        if self._local:
            data = self._try(lambda: _read_local(Path(self._at(name)), limit), name)
        else:
            data = self._try(lambda: self._read_object(self._at(name), limit), name)
        if limit is not None and len(data) > limit:
            raise TooLargeError(f"{self.url}/{name}: more than {limit:,} bytes, which is all that it may have")
        return data

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes of a file from `offset` on, without reading the rest."""
        end = offset + size
        data = self._try(lambda: bytes(self._ask("cat_file", self._at(name), start=offset, end=end)), name)
        if len(data) != size:
            raise StorageError(
                f"{self.url}/{name}: {len(data)} bytes from {offset} on, not {size}: the file is cut short"
            )
        return data

    def exists(self, name: str) -> bool:
        """Whether the file is there. Costs one request, and never trusts a cached listing."""

        def look() -> bool:
            try:  # not isfile(): it says "no" too when the store cannot be asked
                return bool(self._ask("info", self._at(name))["type"] == "file")
            except (FileNotFoundError, NotADirectoryError) as error:
                if self._no_bucket(error):
                    raise
                return False

        return self._try(look, name)

    def write(self, name: str, data: bytes) -> None:
        """Publish a file, all or nothing, over an older one of that name."""
        if self._local:
            self._try(lambda: _unswept(lambda: self._publish_local(name, data)), name)
        else:
            self._try(lambda: self._publish_object(name, data), name)

    def create(self, name: str, data: bytes) -> bool:
        """Publish a small file unless one of that name is there. Returns whether this call made it.

        Of several callers at once exactly one gets True: a hard link locally, a conditional PUT on stores that have it.
        False may also mean that an attempt of this call made it and its answer was lost: compare what is there.
        """
        if self._local:
            return self._try(lambda: _unswept(lambda: self._create_local(name, data)), name)
        try:
            self._try(lambda: self._ask("pipe_file", self._at(name), data, mode="create"), name)
        except FileExistsError:
            return False
        return True

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is fine. A local folder that this empties goes too, as on a store."""

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._ask("rm_file", self._at(name))
            if self._local:
                with contextlib.suppress(OSError):  # it holds other files
                    Path(self._at(name)).parent.rmdir()

        self._try(remove, name)

    def remove(self, name: str) -> None:
        """Remove an empty folder. Object stores have none."""
        if self._local:
            with contextlib.suppress(OSError):
                Path(self._at(name)).rmdir()

    def sweep(self, name: str) -> None:
        """Remove the temporary files that crashed writers left in folder `name`. Only a local folder can have any."""
        if self._local:
            for leftover in Path(self._at(name)).glob(".*.tmp"):
                leftover.unlink(missing_ok=True)

    def abort_uploads(self, older_s: float = DAY_S) -> None:
        """Abort what crashed writers began to upload below this folder and never completed. Only S3 keeps such parts.

        One that is younger may be another writer's. A store that does not let us is left alone: a lifecycle rule of the
        bucket does the same.
        """
        if self._store:
            abort = self._store.abort_uploads
            with contextlib.suppress(OSError):
                self._try(lambda: abort(self._fs, self._path, older_s), "")

    def _at(self, name: str) -> str:
        """Where a file is. Raises StorageError for a name that leads out of the folder: names may come from data."""
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise StorageError(f"{self.url}: {name!r} is not a name below this folder")
        return f"{self._path}/{name}"

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A call of fsspec's, ended after `call_s` if it goes over the network."""
        limit = {} if self._local else {"timeout": self.call_s}
        return getattr(self._fs, method)(*args, **kwargs, **limit)

    def _read_object(self, path: str, limit: int | None) -> bytes:
        """At most `limit` + 1 bytes of an object, whatever its size."""
        if limit is not None and limit < _RANGED_BYTES:
            try:
                return bytes(self._ask("cat_file", path, start=0, end=limit + 1))
            except self._passing as error:
                if self._verdict(error) != endpoints.CUT:
                    raise
                return b""  # no range of an empty object can be had
        if limit is not None and self._ask("info", path)["size"] > limit:
            return bytes(limit + 1)
        return bytes(self._ask("cat_file", path))

    def _publish_local(self, name: str, data: bytes) -> None:
        target = Path(self._at(name))
        temporary = _write_temporary(target, data)
        try:
            os.replace(temporary, target)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def _create_local(self, name: str, data: bytes) -> bool:
        target = Path(self._at(name))
        temporary = _write_temporary(target, data)
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
        return True

    def _publish_object(self, name: str, data: bytes) -> None:
        self._ask("pipe_file", self._at(name), data)

    def _try(self, call: Callable[[], T], name: str) -> T:
        """Call, with bounded and growing waits after errors that pass; words for those that do not."""
        where = f"{self.url}/{name}".rstrip("/")
        for attempt in range(ATTEMPTS):
            try:
                return call()
            except StorageError:
                raise
            except self._passing as error:
                final = self._final(error, where)
                if final is not None:
                    raise final from error
                if attempt == ATTEMPTS - 1:
                    if self._store and self._store.unreachable(error):
                        hint = f"; check {self._store.ENDPOINT} and the network"
                        raise UnreachableError(f"{where}: {error}{hint}") from error
                    why = str(error) or type(error).__name__  # a timeout has no words
                    raise OSError(f"{where}: gave up after {ATTEMPTS} attempts: {why}") from error
            time.sleep(FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")

    def _final(self, error: BaseException, where: str) -> OSError | None:
        """The error to raise when another attempt cannot help, in plain words; None when one may."""
        if self._store is None:
            return _final_local(error, where)
        verdict = self._verdict(error)
        if verdict == endpoints.EXISTS:
            return FileExistsError(f"{where}: exists")
        if verdict == endpoints.MISSING and not self._no_bucket(error):
            return MissingError(f"{where}: not found")
        if verdict == endpoints.MISSING:
            verdict = endpoints.NO_BUCKET
        return StorageError(f"{where}: {verdict}") if verdict else None

    def _verdict(self, error: BaseException) -> str:
        return str(self._store.verdict(error)) if self._store else ""

    def _no_bucket(self, error: BaseException | None) -> bool:
        """Whether the bucket is what is missing. The store is asked once, if its error does not tell."""
        if self._store is None:
            return False
        if error is not None and self._verdict(error).startswith(endpoints.NO_BUCKET):
            return True
        if not self._bucket_seen:
            try:
                self._bucket_seen = self._store.has_bucket(self._fs, self._path.partition("/")[0])
            except self._passing:  # one that may read and not list
                self._bucket_seen = True
        return not self._bucket_seen


class _Ranges(io.RawIOBase):
    """A file of a store as Python reads files, each piece a range read with its own attempts."""

    def __init__(self, folder: Folder, name: str, size: int) -> None:
        self._folder, self._name, self._size, self._at = folder, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        if count:
            buffer[:count] = self._folder.read_range(self._name, self._at, count)
        self._at += count
        return count


def normalise(url: str) -> str:
    """A URL as ganmill writes it: absolute, no trailing slash. Raises StorageError if it is not allowed."""
    if not url:
        raise StorageError("an empty path: give a folder or a URL")
    if "://" not in url:
        return os.path.abspath(os.path.expanduser(url))
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query:
        raise StorageError(
            f"{parts.scheme}://{parts.hostname}...: no credentials or options in a URL; set them in the environment"
        )
    if parts.scheme not in SCHEMES:
        raise StorageError(f"{url}: scheme {parts.scheme!r} is not one of {', '.join(SCHEMES)}")
    if parts.scheme == "file":
        if parts.netloc:
            raise StorageError(f"{url}: a local file has no host; write file:///{parts.netloc}{parts.path}")
        return os.path.abspath(parts.path)
    if not parts.netloc:
        raise StorageError(f"{url}: no bucket; write {parts.scheme}://bucket/prefix")
    return f"{parts.scheme}://{url.split('://', 1)[1]}".rstrip("/")


def _split(url: str) -> tuple[str, str]:
    if "://" not in url:
        return "file", url
    scheme, path = url.split("://", 1)
    return scheme, path


def _store(scheme: str, url: str) -> ModuleType:
    """The module of a store. gs and az are extras: only who uses them needs their packages."""
    try:
        if scheme == "gs":
            from pipelines.storage import google

            return google
        if scheme == "az":
            from pipelines.storage import azure

            return azure
    except ImportError as error:
        raise StorageError(f"{url}: {scheme}:// needs another package: pip install 'ganmill[{scheme}]'") from error
    return s3


def _size(path: str) -> int | None:
    """A file's size in bytes; -1 for a link to nothing and for what is no regular file; None if it is gone."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return -1 if os.path.lexists(path) else None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return -1
        raise _final_local(error, path) from error
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _read_local(path: Path, limit: int | None) -> bytes:
    """A regular file's content, or its first `limit` + 1 bytes."""
    # Without O_NONBLOCK a named pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(str(path))
        if not stat.S_ISREG(mode):
            raise StorageError(f"{path}: not a regular file")
        return file.read(-1 if limit is None else limit + 1)


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


def _unswept(write: Callable[[], T]) -> T:
    """A local write; once more if its temporary file is gone: another run that sealed the same dataset swept it."""
    try:
        return write()
    except FileNotFoundError:
        return write()


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut: on Linux the directory itself has to be synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _final_local(error: BaseException, where: str) -> OSError:
    """A disk's error, in plain words; none of them passes."""
    if isinstance(error, FileExistsError):
        return StorageError(f"{where}: a file is where its folder should be")
    if isinstance(error, PermissionError):
        return StorageError(f"{where}: permission denied")
    if isinstance(error, IsADirectoryError):
        return StorageError(f"{where}: a folder lies where a file is to be; move it away")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return MissingError(f"{where}: not found")
    return OSError(getattr(error, "errno", None) or 0, f"{where}: {getattr(error, 'strerror', None) or error}")
