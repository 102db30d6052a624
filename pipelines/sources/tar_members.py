"""The members of a tar that may be hostile: names, offsets and sizes, and their contents by range reads.

Nothing is unpacked by its name and nothing is decoded by its ending. Reading stops with an error wherever a tar is not
what it claims to be: what tarfile skips without an error (a damaged header, a tar that was cut between two members)
would be lost images here.
"""

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO

from pipelines.errors import SourceError
from pipelines.images import ImageError
from pipelines.sources.base import Content, Item, ahead, is_junk, too_large
from pipelines.storage.folder import Folder

# Pickles, by the endings with which webdataset's decoders load them. Nothing here reads them. A dataset with one is
# not a dataset of images.
REFUSED_ENDINGS = (".pkl", ".pickle", ".pyd", ".pth", ".pt", ".joblib")
MAX_HEADER_BYTES = 64 << 10  # of a long name or a PAX header
READ_AT_ONCE = 16 << 20  # neighbours in a tar are read by one request, up to this size
_MAGIC = {b"\x1f\x8b": ".tar.gz", b"BZh": ".tar.bz2", b"\xfd7zXZ": ".tar.xz"}


def members(file: IO[bytes], where: str) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each file of a tar, with ustar, GNU or PAX names.

    Raises: SourceError naming the tar and the member: not a tar, damaged, cut short (also between two members), data
            after its end, a link, a device, a name that leads elsewhere, a pickle.
    """
    end = file.seek(0, 2)
    file.seek(0)
    start, last = 0, "its first member"
    long_name, long_size = "", -1
    while True:
        header = file.read(tarfile.BLOCKSIZE)
        if start == 0 and (packed := next((name for magic, name in _MAGIC.items() if header.startswith(magic)), "")):
            raise SourceError(f"{where}: is packed, not a plain tar; rename it to {packed}")
        if len(header) < tarfile.BLOCKSIZE:
            raise SourceError(f"{where}: cut short after {last}: it has no end mark")
        if not any(header):
            if long_name or long_size >= 0:
                raise SourceError(f"{where}: damaged after {last}: a header for a member that is not there")
            _check_end(file, start, where, last)
            return
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise SourceError(f"{where}: damaged after {last}: {error}") from error
        size = long_size if long_size >= 0 and member.isreg() else member.size
        offset = start + tarfile.BLOCKSIZE
        after = offset if member.isdir() else offset + size + -size % tarfile.BLOCKSIZE
        name = long_name or member.name
        if size < 0 or after > end:
            raise SourceError(f"{where}: {name}: declares {size:,} bytes, more than the tar has; cut short?")
        if member.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
            if size > MAX_HEADER_BYTES:
                raise SourceError(f"{where}: a header of {size:,} bytes after {last}")
            data = file.read(size)
            if member.type == tarfile.GNUTYPE_LONGNAME:
                long_name = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif member.type == tarfile.XHDTYPE:
                long_name, long_size = _pax(data, f"{where}: after {last}")
        elif member.isreg() and member.type != tarfile.GNUTYPE_SPARSE:
            _check_name(name, where)
            yield name.removeprefix("./"), offset, size
            last, long_name, long_size = name, "", -1
        elif member.isdir():
            last, long_name, long_size = name, "", -1
        else:
            raise SourceError(f"{where}: {name}: a link, a device or a sparse file; only plain files are read")
        start = after
        file.seek(start)


def _check_end(file: IO[bytes], start: int, where: str, last: str) -> None:
    """Raises SourceError if other data than zeros follow the end mark, where readers of tars stop."""
    file.seek(start)
    while data := file.read(1 << 20):
        if rest := data.lstrip(b"\0"):
            raise SourceError(
                f"{where}: it ends after {last}, at byte {start:,}, but more data follow from byte "
                f"{file.tell() - len(rest):,} on: several tars in one (join them with tar -A, or ingest a folder of "
                "them), or a lost header"
            )


def _pax(data: bytes, where: str) -> tuple[str, int]:
    """Path and size in a PAX header; '' and -1 where it has none."""
    found: dict[bytes, bytes] = {}
    while data:
        try:
            length = int(data.split(b" ", 1)[0])
            keyword, value = data[:length].split(b" ", 1)[1].split(b"=", 1)
            found[keyword] = value.removesuffix(b"\n")
        except (ValueError, IndexError) as error:
            raise SourceError(f"{where}: a damaged PAX header") from error
        if length <= 0:
            raise SourceError(f"{where}: a damaged PAX header")
        data = data[length:]
    if any(keyword.startswith(b"GNU.sparse") for keyword in found):
        raise SourceError(f"{where}: a sparse file; only plain ones are read")
    size = found.get(b"size")
    if size is not None and not size.isdigit():
        raise SourceError(f"{where}: a damaged PAX header")
    return found.get(b"path", b"").decode("utf-8", "surrogateescape"), -1 if size is None else int(size)


def _check_name(name: str, where: str) -> None:
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\0" in name or not name.isprintable():
        raise SourceError(f"{where}: {name!r}: a name that leads elsewhere")
    if name.lower().endswith(REFUSED_ENDINGS) and not is_junk(name):
        raise SourceError(f"{where}: {name}: a pickle is not allowed among images; remove it")


def read_pieces(folder: Folder, items: Sequence[Item], limit: int) -> Iterator[Content]:
    """The contents of items that are byte ranges of files. Neighbours are read by one request."""

    def piece(run: Sequence[Item]) -> list[Content]:
        start = run[0].offset
        if not run[0].size:
            return [ImageError("empty" if start else "no image in the sample")]
        data = folder.read_range(run[0].place, start, run[-1].offset + run[-1].size - start)
        return [data[item.offset - start : item.offset - start + item.size] for item in run]

    def content(run: Sequence[Item]) -> list[Content]:
        return [too_large(run[0].size, limit)] if run[0].size > limit else piece(run)

    runs = list(_runs(items, limit))
    for contents in ahead(content, runs) if folder.remote else map(content, runs):
        yield from contents


def _runs(items: Sequence[Item], limit: int) -> Iterator[list[Item]]:
    """Groups of items that follow each other closely in one file. An empty or too large item is a group of its own."""
    run: list[Item] = []
    for item in items:
        alone = not 0 < item.size <= limit
        if run:
            before = run[-1]
            gap = item.offset - before.offset - before.size
            near = item.place == before.place and 0 <= gap <= 64 << 10
            whole = item.offset + item.size - run[0].offset <= READ_AT_ONCE
            if alone or not near or not whole or not 0 < before.size <= limit:
                yield run
                run = []
        run.append(item)
    if run:
        yield run
