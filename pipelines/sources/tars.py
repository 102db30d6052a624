"""Tars from strangers: an archive of a folder tree, or WebDataset shards as img2dataset and others write them.

Nothing is unpacked by name, nothing is decoded by its ending, and the walk stops with an error wherever a tar is not
what it seems: what tarfile leaves out in silence (a damaged header, a tar that was cut between two members) is lost
images here.
"""

import bz2
import gzip
import json
import lzma
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO

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
    folder_label,
    is_image,
    is_junk,
    of_split,
    too_large,
)
from pipelines.storage.folder import Folder

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# Pickles, by the endings that webdataset's decoders load them by. They are not read here either way; a dataset that
# brings some is not one of images.
REFUSED_ENDINGS = (".pkl", ".pickle", ".pyd", ".pth", ".pt", ".joblib")
MAX_HEADER_BYTES = 64 << 10  # of a long name or a PAX header
MAX_LABEL_BYTES = 1 << 20  # of a .cls or .json member
# Images hardly shrink; what unpacks to more than this is made to fill a disk.
MAX_RATIO = 20
ALWAYS_ALLOWED = 1 << 30
READ_AT_ONCE = 16 << 20  # neighbours in a tar are read by one request, up to this many bytes
_PACKED = (".gz", ".tgz", ".bz2", ".xz")
_MAGIC = {b"\x1f\x8b": ".tar.gz", b"BZh": ".tar.bz2", b"\xfd7zXZ": ".tar.xz"}


class TarSource(Source):
    """One tar of a folder tree, packed or not. Its innermost folders are the classes."""

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
        """The tar to seek in: a packed one is unpacked to a temporary file, within limits."""
        file = self._folder.open(self._name)
        if self._packing not in _PACKED:
            return file
        where = f"{self._folder}/{self._name}"
        allowed = max(ALWAYS_ALLOWED, MAX_RATIO * file.seek(0, 2))
        file.seek(0)
        unpacked = tempfile.TemporaryFile(prefix="ganmill-")  # noqa: SIM115  # it is what this returns
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
    """What is packed in a file, in pieces of up to 1 MiB. Several streams follow each other, zeros may follow the last.

    bz2.open and lzma.open pass over whatever else follows a stream; gzip.open does not.

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


class WebDatasetSource(Source):
    """A folder of tars with samples: members of one name and several endings. A tar's samples are read together.

    Labels come from the `.cls` members, or from the field `label_column` of the `.json` members.
    """

    def __init__(self, folder: Folder, choice: Choice) -> None:
        super().__init__()
        self._folder, self._choice = folder, choice
        self._label_ending = "json" if choice.label_column else "cls"

    def items(self) -> Iterator[Item]:
        names = []
        for name, _ in self._folder.walk(hidden=True):
            if name.lower().endswith(TAR_ENDINGS) and not is_junk(name):
                names.append(name)
            else:
                self.tally.listed += 1
                self.tally.ignore_file(name)
        if packed := sorted(name for name in names if not name.lower().endswith(".tar")):
            raise SourceError(f"{self._folder}/{packed[0]}: shards must be plain .tar; unpack them first")
        names = of_split(names, self._choice.split, str(self._folder), self.tally)
        # Some tars are looked through at once: on a store each is a row of requests.
        for found, tally in ahead(self._samples, names, at_once=4):
            self.tally.add(tally)
            yield from found

    def _samples(self, tar: str) -> tuple[list[Item], Tally]:
        """A tar's items, and what of its members is neither one nor a label."""
        where, tally = f"{self._folder}/{tar}", Tally()
        items: list[Item] = []
        with self._folder.open(tar) as file:
            sample: dict[str, tuple[int, int]] = {}
            last, seen = "", set[str]()
            for name, offset, size in members(file, where):
                stem, _, ending = name.rpartition("/")[2].partition(".")
                key = f"{name.rpartition('/')[0]}/{stem}"
                if key != last:
                    items += self._images(file, tar, last, sample, tally)
                    if key in seen:
                        raise SourceError(f"{where}: {name}: its key came before: keys must be unique in a shard")
                    seen.add(key)
                    last, sample = key, {}
                if ending in sample:
                    raise SourceError(f"{where}: {name}: is there twice")
                sample[ending] = (offset, size)
            items += self._images(file, tar, last, sample, tally)
        return items, tally

    def _images(
        self, file: IO[bytes], tar: str, key: str, sample: dict[str, tuple[int, int]], tally: Tally
    ) -> Iterator[Item]:
        if not sample:
            return
        stem = key.lstrip("/")
        label = self._label(file, f"{self._folder}/{tar}: {stem}", sample)
        images = [ending for ending in sample if is_image(f"x.{ending}")]
        for ending in tally.over(images):
            yield Item(f"{tar}/{stem}.{ending}", tar, *sample[ending], label, tar)
        for ending in tally.over(e for e in sample if e not in images and e.lower() != self._label_ending):
            tally.ignore_file(f"{stem}.{ending}")
        if not images:
            tally.listed += 1
            yield Item(f"{tar}/{stem}", tar, 0, 0, label, tar)  # a reject, and not a silence

    def _label(self, file: IO[bytes], where: str, sample: dict[str, tuple[int, int]]) -> str | None:
        column = self._choice.label_column
        found = [ending for ending in sample if ending.lower() == self._label_ending]
        if not found:
            return None
        if len(found) > 1:
            raise SourceError(f"{where}: two labels, .{found[0]} and .{found[1]}")
        offset, size = sample[found[0]]
        if size > MAX_LABEL_BYTES:
            raise SourceError(f"{where}: a label of {size:,} bytes; up to {MAX_LABEL_BYTES:,} are read")
        at = file.tell()
        file.seek(offset)
        data = file.read(size)
        file.seek(at)
        try:
            value = json.loads(data).get(column) if column else data.decode().strip()
        except (ValueError, AttributeError, RecursionError) as error:
            raise SourceError(f"{where}: its label cannot be read: {error}") from error
        return None if value in (None, "") else str(value)

    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        return read_pieces(self._folder, items, self._choice.max_bytes)


def members(file: IO[bytes], where: str) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each file of a tar. ustar, GNU and PAX names are known.

    Raises: SourceError naming the tar and the member: not a tar, damaged, cut short (also between two members), with
            more behind its end, a link, a device, a name that leads elsewhere, a pickle.
    """
    end = file.seek(0, 2)
    file.seek(0)
    start, last = 0, "its first member"
    long_name, long_size = "", -1
    while True:
        header = file.read(tarfile.BLOCKSIZE)
        if start == 0 and (packed := next((name for magic, name in _MAGIC.items() if header.startswith(magic)), "")):
            raise SourceError(f"{where}: is packed, not a plain tar; call it {packed}")
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
            raise SourceError(f"{where}: {name}: says that it has {size:,} bytes, which the tar has not; cut short?")
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
    """Raises SourceError if anything but zeros follows the end mark: tar's readers stop there, and never see it."""
    file.seek(start)
    while data := file.read(1 << 20):
        if rest := data.lstrip(b"\0"):
            raise SourceError(
                f"{where}: after {last} it ends, at byte {start:,}, but more follows from byte "
                f"{file.tell() - len(rest):,} on: several tars in one (join them with tar -A, or ingest a folder of "
                "them), or a header that is lost"
            )


def _pax(data: bytes, where: str) -> tuple[str, int]:
    """Path and size out of a PAX header; '' and -1 where it has none."""
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
        raise SourceError(f"{where}: {name}: a pickle has no place among images; take it out")


def read_pieces(folder: Folder, items: Sequence[Item], limit: int) -> Iterator[Content]:
    """The contents of items that are byte ranges of files, neighbours by one request."""

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
    """Items that follow each other closely in one file; what is empty or too large stands alone."""
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
