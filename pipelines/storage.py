"""The one door to storage: a folder under any fsspec URL, with reads that are bounded and writes that are whole.

Nothing half-written is ever visible. A local write goes to a temporary name, is synced and renamed; an object store
gets one PUT (or one completed multipart upload). Endpoint, region and credentials come from the environment that the
store's own library reads (for S3: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...), never from data.
"""

import contextlib
import io
import os
import random
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import fsspec
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NoAnswerError
from botocore.parsers import ResponseParserError

T = TypeVar("T")

SCHEMES = ("file", "s3", "gs", "az")
# A store that throttles or restarts is back within seconds; waits of 0.2, 0.4, ... s (jittered) span about 6 s, and
# the client's own waits under them about 9 s more.
ATTEMPTS = 6
FIRST_WAIT_S = 0.2
# Errors that may pass. A body that was cut short is an aiohttp.ClientError, and an answer that makes no sense (from a
# gateway, say) a ResponseParserError; neither is an OSError.
_PASSING = (OSError, BotoCoreError, ClientError, ResponseParserError, aiohttp.ClientError)

_S3_OPTIONS = {
    "config_kwargs": {
        "retries": {"mode": "standard", "max_attempts": 2},  # under each of ours: more would multiply the waits
        "connect_timeout": 10,
        "read_timeout": 20,  # without a byte; a store that says nothing for so long is asked again
    },
    # Another process may have written since: every listing asks the store.
    "use_listings_cache": False,
}


class StorageError(OSError):
    """Storage that cannot be used as asked: missing, refused or not allowed. Trying again will not help."""


class MissingError(StorageError):
    """No such file or object."""


class Folder:
    """A folder of files in one store. Names are relative, with `/`; a file's content is bytes."""

    def __init__(self, url: str) -> None:
        """Raises StorageError for a scheme that is not allowed or a URL that carries credentials."""
        self.url = normalise(url)
        scheme, path = _split(self.url)
        self._local = scheme == "file"
        self._path = path
        options = _S3_OPTIONS if scheme == "s3" else {}
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "") if scheme == "s3" else ""
        if endpoint and "://" not in endpoint:
            raise StorageError(f"AWS_ENDPOINT_URL is {endpoint}: not a URL; write http://{endpoint}")
        try:
            self._fs = fsspec.filesystem(scheme, **options)
        except ImportError as error:
            raise StorageError(f"{self.url}: {scheme}:// needs another package: {error}") from error
        if scheme == "s3":
            self._fs.retries = 1  # s3fs's own loop of 5 lies between ours and the client's: a lost call took 5 minutes

    def __str__(self) -> str:
        return self.url

    @property
    def remote(self) -> bool:
        """Whether every access is a request, which others may run beside."""
        return not self._local

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.url}/{name}")

    def __reduce__(self) -> tuple[type["Folder"], tuple[str]]:
        return Folder, (self.url,)  # a process opens its own connections

    def list(self, name: str = "") -> dict[str, int]:
        """The files directly in folder `name`, with their sizes in bytes; {} if there is none. Without hidden files."""
        base = f"{self._path}/{name}".rstrip("/") or "/"

        def listing() -> dict[str, int]:
            try:
                entries = self._fs.ls(base, detail=True)
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
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

        def walk() -> dict[str, int]:
            found = self._fs.find(self._path, detail=True)
            names = {path[len(self._path.rstrip("/")) + 1 :]: int(entry["size"] or 0) for path, entry in found.items()}
            return {name: size for name, size in names.items() if not any(p.startswith(".") for p in name.split("/"))}

        return self._try(walk, "")

    def walk(self) -> Iterator[tuple[str, int]]:
        """As tree(), but one file at a time and in no order: memory does not grow with their number.

        Raises: StorageError for a link to a folder, which is not followed: what lies behind it would be missing.
        """
        if self._local:
            yield from self._walk_local()
        elif self.url.startswith("s3://"):
            yield from self._walk_s3()
        else:
            yield from self.tree().items()

    def _walk_local(self) -> Iterator[tuple[str, int]]:
        for path, folders, files in os.walk(self._path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = os.path.relpath(path, self._path)
            for name in folders:
                if os.path.islink(os.path.join(path, name)):
                    raise StorageError(f"{os.path.join(path, name)}: a link to a folder is not followed; copy it there")
            for name in files:
                with contextlib.suppress(FileNotFoundError):  # a link to nothing
                    status = os.stat(os.path.join(path, name))
                    if stat.S_ISREG(status.st_mode) and not name.startswith("."):
                        yield name if inside == "." else f"{inside}/{name}", status.st_size

    def _walk_s3(self) -> Iterator[tuple[str, int]]:
        bucket, _, prefix = self._path.removeprefix("s3://").partition("/")
        prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        after: dict[str, str] = {}
        while True:
            request = {"Bucket": bucket, "Prefix": prefix, **after}
            page = self._try(partial(self._fs.call_s3, "list_objects_v2", **request), "")
            for entry in page.get("Contents", ()):
                name = entry["Key"][len(prefix) :]
                if name and not name.endswith("/") and not any(part.startswith(".") for part in name.split("/")):
                    yield name, int(entry["Size"])
            if not page.get("IsTruncated"):
                return
            after = {"ContinuationToken": page["NextContinuationToken"]}

    def open(self, name: str) -> IO[bytes]:
        """A file to seek in, read piece by piece. Raises MissingError if there is no such file."""
        if self._local:
            return self._try(lambda: open(f"{self._path}/{name}", "rb"), name)
        size = self._try(lambda: int(self._fs.info(f"{self._path}/{name}")["size"]), name)
        return io.BufferedReader(_Ranges(self, name, size), 256 << 10)

    def read(self, name: str) -> bytes:
        """A file's whole content. Raises MissingError if there is no such file."""
        return self._try(lambda: bytes(self._fs.cat_file(f"{self._path}/{name}")), name)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes of a file from `offset` on, without reading the rest."""
        end = offset + size
        data = self._try(lambda: bytes(self._fs.cat_file(f"{self._path}/{name}", start=offset, end=end)), name)
        if len(data) != size:
            raise StorageError(
                f"{self.url}/{name}: {len(data)} bytes from {offset} on, not {size}: the file is cut short"
            )
        return data

    def exists(self, name: str) -> bool:
        """Whether the file is there. Costs one request, and never trusts a cached listing."""

        def look() -> bool:
            try:  # not isfile(): it says "no" too when the store cannot be asked
                return bool(self._fs.info(f"{self._path}/{name}")["type"] == "file")
            except (FileNotFoundError, NotADirectoryError) as error:
                if _code(error) == "NoSuchBucket":
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
            self._try(lambda: self._fs.pipe_file(f"{self._path}/{name}", data, mode="create"), name)
        except FileExistsError:
            return False
        return True

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is fine. A local folder that this empties goes too, as on a store."""

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(f"{self._path}/{name}")
            if self._local:
                with contextlib.suppress(OSError):  # it holds other files
                    Path(self._path, name).parent.rmdir()

        self._try(remove, name)

    def remove(self, name: str) -> None:
        """Remove an empty folder. Object stores have none."""
        if self._local:
            with contextlib.suppress(OSError):
                Path(self._path, name).rmdir()

    def sweep(self, name: str) -> None:
        """Remove the temporary files that crashed writers left in folder `name`. Only a local folder can have any."""
        if self._local:
            for leftover in Path(self._path, name).glob(".*.tmp"):
                leftover.unlink(missing_ok=True)

    def _publish_local(self, name: str, data: bytes) -> None:
        target = Path(self._path, name)
        temporary = _write_temporary(target, data)
        try:
            os.replace(temporary, target)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def _create_local(self, name: str, data: bytes) -> bool:
        target = Path(self._path, name)
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
        self._fs.pipe_file(f"{self._path}/{name}", data)

    def _try(self, call: Callable[[], T], name: str) -> T:
        """Call, with bounded and growing waits after errors that pass; words for those that do not."""
        where = f"{self.url}/{name}".rstrip("/")
        for attempt in range(ATTEMPTS):
            try:
                return call()
            except _PASSING as error:
                final = _final(error, where, self._local)
                if final is not None:
                    raise final from error
                if attempt == ATTEMPTS - 1:
                    if isinstance(error, NoAnswerError):
                        raise StorageError(f"{where}: {error}; check AWS_ENDPOINT_URL and the network") from error
                    raise OSError(f"{where}: gave up after {ATTEMPTS} attempts: {error}") from error
            time.sleep(FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")


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


def _code(error: BaseException | None) -> str:
    """The store's own error code behind an exception, or ''. s3fs keeps it in the chain of causes."""
    while error is not None:
        if isinstance(error, ClientError):
            return str(error.response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


_REFUSED = {
    "InvalidAccessKeyId": "the store does not know this access key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session token has expired; renew it",
    "InvalidToken": "the session token is not valid; renew it",
    "RequestTimeTooSkewed": "this machine's clock is off; set it right",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_REGION",
    "InvalidRange": "the file is cut short",
}


def _final(error: BaseException, where: str, local: bool) -> OSError | None:
    """The error to raise when another attempt cannot help, in plain words; None when one may."""
    code = _code(error)
    if code == "NoSuchBucket":
        return StorageError(f"{where}: the bucket does not exist; create it, or check the name and AWS_ENDPOINT_URL")
    if code == "NoSuchUpload":
        return None  # its completion was done and the answer lost, or the store forgot it: the whole is sent again
    if code in _REFUSED:
        return StorageError(f"{where}: {_REFUSED[code]}")
    if local and isinstance(error, FileExistsError):
        return StorageError(f"{where}: a file is where its folder should be")
    if code in ("PreconditionFailed", "ConditionalRequestConflict") or isinstance(error, FileExistsError):
        return FileExistsError(f"{where}: exists")
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StorageError(f"{where}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, PermissionError):
        hint = "" if local else "; check the credentials in the environment, and what they may do"
        return StorageError(f"{where}: permission denied{hint}")
    if code == "InvalidBucketName" or isinstance(error, ParamValidationError):
        return StorageError(f"{where}: not a bucket's name; check the URL")
    if isinstance(error, IsADirectoryError):
        return StorageError(f"{where}: a folder lies where a file is to be; move it away")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return MissingError(f"{where}: not found")
    if local:
        return OSError(getattr(error, "errno", None) or 0, f"{where}: {getattr(error, 'strerror', None) or error}")
    return None
