"""One tar of a folder tree, plain or packed."""

import bz2
import gzip
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO

from pipelines.errors import SourceError
from pipelines.sources.base import (
    OTHER_SPLIT,
    Choice,
    Content,
    Item,
    Source,
    changed,
    folder_label,
    is_image,
    too_large,
)
from pipelines.sources.tar_members import members, read_pieces
from pipelines.storage.folder import Folder

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# Images hardly compress: a larger ratio is an attack on the disk.
MAX_RATIO = 20
ALWAYS_ALLOWED = 1 << 30
_PACKED = (".gz", ".tgz", ".bz2", ".xz")


class TarSource(Source):
    """One tar of a folder tree, plain or packed. An image's class is the name of its folder."""

    def __init__(self, folder: Folder, name: str, choice: Choice) -> None:
        super().__init__()
        self._folder, self._name, self._limit = folder, name, choice.max_bytes
        self._split = f"{choice.split}/" if choice.split else ""
        self._packing = PurePosixPath(name).suffix.lower()
        self._unpacked: IO[bytes] | None = None

    def items(self) -> Iterator[Item]:
        where = f"{self._folder}/{self._name}"
        with self._open() as file:
            for name, offset, size in self.tally.over(members(file, where)):
                if not name.startswith(self._split):
                    self.tally.ignore(OTHER_SPLIT)
                elif is_image(name):
                    yield Item(name, self._name, offset, size, folder_label(name))
                else:
                    self.tally.ignore_file(name)

    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        if self._packing not in _PACKED:
            yield from read_pieces(self._folder, items, self._limit)
            return
        self._unpacked = self._unpacked or self._open()  # a worker unpacks it once
        for item in items:
            if item.size > self._limit:
                yield too_large(item.size, self._limit)
                continue
            self._unpacked.seek(item.offset)
            data = self._unpacked.read(item.size)
            if len(data) != item.size:
                raise changed(f"{self._folder}/{self._name}: {item.name}", f"{len(data):,} of {item.size:,} bytes")
            yield data

    def _open(self) -> IO[bytes]:
        """The tar to seek in. A packed tar is unpacked to a temporary file, within limits."""
        file = self._folder.open(self._name)
        if self._packing not in _PACKED:
            return file
        where = f"{self._folder}/{self._name}"
        allowed = max(ALWAYS_ALLOWED, MAX_RATIO * file.seek(0, 2))
        file.seek(0)
        unpacked = tempfile.TemporaryFile(prefix="ganmill-")  # noqa: SIM115  # this function returns it
        try:
            for data in _unpack(file, self._packing):
                unpacked.write(data)
                if unpacked.tell() > allowed:
                    raise SourceError(f"{where}: unpacks to more than {MAX_RATIO} times its size; is it a bomb?")
                if shutil.disk_usage(tempfile.gettempdir()).free < ALWAYS_ALLOWED:
                    raise SourceError(f"{where}: no room to unpack it in {tempfile.gettempdir()}; set TMPDIR")
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError) as error:
            raise SourceError(f"{where}: damaged: {error}") from error
        unpacked.seek(0)
        return unpacked


def _unpack(file: IO[bytes], packing: str) -> Iterator[bytes]:
    """The unpacked content of a file, in pieces of up to 1 MiB. Several streams may follow each other, then zeros.

    bz2.open and lzma.open ignore any other data after a stream; gzip.open does not.

    Raises: EOFError, OSError, zlib.error or lzma.LZMAError.
    """
    if packing in (".gz", ".tgz"):
        with gzip.open(file) as unzipped:
            yield from iter(lambda: unzipped.read(1 << 20), b"")
        return
    with file:
        waiting = file.read(1 << 20)
        while waiting:
            stream = bz2.BZ2Decompressor() if packing == ".bz2" else lzma.LZMADecompressor()
            while not stream.eof:
                if stream.needs_input and not (waiting := waiting or file.read(1 << 20)):
                    raise EOFError("cut short")
                yield stream.decompress(waiting, 1 << 20)
                waiting = b""
            waiting = stream.unused_data.lstrip(b"\0")
            while not waiting and (data := file.read(1 << 20)):
                waiting = data.lstrip(b"\0")
