"""Shards: WebDataset tars whose bytes depend on their samples alone, and a strict reader for them.

A shard is plain ustar with mtime, uid and gid 0 and its members in order: `KEY.png`, then `KEY.cls` where there are
classes. The bytes equal those of tarfile in USTAR_FORMAT, at six times its rate: tarfile formats one header, and then
only name, size and checksum are filled in.
"""

import hashlib
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.errors import CorruptError

BLOCK = tarfile.BLOCKSIZE
EXTENSIONS = ("png", "jpg", "webp")  # of images in a shard
_NAME = re.compile(rb"[0-9]{12}\.(?:png|jpg|webp|cls)")
_LABEL = re.compile(rb"[0-9]{1,9}")
_TEMPLATE = tarfile.TarInfo().tobuf(format=tarfile.USTAR_FORMAT)
# The checksum counts its own field as eight spaces. The digits of the size are added later.
_CHECKSUM = sum(_TEMPLATE[:124]) + sum(_TEMPLATE[136:148]) + sum(_TEMPLATE[156:]) + 8 * ord(" ")
# A header as `pack` writes it: name, size in octal and checksum, and the template around them. All other fields have a
# fixed length, so a match of 512 bytes means that the name is padded to 100.
_HEADER = re.compile(
    b"(%s)\0+" % _NAME.pattern
    + re.escape(_TEMPLATE[100:124])
    + b"([0-7]{11})"
    + re.escape(_TEMPLATE[135:148])
    + b"(.{7})"
    + re.escape(_TEMPLATE[155:]),
    re.DOTALL,
)


class ShardError(CorruptError):
    """A shard with wrong content."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image on its way into or out of a shard."""

    index: int
    image: bytes
    label: int | None


@dataclass(frozen=True, slots=True)
class Packed:
    """A shard's bytes, and the place of each image in them."""

    data: bytes
    index: list[int]
    offset: list[int]
    size: list[int]
    sha256: list[bytes]
    label: list[int | None]


def key(index: int) -> str:
    """A sample's name: its global index as 12 digits."""
    return f"{index:012d}"


def pack(samples: Iterable[Sample], extension: str) -> Packed:
    """Write samples, in the order given, as one tar in memory. `extension` is the images' file ending, as `png`."""
    tar = bytearray()
    packed = Packed(b"", [], [], [], [], [])
    for sample in samples:
        packed.index.append(sample.index)
        packed.label.append(sample.label)
        packed.offset.append(len(tar) + BLOCK)
        packed.size.append(len(sample.image))
        packed.sha256.append(hashlib.sha256(sample.image).digest())
        _append(tar, f"{key(sample.index)}.{extension}", sample.image)
        if sample.label is not None:
            _append(tar, f"{key(sample.index)}.cls", b"%d" % sample.label)
    tar += bytes(2 * BLOCK)
    tar += bytes(-len(tar) % tarfile.RECORDSIZE)
    return Packed(bytes(tar), packed.index, packed.offset, packed.size, packed.sha256, packed.label)


def unpack(data: bytes, where: str) -> Iterator[Sample]:
    """The samples of one of our own shards, grouped by webdataset's rules. `where` is the shard's URL, for errors.

    `data` must have been checked against the dataset's index: a tar cut between two members reads without error.
    Raises ShardError, naming the member, for any content that `pack` does not write.
    """
    os.environ.setdefault("WDS_SECURE", "1")  # read once, when webdataset is imported
    from webdataset.tariterators import group_by_keys  # imports torch, which whoever only writes shards does not need

    last = -1
    try:
        for sample in group_by_keys(_members(data, where)):
            index, label = int(sample["__key__"]), sample.get("cls")
            found = [sample[extension] for extension in EXTENSIONS if extension in sample]
            if len(found) != 1:
                raise ShardError(f"{where}: sample {sample['__key__']} has {len(found) or 'no'} images")
            if index <= last:
                raise ShardError(f"{where}: sample {sample['__key__']} is there twice, or out of order")
            last = index
            yield Sample(index, found[0], None if label is None else int(label))
    except ValueError as error:
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"{where}: {error}") from error


def _members(data: bytes, where: str) -> Iterator[dict[str, Any]]:
    """The files of a shard, as webdataset's readers give them, five times as fast as with tarfile.

    Any header that `pack` would not write is refused: links, devices, extended headers, paths, other kinds of file.
    """
    if not data or len(data) % tarfile.RECORDSIZE:
        raise ShardError(f"{where}: not a plain ustar file")
    start = 0
    while any(header := data[start : start + BLOCK]):  # a block of zeros ends it
        ours = _HEADER.fullmatch(header)
        if not ours or ours[3] != _checksum(ours[1], ours[2]):
            raise ShardError(f"{where}: {_stranger(header)}")
        name, size = ours[1].decode(), int(ours[2], 8)
        content = data[start + BLOCK : start + BLOCK + size]
        if len(content) != size:
            raise ShardError(f"{where}: member {name!r}: {size:,} bytes declared, {len(content):,} there: cut short")
        if name.endswith(".cls") and not _LABEL.fullmatch(content):
            raise ShardError(f"{where}: member {name!r}: not a class's number")
        yield {"fname": name, "data": content, "__url__": where}
        start += BLOCK + size + -size % BLOCK
    if data[start:].strip(b"\0"):
        raise ShardError(f"{where}: data follows its end")


def _stranger(header: bytes) -> str:
    """The defect of a header that `pack` did not write."""
    name = header[:100].rstrip(b"\0").decode("latin-1")
    if header[257:262] != b"ustar":
        return "not a plain ustar file"
    if not _NAME.fullmatch(header[:100].rstrip(b"\0")):
        return f"member {name!r}: not a sample's, which is 12 digits and .png, .jpg, .webp or .cls"
    return f"member {name!r}: not a plain file as ganmill writes it"


def _checksum(name: bytes, octal: bytes) -> bytes:
    return b"%06o\0" % (_CHECKSUM + sum(name) + sum(octal))


def _append(tar: bytearray, name: str, data: bytes) -> None:
    octal = b"%011o" % len(data)
    header = bytearray(_TEMPLATE)
    header[: len(name)] = name.encode("ascii")
    header[124:135] = octal
    header[148:155] = _checksum(name.encode("ascii"), octal)
    tar += header
    tar += data
    tar += bytes(-len(data) % BLOCK)
