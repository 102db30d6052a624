"""Shards: the same samples give the same bytes, any tar program reads them, and nothing else is taken for one."""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipelines.dataset import shards
from pipelines.dataset.shards import Sample, ShardError

# around every border of a tar's 512-byte blocks and 10,240-byte records
SIZES = (0, 1, 511, 512, 513, 1023, 1024, 4000, 9 * 512, 20_481)
LABELS = {"labels": lambda n: n % 11, "no labels": lambda n: None, "some labels": lambda n: n if n % 3 else None}


def make(labels: str, count: int = len(SIZES), start: int = 0) -> list[Sample]:
    rng = np.random.default_rng(7)
    return [
        Sample(start + n, rng.integers(0, 256, SIZES[n % len(SIZES)], np.uint8).tobytes(), LABELS[labels](n))
        for n in range(count)
    ]


def by_tarfile(members: list[tuple[str, bytes]], **options: int) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", **{"format": tarfile.USTAR_FORMAT, **options}) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def members(samples: list[Sample]) -> list[tuple[str, bytes]]:
    found = []
    for sample in samples:
        found.append((f"{sample.index:012d}.png", sample.image))
        if sample.label is not None:
            found.append((f"{sample.index:012d}.cls", str(sample.label).encode()))
    return found


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("count", [0, 1, 2, len(SIZES), 64])
def test_the_bytes_are_those_of_tarfile(labels: str, count: int) -> None:
    samples = make(labels, count)
    packed = shards.pack(samples, "png")
    assert packed.data == by_tarfile(members(samples))
    assert len(packed.data) % tarfile.RECORDSIZE == 0


@pytest.mark.parametrize("labels", LABELS)
def test_gnu_tar_lists_and_unpacks_it(labels: str, tmp_path: Path) -> None:
    samples = make(labels, start=999_999_999_990)
    (tmp_path / "x.tar").write_bytes(shards.pack(samples, "png").data)
    clock = {**os.environ, "TZ": "UTC", "LC_ALL": "C"}
    command = ["tar", "--numeric-owner", "-tvf", "x.tar"]
    listed = subprocess.run(command, cwd=tmp_path, env=clock, capture_output=True, text=True, check=True)
    assert listed.stderr == ""
    assert [line.split() for line in listed.stdout.splitlines()] == [
        ["-rw-r--r--", "0/0", str(len(data)), "1970-01-01", "00:00", name] for name, data in members(samples)
    ]
    subprocess.run(["tar", "-xf", "x.tar"], cwd=tmp_path, check=True)
    (tmp_path / "x.tar").unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict(members(samples))


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("count", [0, 1, len(SIZES)])
@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_what_was_packed_is_unpacked(labels: str, count: int, extension: str) -> None:
    samples = make(labels, count)
    assert list(shards.unpack(shards.pack(samples, extension).data, "x.tar")) == samples


def test_the_same_samples_give_the_same_bytes_and_any_other_sample_gives_others() -> None:
    samples = make("labels")
    data = shards.pack(iter(samples), "png").data
    assert shards.pack(make("labels"), "png").data == data
    last = samples[-1]
    for other in (
        Sample(last.index + 1, last.image, last.label),
        Sample(last.index, last.image[:-1] + b"?", last.label),
        Sample(last.index, last.image, (last.label or 0) + 1),
        Sample(last.index, last.image, None),
    ):
        assert shards.pack([*samples[:-1], other], "png").data != data
    assert shards.pack(samples[::-1], "png").data != data


@pytest.mark.parametrize("labels", LABELS)
def test_each_image_lies_where_its_row_says(labels: str) -> None:
    samples = make(labels)
    packed = shards.pack(samples, "png")
    assert packed.index == [sample.index for sample in samples]
    assert packed.label == [sample.label for sample in samples]
    for sample, offset, size, sha256 in zip(samples, packed.offset, packed.size, packed.sha256, strict=True):
        assert packed.data[offset : offset + size] == sample.image
        assert hashlib.sha256(sample.image).digest() == sha256


@pytest.mark.parametrize("index", [0, 9, 999_999_999_999])
def test_a_key_is_the_index_as_twelve_digits_and_keys_sort_as_indices(index: int) -> None:
    assert (len(shards.key(index)), int(shards.key(index))) == (12, index)
    assert shards.key(index) >= shards.key(index // 2)


TAR = shards.pack(make("labels"), "png").data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"ustar",
        b"not a tar at all, but long enough to hold a header " * 20,
        bytes(10_239),
        gzip.compress(TAR),
        bz2.compress(TAR),
        lzma.compress(TAR),
        by_tarfile(members(make("labels")))[1:],
    ],
    ids=["empty", "short", "text", "zeros", "gzip", "bzip2", "xz", "without its first byte"],
)
def test_what_is_not_a_plain_ustar_is_refused(data: bytes) -> None:
    with pytest.raises(ShardError) as caught:
        list(shards.unpack(data, "s3://b/shards/000007.tar"))
    assert str(caught.value) == "s3://b/shards/000007.tar: not a plain ustar file"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("000000000003.cls", b"1")], "x.tar: sample 000000000003 has no image"),
        ([("000000000003.gif", b"GIF8")], "x.tar: member '000000000003.gif': not a sample's, which is 12 digits and "),
        ([("cat.png", b"1")], "x.tar: member 'cat.png': not a sample's, which is 12 digits and "),
        ([("../0.png", b"1")], "x.tar: member '../0.png': not a sample's, which is 12 digits and "),
        (
            [("000000000003.png", b"1"), ("000000000003.cls", b"one")],
            "x.tar: member '000000000003.cls': not a class's number",
        ),
        ([("000000000003.png", b"1"), ("000000000003.png", b"2")], "x.tar: "),
        ([("000000000003.png", b"1"), ("000000000003.jpg", b"2")], "x.tar: sample 000000000003 has 2 images"),
        (
            [("000000000003.png", b"1"), ("000000000002.png", b"2")],
            "x.tar: sample 000000000002 is there twice, or out of order",
        ),
    ],
    ids=["no image", "another format", "a name", "a path", "a label that is no number", "twice", "two images", "order"],
)
def test_a_tar_of_other_things_is_refused(files: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(ShardError) as caught:
        list(shards.unpack(by_tarfile(files), "x.tar"))
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) > len("x.tar: ")


def test_damage_is_a_shard_error_or_other_samples_and_nothing_else() -> None:
    samples = make("labels", 4)
    data = shards.pack(samples, "png").data
    refused = []
    for position in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[position] ^= 0x55
        try:
            list(shards.unpack(bytes(damaged), "x.tar"))
        except ShardError as error:
            refused.append(str(error))
    assert [error for error in refused if not error.startswith("x.tar: ")] == []
    assert len(refused) > 100  # flipped headers; a flipped image is for the hashes to find
