"""The interface of a store. A store is one module beside this one, and one line in `registry.open_store`.

A method makes one attempt and raises the errors of the store's own library. retries.py decides about another attempt.
Paths are absolute, without the scheme.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol, TypeVar

T = TypeVar("T")


class Attempt(Protocol):
    """Makes a call, and repeats it after an error that may pass."""

    def __call__(self, call: Callable[[], T]) -> T: ...


class Store(ABC):
    """One kind of storage behind fsspec."""

    remote: bool  # every access is a request, and several may run at once
    passing: tuple[type[BaseException], ...]  # the errors that the store's library raises
    fs: Any  # the fsspec filesystem; fsspec has no types

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the filesystem."""
        return getattr(self.fs, method)(*args, **kwargs)

    @abstractmethod
    def final(self, error: BaseException, where: str) -> OSError | None:
        """The error to raise where another attempt cannot help; None where it may. `where` is the URL, for its text."""

    def unreachable(self, error: BaseException) -> str:
        """Where there was no answer at all: the environment variable that holds the store's address. Else ''."""
        return ""

    def no_bucket(self, error: BaseException | None) -> bool:
        """Whether the bucket is missing, and not only the file. `error` is the store's answer, if there is one."""
        return False

    @abstractmethod
    def walk(self, path: str, attempt: Attempt) -> Iterator[tuple[str, int]]:
        """Name, relative to `path`, and size of every file below it; also of hidden ones. No file where no folder is.

        Args:   attempt: makes each request.
        """

    @abstractmethod
    def open(self, path: str, read_range: Callable[[int, int], bytes]) -> IO[bytes]:
        """A file to seek in. `read_range` reads bytes of it from an offset on."""

    @abstractmethod
    def read(self, path: str, limit: int | None) -> bytes:
        """A file's content. Of one with more than `limit` bytes any `limit` + 1."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Publish a file, all or nothing, over an older one."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Publish a file unless it exists. Returns whether this call made it."""

    def list(self, path: str) -> dict[str, int]:
        """Name and size of every file directly in a folder; {} without one."""
        try:
            entries = self.ask("ls", path, detail=True)
        except FileNotFoundError as error:
            if self.no_bucket(error):
                raise
            return {}
        return {
            entry["name"].rsplit("/", 1)[-1]: int(entry["size"] or 0) for entry in entries if entry["type"] == "file"
        }

    def exists(self, path: str) -> bool:
        """Whether a file is there."""
        try:  # not isfile(): it also returns False where the store cannot be asked
            return bool(self.ask("info", path)["type"] == "file")
        except (FileNotFoundError, NotADirectoryError) as error:
            if self.no_bucket(error):
                raise
            return False

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes of a file from `offset` on: fewer where it ends before."""
        return bytes(self.ask("cat_file", path, start=offset, end=offset + size))

    def delete(self, path: str) -> None:
        """Remove a file. Raises FileNotFoundError if there is none, on stores that report it."""
        self.ask("rm_file", path)

    def remove(self, path: str) -> None:
        """Remove an empty folder, where the store has folders."""
        return

    def sweep(self, path: str) -> None:
        """Remove temporary files of crashed writers, where the store has them."""
        return

    def abort_uploads(self, path: str, older_s: float) -> None:
        """Abort uploads below a path that are older and were not completed, where the store keeps them."""
        return
