"""The common part of all object stores: time limits, the meaning of an answer, and files read by ranges."""

import io
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import IO, Any

from pipelines.storage.errors import MissingError, StorageError
from pipelines.storage.store import Attempt, Store

CONNECT_S = 10
READ_S = 20  # without a byte; then the request is made again
# The limit of one call, whatever its size. It ends a response whose bytes come one by one, each just before READ_S.
CALL_S = 900.0
# Up to this size a bounded read is one ranged request. Above it s3fs reads ranges in parallel, which is faster.
_RANGED_BYTES = 64 << 20
_BUFFER_BYTES = 256 << 10

# The meanings of an answer. Any other text is a reason for the user, and '' an error that may pass.
MISSING, EXISTS = "not found", "exists"
NO_BUCKET = "the bucket does not exist; create it, or check the name"
CUT = "the file is cut short"
DENIED = "permission denied; check the credentials in the environment, and their permissions"


class ObjectStore(Store):
    """A bucket of an object store."""

    remote = True
    endpoint: str  # the environment variable that holds the store's address

    def __init__(self, bucket: str) -> None:
        """Raises StorageError for an environment in which the store cannot be opened."""
        self.bucket, self.call_s = bucket, CALL_S
        self._bucket_seen = False
        self.fs = self.open_filesystem()

    @abstractmethod
    def open_filesystem(self) -> Any:
        """The fsspec filesystem, with time limits, without caches, and without attempts of its own (see retries.py).

        Raises: StorageError for an endpoint or credentials that cannot be right.
        """

    @abstractmethod
    def verdict(self, error: BaseException) -> str:
        """The meaning of an error: MISSING, EXISTS, NO_BUCKET, CUT, another reason, or '' for one that may pass."""

    @abstractmethod
    def no_answer(self, error: BaseException) -> bool:
        """Whether there was no answer at all."""

    @abstractmethod
    def has_bucket(self) -> bool:
        """Whether the bucket exists. Needs no permission except to list."""

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the filesystem, for at most `call_s`."""
        return super().ask(method, *args, **kwargs, timeout=self.call_s)

    def final(self, error: BaseException, where: str) -> OSError | None:
        verdict = self.verdict(error)
        if verdict == EXISTS:
            return FileExistsError(f"{where}: exists")
        if verdict == MISSING and not self.no_bucket(error):
            return MissingError(f"{where}: not found")
        if verdict == MISSING:
            verdict = NO_BUCKET
        return StorageError(f"{where}: {verdict}") if verdict else None

    def unreachable(self, error: BaseException) -> str:
        return self.endpoint if self.no_answer(error) else ""

    def no_bucket(self, error: BaseException | None) -> bool:
        """As Store.no_bucket. Not every store reports which of the two is missing; then one request finds out."""
        if error is not None and self.verdict(error).startswith(NO_BUCKET):
            return True
        if not self._bucket_seen:
            try:
                self._bucket_seen = self.has_bucket()
            except self.passing:  # permission to read, and none to list
                self._bucket_seen = True
        return not self._bucket_seen

    def walk(self, path: str, attempt: Attempt) -> Iterator[tuple[str, int]]:
        return iter(attempt(lambda: self._find(path)).items())

    def _find(self, path: str) -> dict[str, int]:
        found = self.ask("find", path, detail=True)
        if not found and self.no_bucket(None):
            raise FileNotFoundError(path)
        start = len(path.rstrip("/")) + 1
        return {name[start:]: int(at["size"] or 0) for name, at in found.items() if not name.endswith("/")}

    def open(self, path: str, read_range: Callable[[int, int], bytes]) -> IO[bytes]:
        size = int(self.ask("info", path)["size"])
        return io.BufferedReader(_Ranges(read_range, size), _BUFFER_BYTES)

    def read(self, path: str, limit: int | None) -> bytes:
        if limit is not None and limit < _RANGED_BYTES:
            try:
                return self.read_range(path, 0, limit + 1)
            except self.passing as error:
                if self.verdict(error) != CUT:
                    raise
                return b""  # an empty object has no ranges
        if limit is not None and self.ask("info", path)["size"] > limit:
            return bytes(limit + 1)
        return bytes(self.ask("cat_file", path))

    def write(self, path: str, data: bytes) -> None:
        """As Store.write: one PUT, or a multipart upload, which is visible once it is completed."""
        self.ask("pipe_file", path, data)

    def create(self, path: str, data: bytes) -> bool:
        """As Store.create: a conditional PUT."""
        try:
            self.ask("pipe_file", path, data, mode="create")
        except self.passing as error:
            if self.verdict(error) == EXISTS:
                return False
            raise
        return True


class _Ranges(io.RawIOBase):
    """An object as a Python file. Each piece is a ranged read."""

    def __init__(self, read_range: Callable[[int, int], bytes], size: int) -> None:
        self._read_range, self._size, self._at = read_range, size, 0

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
            buffer[:count] = self._read_range(self._at, count)
        self._at += count
        return count
