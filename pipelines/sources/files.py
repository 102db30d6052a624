"""Images as files: a folder tree, a zip of one, or a list of paths in CSV or JSON lines."""

import csv
import io
import json
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO, Any

from pipelines.images import ImageError
from pipelines.sources.base import (
    OTHER_SPLIT,
    Choice,
    Content,
    Item,
    Source,
    SourceError,
    Tally,
    ahead,
    changed,
    find_column,
    folder_label,
    is_image,
    too_large,
)
from pipelines.storage.folder import Folder, MissingError, StorageError, TooLargeError

MAX_LINE_BYTES = 1 << 20  # of JSON lines
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError)
_HEADER, _END = b"PK\3\4", b"PK\5\6"  # of a file in a zip, and of the record at its end
_TAIL = 22 + (1 << 16)  # that record and the comment behind it
# Between two files of a zip may lie a field of 28 bytes that Info-ZIP writes, and up to 24 that follow the data. A
# header and the smallest image have more.
_SLACK = 64
_TODO = "repair it (zip -FF), or unpack each and ingest the folder"
_PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path", "url")
_LABEL_COLUMNS = ("label", "class", "category", "cls")


class FolderSource(Source):
    """A folder tree, local or on an object store. Its innermost folders are the classes."""

    def __init__(self, folder: Folder, choice: Choice) -> None:
        super().__init__()
        self._folder = folder / choice.split if choice.split else folder
        self._limit = choice.max_bytes

    def items(self) -> Iterator[Item]:
        for name, size in self.tally.over(self._folder.walk(hidden=True)):
            if is_image(name):
                yield Item(name, name, size=size, label=folder_label(name))
            else:
                self.tally.ignore_file(name)

    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        return ahead(self._content, items) if self._folder.remote else map(self._content, items)

    def _content(self, item: Item) -> Content:
        if item.size < 0:
            return ImageError("not found: a link to nothing, or no regular file")
        if item.size > self._limit:
            return too_large(item.size, self._limit)
        where = f"{self._folder}/{item.place}"
        try:
            data = self._folder.read(item.place, limit=item.size)
        except MissingError as error:
            raise changed(where, "gone") from error
        except TooLargeError as error:
            raise changed(where, f"more than the {item.size:,} bytes that it had") from error
        if len(data) != item.size:
            raise changed(where, f"{len(data):,} bytes, of {item.size:,} that it had")
        return data


class ZipSource(Source):
    """A zip of a folder tree. A worker holds its table of contents, some 500 bytes a file."""

    def __init__(self, folder: Folder, name: str, choice: Choice) -> None:
        super().__init__()
        self._where, self._limit = f"{folder}/{name}", choice.max_bytes
        self._split = f"{choice.split}/" if choice.split else ""
        self._file = _Sure(folder.open(name), self._where)
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
                # Its checksum stands for its content: a zip that was packed anew is seen to have changed.
                yield Item(entry.filename, entry.filename, entry.CRC, entry.file_size, folder_label(path))
            else:
                self.tally.ignore_file(path)

    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        for item in items:
            entry = self._zip.NameToInfo.get(item.place)
            if entry is None or (entry.CRC, entry.file_size) != (item.offset, item.size):
                raise changed(f"{self._where}: {item.place}", "gone" if entry is None else "another file")
            if item.size > self._limit:
                yield too_large(item.size, self._limit)
                continue
            try:
                with self._zip.open(entry) as file:
                    data = file.read(item.size + 1)  # never more than was declared, whatever it unpacks to
                yield data if len(data) == item.size else ImageError("damaged: not of its declared size")
            except _DAMAGED as error:
                yield ImageError(f"damaged: {error}")


class _Sure(io.BufferedIOBase):
    """A file whose own errors are no OSError: bzip2's are one too, and of an image that it cannot unpack."""

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
    """An entry's name with `/` between folders: on Windows some write `\\`, as unzip knows too."""
    windows = entry.create_system == 0 and "/" not in entry.filename
    return entry.filename.replace("\\", "/") if windows else entry.filename


def _check_whole(archive: zipfile.ZipFile, file: _Sure, where: str) -> None:
    """Raises SourceError for a zip with files that its directory does not list: zipfile passes over them in silence.

    Of zips that were written one after the other it reads the last one's directory alone. A program that stands before
    a zip, to unpack it, is no file of it.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _TAIL))
    tail = file.read()
    at = tail.rfind(_END)
    listed, comment = struct.unpack("<10xH8xH", tail[at : at + 22])
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    if listed not in (0xFFFF, len(entries) % (1 << 16)):  # 0xFFFF: it stands elsewhere; old tools count modulo 65,536
        raise SourceError(f"{where}: its directory lists {len(entries):,} files, its end says {listed:,}: damaged")
    rest = tail[at + 22 + comment :]
    if rest.strip(b"\0"):
        raise SourceError(f"{where}: {len(rest):,} bytes follow its end: a second zip, or a damaged one; {_TODO}")
    starts = [*(entry.header_offset for entry in entries), archive.start_dir]
    ends = [0, *(_end(file, entry, start) for entry, start in zip(entries, starts[1:], strict=True))]
    for end, start in zip(ends, starts, strict=True):
        if (found := _find_header(file, end, start)) >= 0:
            raise SourceError(
                f"{where}: its directory does not list the file at byte {found:,}: two zips in one, or damaged; {_TODO}"
            )


def _end(file: _Sure, entry: zipfile.ZipInfo, following: int) -> int:
    """Where an entry's data end, or a few bytes before: its header has fields that the directory has not."""
    name = entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
    end = entry.header_offset + 30 + len(name) + entry.compress_size
    if following - end > _SLACK:
        file.seek(entry.header_offset + 28)
        end += int.from_bytes(file.read(2), "little")
    return end


def _find_header(file: _Sure, start: int, stop: int) -> int:
    """Where a file's header begins between two places of a zip; -1 if none does."""
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


class ListSource(Source):
    """A CSV file with a header, or JSON lines: a column of paths, and one of labels perhaps.

    Paths are relative to the list's own folder, or to `base`; absolute ones and URLs must lie below it. A list from a
    stranger shall not read what else is on this machine.
    """

    def __init__(self, folder: Folder, name: str, choice: Choice) -> None:
        super().__init__()
        self._folder, self._name, self._choice = folder, name, choice
        self._base = Folder(choice.base) if choice.base else folder

    def items(self) -> Iterator[Item]:
        where, wanted = f"{self._folder}/{self._name}", self._choice.label_column
        with self._folder.open(self._name) as file:
            rows = _csv if self._name.lower().endswith(".csv") else _json_lines
            paths = labels = ""
            for number, row in enumerate(self.tally.over(rows(file, where, self.tally)), 1):
                if number == 1:
                    paths = _column(row, self._choice.image_column, _PATH_COLUMNS, where, "--image-column")
                    labels = _column(row, wanted, _LABEL_COLUMNS, where, "--label-column", needed=bool(wanted))
                if not labels and (late := find_column(row, _LABEL_COLUMNS)):
                    raise SourceError(f"{where}: row {number}: has {late}, which row 1 has not; say --label-column")
                path = self._relative(str(row.get(paths) or ""), f"{where}: row {number}")
                label = row.get(labels)
                if isinstance(label, list | dict):
                    raise SourceError(f"{where}: row {number}: its {labels} is no name, but {json.dumps(label)[:80]}")
                yield Item(path, path, label=None if label in (None, "") else str(label))

    def _relative(self, path: str, where: str) -> str:
        base = self._base.url
        full = path if "://" in path or path.startswith("/") else f"{base}/{path}"
        if not path or "\0" in path or ".." in PurePosixPath(full).parts or not full.startswith(f"{base}/"):
            raise SourceError(
                f"{where}: {path!r} does not lie below {base}; say with --base where the paths of the list start"
            )
        return os.path.normpath(full[len(base) + 1 :])

    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        limit = self._choice.max_bytes

        def content(item: Item) -> Content:
            try:
                return self._base.read(item.place, limit)
            except MissingError:
                return ImageError("not found")
            except TooLargeError:
                return too_large(limit + 1, limit)  # no more of it is read

        return ahead(content, items) if self._base.remote else map(content, items)


def _csv(file: Any, where: str, tally: Tally) -> Iterator[dict[str, Any]]:
    try:
        rows = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)
        header = next(rows, [])
        if twice := sorted(name for name in {*header} if name and header.count(name) > 1):
            raise SourceError(f"{where}: {twice[0]} names two of its columns")
        number = 0
        for fields in rows:
            if not fields:
                tally.listed += 1
                tally.ignore("blank lines")
                continue
            number += 1
            # An unquoted comma would shift a label; what a row has more or less and says nothing is harmless.
            if len(fields) < len(header) or any(fields[len(header) :]):
                raise SourceError(f"{where}: row {number}: has {len(fields)} fields, its header {len(header)}")
            yield dict(zip(header, fields, strict=False))
    except (csv.Error, UnicodeDecodeError) as error:
        raise SourceError(f"{where}: not a CSV file with a header: {error}") from error


def _json_lines(file: Any, where: str, tally: Tally) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
        if len(line) > MAX_LINE_BYTES:
            raise SourceError(f"{where}: line {number} has more than {MAX_LINE_BYTES:,} bytes")
        if not line.strip():
            tally.listed += 1
            tally.ignore("blank lines")
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{where}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise SourceError(f"{where}: line {number} is not a JSON object")
        yield row


def _column(
    row: dict[str, Any], wanted: str | None, usual: Sequence[str], where: str, flag: str, needed: bool = True
) -> str:
    """The name of a column: as asked, else the first of the usual names; '' if there is none and none is needed."""
    found = (wanted if wanted in row else "") if wanted else find_column(row, usual)
    if needed and not found:
        raise SourceError(
            f"{where}: no column {wanted or ' or '.join(usual[:3])}; it has {', '.join(map(str, row))}; see {flag}"
        )
    return found
