"""Datasets from strangers, each made to do harm by someone who can also make the hashes right.

Each is refused with one error that names the file (and the sample or member), in bounded memory; nothing is executed,
nothing is written, and no reader gets fewer samples in silence.
"""

import gzip
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import images
from pipelines.dataset import claim, manifest, reader, shards
from pipelines.dataset.identity import from_json
from pipelines.dataset.layout import Index
from pipelines.dataset.manifest import PartError, ShardRecord
from pipelines.dataset.shards import Sample, ShardError
from pipelines.errors import CorruptError, DatasetError
from pipelines.loading import loader, order
from pipelines.storage.folder import Folder, StorageError
from tests.conftest import ROOT, Job

REFUSED = (CorruptError, DatasetError, PartError, ShardError, StorageError)
IDENTITY: dict[str, Any] = {
    "producer": "ingest",
    "count": 4,
    "shard_size": 4,
    "image": {"format": "png"},
    "image_size": 8,
    "channels": 1,
    "classes": ["a", "b"],
    "arithmetic": {},
}
SAMPLES = [Sample(n, images.encode(np.full((8, 8, 1), n, np.uint8)), n % 2) for n in range(4)]
PACKED = shards.pack(SAMPLES, "png")
PART = manifest.encode("ingest", 0, PACKED, {"source": ["x"] * 4})


def make(folder: Folder, tar: bytes = PACKED.data, part: bytes | None = None, samples: int = 4) -> None:
    """A sealed dataset of one shard: the good one's, or others under hashes that fit them."""
    if part is None:
        part = manifest.encode("ingest", 0, replace(PACKED, data=tar), {"source": ["x"] * 4})
    record = ShardRecord(
        0, samples, len(tar), hashlib.sha256(tar).hexdigest(), len(part), hashlib.sha256(part).hexdigest()
    )
    folder.write(record.tar, tar)
    folder.write(record.part, part)
    claimed = claim.encode(IDENTITY, {})
    folder.write("dataset.json", claimed)
    write_seal(folder, Index(from_json(IDENTITY), (record,), {"dataset.json": hashlib.sha256(claimed).hexdigest()}, ""))


def write_seal(folder: Folder, index: Index) -> None:
    folder.write("index.json", claim.canonical(reader.seal_json(index)) + b"\n")


def verify(folder: Folder) -> int:
    """What jobs/verify.py does to a dataset, without Ray. Returns how many samples it counts."""
    index = reader.open_sealed(folder)
    reader.check_files(folder, index)
    return sum(reader.check_shard(folder, index, record) for record in index.shards)


def train(folder: Folder) -> int:
    """What a training worker does with it: an epoch. Returns how many of its images are those of the good dataset."""
    index = reader.open_sealed(folder)
    plan = order.make_plan(tuple(record.samples for record in index.shards), 2, 4, 0)
    batches = loader.batches(folder, index, plan, 0, 1, 0)
    read = [next(batches) for _ in range(plan.steps_per_epoch)]
    batches.close()
    pairs = {
        (image.tobytes(), int(label)) for b in read for image, label in zip(b.images_BHWC, b.labels_B, strict=True)
    }
    return len(pairs & {(images.decode(s.image, 1).tobytes(), s.label) for s in SAMPLES})


def refusal(folder: Folder, reader: Callable[[Folder], int]) -> str:
    with pytest.raises(REFUSED) as caught:
        reader(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


def member(
    name: str,
    data: bytes = b"",
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    form: int = tarfile.USTAR_FORMAT,  # ours: all other members are as we write them
) -> bytes:
    """A tar of the good samples, and one member more in the middle."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as tar:
        for sample in SAMPLES:
            if sample.index == 2:
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.size = kind, link, len(data)
                tar.addfile(info, io.BytesIO(data))
            for extension, content in (("png", sample.image), ("cls", b"%d" % (sample.label or 0))):
                info = tarfile.TarInfo(f"{sample.index:012d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def declares(size: bytes) -> bytes:
    """The good tar, whose second member declares another size under a right checksum."""
    start = 512 + 512 * -(-len(SAMPLES[0].image) // 512)
    header = bytearray(PACKED.data[start : start + 512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return PACKED.data[:start] + bytes(header) + PACKED.data[start + 512 :]


def png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that declares so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def packed(samples: list[Sample]) -> bytes:
    return shards.pack(samples, "png").data


GOOD = "000000000001"
TARS = {
    **{f"member {name}": member(name, b"x") for name in ("a.pyd", "a.pkl", "a.pth", "a.pt", "000000000009.pkl")},
    "a path that leads out": member("../../evil.png", b"x"),
    "an absolute path": member("/tmp/evil.png", b"x"),
    "a pipe as a name": member("pipe:touch evil.png", b"x"),
    "braces": member("{000000000001..000000000009}.png", b"x"),
    "a symbolic link": member(f"{GOOD}.png", kind=tarfile.SYMTYPE, link="/etc/passwd"),
    "a hard link": member(f"{GOOD}.png", kind=tarfile.LNKTYPE, link="../../x"),
    "a device": member(f"{GOOD}.png", kind=tarfile.CHRTYPE),
    "a named pipe": member(f"{GOOD}.png", kind=tarfile.FIFOTYPE),
    "a folder": member("shards", kind=tarfile.DIRTYPE),
    "a long name": member("a" * 300 + ".png", b"x", form=tarfile.GNU_FORMAT),
    "an extended header": member("ä.png", b"x", form=tarfile.PAX_FORMAT),
    "a path in two fields": member("a" * 60 + "/" + "b" * 60 + ".png", b"x"),
    "a key twice": member(f"{GOOD}.png", b"x"),
    "8 GiB declared": declares(b"77777777777\0"),
    "8 GiB declared in base 256": declares(b"\x80" + (8 << 30).to_bytes(11, "big")),
    "a gzip bomb": gzip.compress(bytes(200 << 20)),
    "cut between two members": PACKED.data[: 512 * 8] + bytes(10_240 - 512 * 8),
    "something behind its end": PACKED.data[:-1] + b"x",
    "a pixel bomb": packed([*SAMPLES[:3], Sample(3, png(50_000, 50_000), 1)]),
    "an image of another size": packed([*SAMPLES[:3], Sample(3, png(9, 8), 1)]),
    "an image cut short": packed([*SAMPLES[:3], Sample(3, SAMPLES[3].image[:-20], 1)]),
    "an image without pixels": packed([*SAMPLES[:3], Sample(3, SAMPLES[3].image[:33], 1)]),
    "no image": packed([*SAMPLES[:3], Sample(3, b"GIF89a", 1)]),
    "a class that there is not": packed([*SAMPLES[:3], Sample(3, SAMPLES[3].image, 2)]),
    "a sample too few": packed(SAMPLES[:3]),
    "another shard's sample": packed([*SAMPLES[:3], Sample(7, SAMPLES[3].image, 1)]),
}


@pytest.mark.parametrize("reader", [verify, train])
@pytest.mark.parametrize("attack", TARS)
def test_a_hostile_tar_is_refused_by_its_name(attack: str, reader: Callable[[Folder], int], tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "data"))
    make(folder, TARS[attack])
    before = sorted(tmp_path.rglob("*"))
    text = refusal(folder, reader)
    assert text.startswith(f"{folder}/")
    assert "shards/000000.tar: " in text
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sample_too_many_is_found_by_verify(tmp_path: Path) -> None:
    """A training worker reads as many as were sealed, and those are the right ones."""
    make(Folder(str(tmp_path)), packed([*SAMPLES, Sample(4, SAMPLES[3].image, 1)]))
    assert refusal(Folder(str(tmp_path)), verify) == (
        f"{tmp_path}/shards/000000.tar: sample 000000000004: the shard owns 0 to 3"
    )


@pytest.mark.parametrize("member_of", ["a path that leads out", "a symbolic link", "member a.pyd", "braces"])
def test_the_member_is_named(member_of: str, tmp_path: Path) -> None:
    make(Folder(str(tmp_path)), TARS[member_of])
    name = {"a path that leads out": "../../evil.png", "a symbolic link": f"{GOOD}.png", "member a.pyd": "a.pyd"}
    wanted = name.get(member_of, "{000000000001..000000000009}.png")
    assert f"/shards/000000.tar: member {wanted!r}: not a " in refusal(Folder(str(tmp_path)), verify)


@pytest.mark.parametrize("reader", [verify, train])
def test_the_dataset_under_these_attacks_is_good(reader: Callable[[Folder], int], tmp_path: Path) -> None:
    make(Folder(str(tmp_path)))
    assert reader(Folder(str(tmp_path))) == len(SAMPLES)


@pytest.mark.parametrize("reader", [verify, train])
def test_one_flipped_byte_anywhere_in_a_shard_is_found(reader: Callable[[Folder], int], tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    make(folder)
    for position in range(0, len(PACKED.data), 997):
        data = bytearray(PACKED.data)
        data[position] ^= 1
        folder.write("shards/000000.tar", bytes(data))
        assert refusal(folder, reader) == (f"{folder}/shards/000000.tar: changed after the seal (its sha256 differs)")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "pipe:touch evil", "s3://b/x", "a/../../b"])
def test_a_name_in_the_seal_leads_nowhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder(str(tmp_path / "data"))
    make(folder)
    index = reader.open_sealed(folder)
    write_seal(folder, replace(index, files={**index.files, name: "0" * 64}))
    text = refusal(folder, verify)
    assert name in text
    assert text.startswith(f"{folder}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def changed(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda sealed: sealed.update(values)


def shard(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda sealed: sealed["shards"][0].update(values)


@pytest.mark.parametrize(
    "change",
    [
        shard(url="pipe:touch evil"),
        shard(url=["s3://b/{000..999}.tar", ["pipe:touch evil"]]),
        shard(samples="4"),
        shard(samples=True),
        shard(samples=-1),
        shard(samples=10**9),
        shard(samples=5),
        shard(bytes=1 << 40),
        shard(part_bytes=1 << 40),
        shard(sha256="../../x"),
        shard(sha256=None),
        changed(shards={"0": "pipe:touch evil"}),
        changed(shards=["pipe:touch evil"]),
        changed(shards=[]),
        changed(files=[]),
        changed(root=7),
        changed(more=1),
        changed(format=2),
        lambda sealed: sealed.update(shards=sealed["shards"] * 2),
        lambda sealed: sealed.pop("root"),
    ],
)
def test_a_hostile_seal_is_refused(change: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    make(folder)
    sealed = json.loads(folder.read("index.json"))
    change(sealed)
    folder.write("index.json", claim.canonical(sealed) + b"\n")
    assert refusal(folder, verify).startswith(f"{folder}/index.json: ")
    assert refusal(folder, train).startswith(f"{folder}/index.json: ")


@pytest.mark.parametrize(
    "value",
    [
        {"count": "4"},
        {"count": True},
        {"count": 0},
        {"count": 10**13},
        {"count": 10**12, "shard_size": 1},
        {"count": 4.0},
        {"shard_size": 0},
        {"shard_size": 10**6},
        {"image_size": 10**6},
        {"image_size": 1024, "shard_size": 100_000},
        {"channels": 4},
        {"classes": "ab"},
        {"classes": ["a" * 2000]},
        {"image": {"format": "pkl"}},
        {"producer": "stranger"},
        {"batch": 10**9},
        {"labels": {"cycle": []}},
        {"labels": {"cycle": [-1]}},
        {"labels": {"weights": [[0, 0.0]]}},
        {"seed_start": -1},
        {"model": "../../x"},
    ],
    ids=str,
)
def test_a_hostile_identity_is_refused(value: dict[str, Any], tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    make(folder)
    folder.write("dataset.json", claim.encode({**IDENTITY, **value}, {}))
    assert refusal(folder, verify).startswith(f"{folder}/dataset.json: ")


def parquet(table: pa.Table, **options: Any) -> bytes:
    """A part of other rows with the good one's footer."""
    sink, footer = io.BytesIO(), pq.read_metadata(io.BytesIO(PART)).metadata[b"ganmill"]
    with pq.ParquetWriter(sink, table.schema, **{"compression": "zstd", "store_schema": False, **options}) as writer:
        writer.write_table(table, row_group_size=max(1, len(table)))
        writer.add_key_value_metadata({b"ganmill": footer})
    return sink.getvalue()


ROWS = manifest.decode(PART, "x").table


class Marker(pa.ExtensionType):
    """A type that other readers would build from what the file says."""

    def __init__(self) -> None:
        super().__init__(pa.int64(), "ganmill.evil")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"cos\nsystem\n(S'touch evil'\ntR."

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, data: bytes) -> "Marker":
        Path("evil").touch()
        return cls()


PARTS = {
    "an extension type": lambda: parquet(
        ROWS.set_column(1, "index", pa.ExtensionArray.from_storage(Marker(), ROWS["index"].combine_chunks())),
        store_schema=True,
    ),
    "pandas metadata": lambda: parquet(ROWS.replace_schema_metadata({"pandas": '{"columns": []}'}), store_schema=True),
    "a column more": lambda: parquet(ROWS.append_column("evil", pa.array([b"x"] * 4))),
    "a column less": lambda: parquet(ROWS.drop_columns(["sha256"])),
    "another type": lambda: parquet(ROWS.set_column(1, "index", pa.array(["a"] * 4))),
    "nothing of ours": lambda: b"PAR1" + bytes(99) + b"PAR1",
    "a row too few": lambda: parquet(ROWS.slice(0, 3)),
    "rows of another place": lambda: parquet(ROWS.set_column(3, "offset", pa.array([1 << 40] * 4))),
}


@pytest.mark.parametrize("attack", PARTS)
def test_a_hostile_part_is_refused_by_its_name(attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder(str(tmp_path / "data"))
    make(folder, part=PARTS[attack]())
    pa.register_extension_type(Marker())
    Path("evil").unlink(missing_ok=True)  # Arrow builds one when a type is registered
    try:
        assert f"{folder}/" in refusal(folder, verify)
        assert "000000" in refusal(folder, verify)
    finally:
        pa.unregister_extension_type("ganmill.evil")
    assert not Path("evil").exists()


def _long_rows() -> bytes:
    """A hundred thousand rows of one text of 8 MiB, written once: 800 GB to a reader that expands it."""
    count = 100_000
    values = {
        name: pa.array([ROWS[name][0].as_py()] * count, ROWS.schema.field(name).type) for name in ROWS.column_names
    }
    text = pa.array(["x" * (8 << 20)])
    values["source"] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), text)
    return parquet(pa.table(values), dictionary_pagesize_limit=64 << 20)


BOMBS: dict[str, Callable[[Folder], object]] = {
    "rows": lambda folder: make(folder, part=parquet(ROWS.take(np.zeros(2_000_000, np.int64)))),
    "a text in every row": lambda folder: make(folder, part=_long_rows()),
    "a large dataset.json": lambda folder: folder.write("dataset.json", b'{"a":[' + b"[]," * (40 << 20)),
    "a deep dataset.json": lambda folder: folder.write("dataset.json", b"[" * 1_000_000),
    "a large index.json": lambda folder: folder.write("index.json", b'{"a":[' + b"[]," * (40 << 20)),
    "a small index.json of many lists": lambda folder: folder.write("index.json", b'{"a":[' + b"[]," * (300 << 10)),
    "a deep index.json": lambda folder: folder.write("index.json", b"[" * 500_000),
    "an endless shard": lambda folder: _link(folder, "shards/000000.tar"),
    "an endless dataset.json": lambda folder: _link(folder, "dataset.json"),
    "a gzip bomb": lambda folder: make(folder, TARS["a gzip bomb"]),
    "a pixel bomb": lambda folder: make(folder, TARS["a pixel bomb"]),
}

MEASURE = """
import resource, sys
from pipelines.dataset import reader
from pipelines.storage import folder as storage
folder = storage.Folder(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    index = reader.open_sealed(folder)
    reader.check_shard(folder, index, index.shards[0])
except (ValueError, storage.StorageError) as error:
    print(error)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def _link(folder: Folder, name: str) -> None:
    Path(folder.url, name).unlink()
    Path(folder.url, name).symlink_to("/dev/zero")


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_in_bounded_memory(bomb: str, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    make(folder)
    BOMBS[bomb](folder)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    message, megabytes = done.stdout.splitlines()
    assert message.startswith(str(folder))
    assert int(megabytes) < 200, message


@pytest.mark.slow
def test_the_commands_say_it_in_one_line(job: Job, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "data"))
    make(folder, TARS["a path that leads out"])
    done = job("verify", "--dataset", folder.url)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"verify: error: {folder}/shards/000000.tar: member '../../evil.png': not a sample's, which is 12 digits and "
        ".png, .jpg, .webp or .cls"
    )
