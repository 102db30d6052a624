"""A list of image paths, in CSV or JSON lines."""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from pipelines.errors import SourceError
from pipelines.images import ImageError
from pipelines.sources.base import Choice, Content, Item, Source, Tally, ahead, find_column, too_large
from pipelines.storage.folder import Folder, MissingError, TooLargeError

MAX_LINE_BYTES = 1 << 20  # of JSON lines
_PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path", "url")
_LABEL_COLUMNS = ("label", "class", "category", "cls")


class ListSource(Source):
    """A CSV file with a header, or JSON lines: a column of paths, and perhaps one of labels.

    Paths are relative to the list's own folder, or to `base`. Absolute paths and URLs must be below it: a hostile list
    must not read other files of this machine.
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
                    raise SourceError(f"{where}: row {number}: has {late}, which row 1 has not; see --label-column")
                path = self._relative(str(row.get(paths) or ""), f"{where}: row {number}")
                label = row.get(labels)
                if isinstance(label, list | dict):
                    raise SourceError(f"{where}: row {number}: its {labels} is no name, but {json.dumps(label)[:80]}")
                yield Item(path, path, label=None if label in (None, "") else str(label))

    def _relative(self, path: str, where: str) -> str:
        base = self._base.url
        full = path if "://" in path or path.startswith("/") else f"{base}/{path}"
        if not path or "\0" in path or ".." in PurePosixPath(full).parts or not full.startswith(f"{base}/"):
            raise SourceError(f"{where}: {path!r} is not below {base}; give the folder of the list's paths with --base")
        return os.path.normpath(full[len(base) + 1 :])

    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        limit = self._choice.max_bytes

        def content(item: Item) -> Content:
            try:
                return self._base.read(item.place, limit)
            except MissingError:
                return ImageError("not found")
            except TooLargeError:
                return too_large(limit + 1, limit)  # the rest was not read

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
            # An unquoted comma would shift a label. Additional empty fields are harmless.
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
