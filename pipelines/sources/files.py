"""Images as files: a folder tree, a zip of one, or a list of paths in CSV or JSON lines."""

import csv
import io
import json
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from pipelines.images import ImageError
from pipelines.sources.base import (
    Choice,
    Content,
    Item,
    Source,
    SourceError,
    ahead,
    folder_label,
    is_image,
    too_large,
)
from pipelines.storage import Folder, MissingError

_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError)
_PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path", "url")
_LABEL_COLUMNS = ("label", "class", "category", "cls")


class FolderSource(Source):
    """A folder tree, local or on an object store. Its innermost folders are the classes."""

    def __init__(self, folder: Folder, choice: Choice) -> None:
        self._folder = folder / choice.split if choice.split else folder
        self._limit = choice.max_bytes

    def items(self) -> Iterator[Item]:
        for name, size in self._folder.walk():
            if is_image(name):
                yield Item(name, name, size=size, label=folder_label(name))

    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        def content(item: Item) -> Content:
            return too_large(item.size, self._limit) if item.size > self._limit else self._folder.read(item.place)

        return ahead(content, items) if self._folder.remote else map(content, items)


class ZipSource(Source):
    """A zip of a folder tree. A worker holds its table of contents, some 500 bytes a file."""

    def __init__(self, folder: Folder, name: str, choice: Choice) -> None:
        self._where, self._limit = f"{folder}/{name}", choice.max_bytes
        self._split = f"{choice.split}/" if choice.split else ""
        try:
            self._zip = zipfile.ZipFile(folder.open(name))
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise SourceError(f"{self._where}: not a zip file: {error}") from error

    def items(self) -> Iterator[Item]:
        for entry in self._zip.infolist():
            name = entry.filename
            if not entry.is_dir() and is_image(name) and name.startswith(self._split):
                # Its checksum stands for its content: a zip that was packed anew is seen to have changed.
                yield Item(name, name, entry.CRC, entry.file_size, folder_label(name))

    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        for item in items:
            if item.size > self._limit:
                yield too_large(item.size, self._limit)
                continue
            try:
                with self._zip.open(item.name) as file:
                    data = file.read(item.size + 1)  # never more than was declared, whatever it unpacks to
                yield data if len(data) == item.size else ImageError("damaged: not of its declared size")
            except _DAMAGED as error:
                yield ImageError(f"damaged: {error}")


class ListSource(Source):
    """A CSV file with a header, or JSON lines: a column of paths, and one of labels perhaps.

    Paths are relative to the list's own folder, or to `base`; absolute ones and URLs must lie below it. A list from a
    stranger shall not read what else is on this machine.
    """

    def __init__(self, folder: Folder, name: str, choice: Choice) -> None:
        self._folder, self._name, self._choice = folder, name, choice
        self._base = Folder(choice.base) if choice.base else folder

    def items(self) -> Iterator[Item]:
        where = f"{self._folder}/{self._name}"
        with self._folder.open(self._name) as file:
            rows = _json_lines(file, where) if self._name.endswith(("l", "ndjson")) else _csv(file, where)
            path_column = label_column = ""
            for number, row in enumerate(rows, 1):
                if number == 1:
                    path_column = _column(row, self._choice.image_column, _PATH_COLUMNS, where, "--image-column")
                    wanted = self._choice.label_column
                    label_column = _column(row, wanted, _LABEL_COLUMNS, where, "--label-column", needed=bool(wanted))
                path = self._relative(str(row.get(path_column) or ""), f"{where}: row {number}")
                label = row.get(label_column)
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
                with self._base.open(item.place) as file:
                    data = file.read(limit + 1)
            except MissingError:
                return ImageError("not found")
            return too_large(len(data), limit) if len(data) > limit else data

        return ahead(content, items) if self._base.remote else map(content, items)


def _csv(file: Any, where: str) -> Iterator[dict[str, Any]]:
    try:
        yield from csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)
    except (csv.Error, UnicodeDecodeError) as error:
        raise SourceError(f"{where}: not a CSV file with a header: {error}") from error


def _json_lines(file: Any, where: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(iter(lambda: file.readline(1 << 20), b""), 1):
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
    found = wanted if wanted in row else next((name for name in usual if name in row and not wanted), "")
    if needed and not found:
        raise SourceError(
            f"{where}: no column {wanted or ' or '.join(usual[:3])}; it has {', '.join(map(str, row))}; see {flag}"
        )
    return found or ""
