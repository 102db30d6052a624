"""A zip of a folder tree."""

import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import IO

from pipelines.errors import SourceError
from pipelines.images import ImageError
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
from pipelines.storage.folder import Folder, StorageError

_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError)
_HEADER, _END = b"PK\3\4", b"PK\5\6"  # the marks of a file in a zip, and of the record at its end
_TAIL = 22 + (1 << 16)  # that record and the comment behind it
# Between two files of a zip there may be a field of 28 bytes that Info-ZIP writes, and up to 24 bytes after the data. A
# header and the smallest image are longer.
_SLACK = 64
_REMEDY = "repair it (zip -FF), or unpack each and ingest the folder"


class ZipSource(Source):
    """A zip of a folder tree. A worker keeps its directory in memory, some 500 bytes a file."""

    def __init__(self, folder: Folder, name: str, choice: Choice) -> None:
        super().__init__()
        self._where, self._limit = f"{folder}/{name}", choice.max_bytes
        self._split = f"{choice.split}/" if choice.split else ""
        self._file = _SourceFile(folder.open(name), self._where)
        try:
            self._zip = zipfile.ZipFile(self._file)
        except SourceError:
            raise
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise SourceError(f"{self._where}: not a zip file: {error}") from error

    def items(self) -> Iterator[Item]:
        _check_whole(self._zip, self._file, self._where)
        for entry in self.tally.over(entry for entry in self._zip.infolist() if not _path(entry).endswith("/")):
            path = _path(entry)
            if not path.startswith(self._split):
                self.tally.ignore(OTHER_SPLIT)
            elif is_image(path):
                # The checksum as offset: a change of the content is found, also in a zip that was packed again.
                yield Item(entry.filename, entry.filename, entry.CRC, entry.file_size, folder_label(path))
            else:
                self.tally.ignore_file(path)

    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        for item in items:
            entry = self._zip.NameToInfo.get(item.place)
            if entry is None or (entry.CRC, entry.file_size) != (item.offset, item.size):
                raise changed(f"{self._where}: {item.place}", "missing" if entry is None else "another file")
            if item.size > self._limit:
                yield too_large(item.size, self._limit)
                continue
            try:
                with self._zip.open(entry) as file:
                    data = file.read(item.size + 1)  # not more than the declared size: it may be a bomb
                yield data if len(data) == item.size else ImageError("damaged: not of its declared size")
            except _DAMAGED as error:
                yield ImageError(f"damaged: {error}")


class _SourceFile(io.BufferedIOBase):
    """A file whose read errors are SourceErrors. bzip2 also raises OSError, for an image that it cannot unpack."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self._file, self._where = file, where

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        try:
            return self._file.read(-1 if size is None else size)
        except OSError as error:
            raise SourceError(str(error) if isinstance(error, StorageError) else f"{self._where}: {error}") from error


def _path(entry: zipfile.ZipInfo) -> str:
    """An entry's name with `/` between folders. Some programs on Windows write `\\`; unzip handles it too."""
    windows = entry.create_system == 0 and "/" not in entry.filename
    return entry.filename.replace("\\", "/") if windows else entry.filename


def _check_whole(archive: zipfile.ZipFile, file: _SourceFile, where: str) -> None:
    """Raises SourceError for a zip with files that its directory does not list: zipfile ignores them without an error.

    Of several zips in one file, zipfile reads only the directory of the last. A program before a zip, which unpacks it,
    is allowed.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _TAIL))
    tail = file.read()
    at = tail.rfind(_END)
    listed, comment = struct.unpack("<10xH8xH", tail[at : at + 22])
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    if listed not in (0xFFFF, len(entries) % (1 << 16)):  # 0xFFFF: it is elsewhere; old tools count modulo 65,536
        raise SourceError(f"{where}: its directory lists {len(entries):,} files, its end record {listed:,}: damaged")
    rest = tail[at + 22 + comment :]
    if rest.strip(b"\0"):
        raise SourceError(f"{where}: {len(rest):,} bytes follow its end: a second zip, or a damaged one; {_REMEDY}")
    starts = [*(entry.header_offset for entry in entries), archive.start_dir]
    ends = [0, *(_end(file, entry, start) for entry, start in zip(entries, starts[1:], strict=True))]
    for end, start in zip(ends, starts, strict=True):
        if (found := _find_header(file, end, start)) >= 0:
            raise SourceError(
                f"{where}: its directory does not list the file at byte {found:,}: two zips, or damaged; {_REMEDY}"
            )


def _end(file: _SourceFile, entry: zipfile.ZipInfo, following: int) -> int:
    """The end of an entry's data, or a few bytes before it: its header may have fields that the directory lacks."""
    name = entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
    end = entry.header_offset + 30 + len(name) + entry.compress_size
    if following - end > _SLACK:
        file.seek(entry.header_offset + 28)
        end += int.from_bytes(file.read(2), "little")
    return end


def _find_header(file: _SourceFile, start: int, stop: int) -> int:
    """The place of a file's header between two places of a zip; -1 without one."""
    if stop - start <= _SLACK:
        return -1
    file.seek(start)
    data = b""
    while start < stop and (piece := file.read(min(1 << 20, stop - start))):
        data = data[-3:] + piece
        if (at := data.find(_HEADER)) >= 0:
            return start - (len(data) - len(piece)) + at
        start += len(piece)
    return -1
