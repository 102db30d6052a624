"""The one door to storage: a folder under any fsspec URL, with bounded reads and writes that publish all or nothing.

Endpoint, region and credentials come from the environment variables that the store's own library reads
(docs/storage.md lists them), never from data. Each store is a module beside this one; registry.py lists them.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, TypeVar

from pipelines.storage import retries
from pipelines.storage.errors import MissingError, StorageError, TooLargeError, UnreachableError
from pipelines.storage.registry import normalise, open_store, split

__all__ = ["Folder", "MissingError", "StorageError", "TooLargeError", "UnreachableError", "normalise"]

T = TypeVar("T")

DAY_S = 86_400.0


class Folder:
    """A folder of files in one store. Names are relative, with `/`; a file's content is bytes."""

    def __init__(self, url: str) -> None:
        """Raises StorageError for a scheme that is not allowed or a URL that carries credentials."""
        self.url = normalise(url)
        self._path = split(self.url)[1]
        self.store = open_store(self.url)

    def __str__(self) -> str:
        return self.url

    @property
    def remote(self) -> bool:
        """Whether every access is a request, and several may run at once."""
        return self.store.remote

    def __truediv__(self, name: str) -> "Folder":
        self._at(name)
        return Folder(f"{self.url}/{name}")

    def __reduce__(self) -> tuple[type["Folder"], tuple[str]]:
        return Folder, (self.url,)  # a process opens its own connections

    def list(self, name: str = "") -> dict[str, int]:
        """The files directly in folder `name`, with their sizes in bytes; {} without one. Hidden files are left out."""
        path = self._at(name).rstrip("/") or "/"
        found = self._try(lambda: self.store.list(path), name)
        return {file: size for file, size in found.items() if not file.startswith(".")}

    def tree(self) -> dict[str, int]:
        """Every file below the folder, by its relative name, with sizes in bytes. Hidden files are left out."""
        return dict(self.walk())

    def walk(self, hidden: bool = False) -> Iterator[tuple[str, int]]:
        """As tree(), but one file at a time and in no order: memory does not grow with the number of files.

        The size is -1 for a name without a file: a link to nothing, a pipe.

        Args:   hidden: include hidden files, and the names of hidden local folders, as `.git/`. Files in a hidden local
                folder are never listed.
        Raises: StorageError for a folder that cannot be read, and for a link to a folder, which is not followed: the
                files behind them would be missing.
        """

        def attempt(call: Callable[[], T]) -> T:
            return self._try(call, "")

        for name, size in self.store.walk(self._path, attempt):
            if hidden or not any(part.startswith(".") for part in name.split("/")):
                yield name, size

    def open(self, name: str) -> IO[bytes]:
        """A file to seek in, read piece by piece. Raises MissingError if there is no such file."""
        return self._try(lambda: self.store.open(self._at(name), partial(self.read_range, name)), name)

    def read(self, name: str, limit: int | None = None) -> bytes:
        """A file's whole content.

        Args:   limit: the most bytes that it may have; more are not read.
        Raises: MissingError if there is no such file; TooLargeError.
        """
        data = self._try(lambda: self.store.read(self._at(name), limit), name)
        if limit is not None and len(data) > limit:
            raise TooLargeError(f"{self.url}/{name}: larger than {limit:,} bytes, the limit for this file")
        return data

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes of a file from `offset` on, without reading the rest. Raises StorageError if it has fewer."""
        data = self._try(lambda: self.store.read_range(self._at(name), offset, size), name)
        if len(data) != size:
            raise StorageError(
                f"{self.url}/{name}: {len(data)} bytes from {offset} on, not {size}: the file is cut short"
            )
        return data

    def exists(self, name: str) -> bool:
        """Whether the file is there. Costs one request, and never trusts a cached listing."""
        return self._try(lambda: self.store.exists(self._at(name)), name)

    def write(self, name: str, data: bytes) -> None:
        """Publish a file, all or nothing, over an older one of that name."""
        self._try(lambda: self.store.write(self._at(name), data), name)

    def create(self, name: str, data: bytes) -> bool:
        """Publish a small file unless one of that name exists. Returns whether this call made it.

        Of several callers at once exactly one gets True: a hard link locally, a conditional PUT on object stores. False
        can also mean that an attempt of this call made the file and the answer was lost: compare the content.
        """
        return self._try(lambda: self.store.create(self._at(name), data), name)

    def delete(self, name: str) -> None:
        """Remove a file, if it exists. A local folder that this empties goes too, as on an object store."""
        path = self._at(name)

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.store.delete(path)

        self._try(remove, name)

    def remove(self, name: str) -> None:
        """Remove an empty folder. Object stores have none."""
        self.store.remove(self._at(name))

    def sweep(self, name: str) -> None:
        """Remove the temporary files that crashed writers left in folder `name`. Only a local folder can have any."""
        self.store.sweep(self._at(name))

    def abort_uploads(self, older_s: float = DAY_S) -> None:
        """Abort the uploads below this folder that crashed writers did not complete. Only S3 keeps their parts.

        A younger upload may be another writer's. Where the store refuses, nothing happens: a lifecycle rule of the
        bucket has the same effect.
        """
        with contextlib.suppress(OSError):
            self._try(lambda: self.store.abort_uploads(self._path, older_s), "")

    def _at(self, name: str) -> str:
        """The path of a file. Raises StorageError for a name that leads out of the folder: names may come from data."""
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise StorageError(f"{self.url}: {name!r} is not a name below this folder")
        return f"{self._path}/{name}"

    def _try(self, call: Callable[[], T], name: str) -> T:
        return retries.attempt(self.store, call, f"{self.url}/{name}".rstrip("/"))
