"""Tars, WebDataset shards, Parquet, lists and torchvision's datasets as sources: what is read, and what is not.

The attacks: every one ends in one line that names the file and the member, and none in fewer samples.
"""

import csv
import gzip
import io
import json
import random
import resource
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from datasets import ClassLabel, Dataset, Features
from datasets import Image as HfImage

from pipelines import images
from pipelines.errors import SourceError
from pipelines.images import ImageError
from pipelines.sources import tars
from pipelines.sources.registry import kind_of
from pipelines.storage.folder import Folder, StorageError
from tests.pipelines.sources.test_sources import Source, open_source

PNG = [images.encode(np.full((4, 4, 1), n, np.uint8)) for n in range(12)]
Members = list[tuple[str | tarfile.TarInfo, bytes]]


def tar(path: Path, members: Members, form: int = tarfile.USTAR_FORMAT, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as target:  # type: ignore[call-overload]  # mode is a str
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = info.size or len(data)
            target.addfile(info, io.BytesIO(data))
    return path


def listed(source: Source) -> dict[str, tuple[int | None, object]]:
    return {source.name(n): (source.label(n), source.image(n)) for n in range(len(source))}


TREE: Members = [("pets/cats/a.png", PNG[0]), ("pets/dogs/b.png", PNG[1]), ("pets/notes.txt", b"no image")]
EXPECTED = {"pets/cats/a.png": (0, PNG[0]), "pets/dogs/b.png": (1, PNG[1])}


class TestTar:
    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    @pytest.mark.parametrize(
        ("ending", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz"), (".tar.xz", "w:xz")]
    )
    def test_a_tar_of_a_folder_tree(self, ending: str, mode: str, form: int, tmp_path: Path) -> None:
        deep = f"pets/{'x' * 120}/{'y' * 120}.png"  # a name that ustar cannot hold
        members = TREE if form == tarfile.USTAR_FORMAT else [*TREE, (deep, PNG[2])]
        source = open_source(str(tar(tmp_path / f"pets{ending}", members, form, mode)))
        assert source.classes == (["cats", "dogs"] if members is TREE else ["cats", "dogs", "x" * 120])
        assert listed(source) == (EXPECTED if members is TREE else {**EXPECTED, deep: (2, PNG[2])})

    def test_an_object_store_gives_what_the_local_disk_gives(self, tmp_path: Path, s3: str) -> None:
        for name, mode in (("pets.tar", "w"), ("pets.tar.gz", "w:gz")):
            Folder(s3).write(name, tar(tmp_path / name, TREE, mode=mode).read_bytes())
            assert listed(open_source(f"{s3}/{name}")) == EXPECTED


SAMPLES: Members = [
    (f"{n:04d}.{ending}", data)
    for n in range(6)
    for ending, data in (
        ("cls", b"%d" % (n % 3 * 7)),
        ("jpg", PNG[n]),
        ("json", json.dumps({"kind": "ab"[n % 2]}).encode()),
    )
]


class TestWebDataset:
    def test_shards_as_webdatasets_own_writer_writes_them(self, tmp_path: Path) -> None:
        for number in range(3):
            with (tmp_path / f"{number:03d}.tar").open("wb") as file, webdataset.TarWriter(file) as writer:
                for n in range(4 * number, min(4 * number + 4, 10)):
                    writer.write({"__key__": f"s{n}", "png": PNG[n], "cls": str(n % 3), "txt": "a caption"})
        source = open_source(str(tmp_path))
        assert source.classes == ["0", "1", "2"]
        assert listed(source) == {f"{n // 4:03d}.tar/s{n}.png": (n % 3, PNG[n]) for n in range(10)}

    def test_classes_are_in_the_order_of_their_numbers_or_come_from_json(self, tmp_path: Path) -> None:
        tar(tmp_path / "a.tar", SAMPLES)
        assert open_source(str(tmp_path)).classes == ["0", "7", "14"]
        source = open_source(str(tmp_path), label_column="kind")
        assert source.classes == ["a", "b"]
        assert [source.label(n) for n in range(6)] == [0, 1] * 3

    def test_img2datasets_own_files_beside_the_tars_are_no_images(self, tmp_path: Path) -> None:
        tar(tmp_path / "00000.tar", SAMPLES)
        pq.write_table(pa.table({"url": ["x"]}), tmp_path / "00000.parquet")
        (tmp_path / "00000_stats.json").write_text("{}")
        assert len(open_source(str(tmp_path))) == 6

    def test_a_sample_without_an_image_is_a_reject_and_no_silence(self, tmp_path: Path) -> None:
        tar(tmp_path / "a.tar", [*SAMPLES, ("9.cls", b"7"), ("9.txt", b"x")])
        source = open_source(str(tmp_path))
        assert len(source) == 7
        with pytest.raises(ImageError, match="no image in the sample"):
            source.image([source.name(n) for n in range(7)].index("a.tar/9"))

    def test_neighbours_are_read_by_one_request(self, tmp_path: Path, s3: str) -> None:
        Folder(s3).write("a.tar", tar(tmp_path / "a.tar", SAMPLES).read_bytes())
        source = open_source(s3)
        items = source._items
        reads = []
        folder = source._source._folder  # type: ignore[attr-defined]
        original = folder.read_range
        folder.read_range = lambda *a: reads.append(a) or original(*a)
        assert list(source._source.read(items)) == PNG[:6]
        assert len(reads) == 1


def header(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def broken(members: Members, spoil: Callable[[bytearray], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        data = bytearray(tar(path, members).read_bytes())
        changed = spoil(data)
        path.write_bytes(data if changed is None else changed)

    return write


def flipped(data: bytearray) -> None:
    data[4 * 512 + 100] ^= 1  # in the header of the third


def huge(data: bytearray) -> None:
    """The second header says 8 GiB, with a right checksum."""
    info = tarfile.TarInfo.frombuf(bytes(data[1024:1536]), "utf-8", "strict")
    info.size = 8 << 30
    data[1024:1536] = info.tobuf(tarfile.GNU_FORMAT)


TWO: Members = [("a.png", PNG[0]), ("b.png", PNG[1])]


def plus(*members: tuple[str | tarfile.TarInfo, bytes]) -> Callable[[Path], Any]:
    return lambda path: tar(path, [*TWO, *members])


def special(kind: bytes, **fields: Any) -> Callable[[Path], Any]:
    return plus((header("c.png", type=kind, **fields), b""))


def pax(data: bytes) -> Callable[[Path], Any]:
    return plus((header("h", type=tarfile.XHDTYPE), data), ("c.png", PNG[2]))


LEADS = "a name that leads elsewhere"
ATTACKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut between members": (broken(TWO, lambda data: data[:1024]), "cut short after a.png: it has no end mark"),
    "cut inside": (broken(TWO, lambda data: data[:1545]), "b.png: declares 79 bytes, more than the tar has"),
    "one bit of a header": (broken([*TWO, ("c.png", PNG[2])], flipped), "damaged after b.png: bad checksum"),
    "8 GiB": (broken(TWO, huge), "b.png: declares 8,589,934,592 bytes, more than the tar has"),
    "a link": (special(tarfile.SYMTYPE, linkname="/etc/passwd"), "c.png: a link"),
    "a hard link": (special(tarfile.LNKTYPE, linkname="a.png"), "c.png: a link"),
    "a device": (special(tarfile.CHRTYPE), "c.png: a link, a device"),
    "a pipe": (special(tarfile.FIFOTYPE), "c.png: a link, a device"),
    "sparse": (special(tarfile.GNUTYPE_SPARSE), "c.png: a link, a device or a sparse file"),
    "up": (plus(("../../up.png", PNG[2])), f"'../../up.png': {LEADS}"),
    "absolute": (plus(("/etc/c.png", PNG[2])), f"'/etc/c.png': {LEADS}"),
    "control": (plus(("c\x1b[2J.png", PNG[2])), LEADS),
    **{
        ending: (plus((f"c.{ending}", b"cos\nsystem\n(S'id'\ntR.")), f"c.{ending}: a pickle")
        for ending in ("pkl", "pickle", "pyd", "pth", "pt", "PKL")
    },
    "another tar behind it": (
        lambda path: path.write_bytes(2 * tar(path, TWO).read_bytes()),
        "it ends after b.png, at byte 2,048, but more data follow from byte 10,240 on: several tars in one (join them "
        "with tar -A, or ingest a folder of them), or a lost header",
    ),
    "bytes behind it": (
        broken(TWO, lambda data: data + b"x"),
        "it ends after b.png, at byte 2,048, but more data follow",
    ),
    "zeros for a header": (
        broken([*TWO, ("c.png", PNG[2])], lambda data: data[:1024] + bytes(512) + data[1536:]),
        "it ends after a.png, at byte 1,024, but more data follow from byte 1,536 on",
    ),
    "a header for nothing": (
        plus((header("h", type=tarfile.XHDTYPE), b"14 path=c.png\n")),
        "damaged after b.png: a header for a member that is not there",
    ),
    "twice": (plus(("a.png", PNG[2])), "a.png: its key occurred before"),
    "twice in a sample": (plus(("b.png", PNG[2])), "b.png: occurs twice"),
    "gzip": (
        lambda path: path.write_bytes(gzip.compress(bytes(1 << 28))),
        "is packed, not a plain tar; rename it to .tar.gz",
    ),
    "no tar": (lambda path: path.write_bytes(b"hello" * 1000), "damaged after its first member"),
    "empty": (lambda path: path.write_bytes(b""), "cut short after its first member"),
    "a long PAX header": (pax(bytes(1 << 20)), "a header of 1,048,576 bytes after b.png"),
    "a broken PAX header": (pax(b"0 path=x\n"), "a damaged PAX header"),
    "a negative PAX size": (pax(b"12 size=-99\n"), "a damaged PAX header"),
    "a label of 2 MiB": (plus(("c.png", PNG[2]), ("c.cls", bytes(2 << 20))), "c: a label of 2,097,152 bytes"),
    "a label of no text": (plus(("c.png", PNG[2]), ("c.cls", b"\xff\xfe")), "c: its label cannot be read"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_shard_from_a_stranger_ends_in_one_line(attack: str, tmp_path: Path) -> None:
    make, message = ATTACKS[attack]
    tar(tmp_path / "in" / "a.tar", TWO)
    make(tmp_path / "in" / "b.tar")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError) as caught:
        open_source(str(tmp_path / "in"))
    assert f"{tmp_path}/in/b.tar: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "b.tar", "in"]


@pytest.mark.parametrize(
    "name", ["pipe:touch {tmp}/owned", "pipe:touch {tmp}/owned #.tar", "{{a,b}}.tar", "x::pipe:id"]
)
def test_urls_that_run_programs_are_plain_names(name: str, tmp_path: Path) -> None:
    """webdataset would give them to a shell; here they are files that are not there."""
    with pytest.raises((StorageError, SourceError)):
        open_source(name.format(tmp=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_bomb_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "ALWAYS_ALLOWED", 1 << 20)
    bomb = tmp_path / "x.tar.gz"
    bomb.write_bytes(gzip.compress(bytes(64 << 20)))
    with pytest.raises(SourceError, match=r"x\.tar\.gz: unpacks to more than 20 times its size; is it a bomb\?"):
        open_source(str(bomb))
    bomb.write_bytes(gzip.compress(bytes(1 << 18))[:-20])
    with pytest.raises(SourceError, match=r"x\.tar\.gz: damaged"):
        open_source(str(bomb))


class TestParquet:
    def test_a_binary_column_and_integers(self, tmp_path: Path) -> None:
        table = pa.table({"jpg": PNG[:10], "label": [n % 2 for n in range(10)], "x": list("abcdefghij")})
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
        source = open_source(str(tmp_path / "a.parquet"))
        assert source.classes == ["0", "1"]
        assert listed(source) == {f"a.parquet#{n}": (n % 2, PNG[n]) for n in range(10)}
        assert {item.block for item in source._items} == {"a.parquet#0", "a.parquet#1", "a.parquet#2"}

    @pytest.mark.parametrize("order", [0, 1, 2, 3])
    def test_rows_of_several_files_in_any_order_are_those_of_their_own_file(self, order: int, tmp_path: Path) -> None:
        """As a shard's worth has them: the blocks of other files between, at the same rows."""
        for file in range(4):
            rows = range(3 * file, 3 * file + 3)
            table = pa.table({"image": [PNG[n] for n in rows], "label": [str(n) for n in rows]})
            pq.write_table(table, tmp_path / f"{file}.parquet", row_group_size=3 - order % 3)
        source = open_source(str(tmp_path))
        items = list(source._items)
        random.Random(order).shuffle(items)
        assert list(source._source.read(items)) == [PNG[int(item.label or "")] for item in items]

    def test_what_hugging_face_writes(self, tmp_path: Path) -> None:
        features = Features({"picture": HfImage(), "kind": ClassLabel(names=["cat", "dog", "unseen"])})
        rows = {"picture": [{"bytes": data, "path": None} for data in PNG[:6]], "kind": [0, 1, 0, 1, 0, -1]}
        for split in ("train", "test"):
            path = tmp_path / "data" / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(exist_ok=True)
            Dataset.from_dict(rows, features).to_parquet(path)
        with pytest.raises(SourceError, match="has the splits train, test; choose one with --split"):
            open_source(str(tmp_path))
        source = open_source(str(tmp_path), "train")
        assert source.classes == ["cat", "dog", "unseen"]
        expected = [(0, PNG[0]), (1, PNG[1]), (0, PNG[2]), (1, PNG[3]), (0, PNG[4]), (None, PNG[5])]
        assert list(listed(source).values()) == expected

    def test_columns_by_name_and_their_errors(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"pix": PNG[:2], "what": ["b", "a"], "n": [0.5, 1.5]}), path)
        with pytest.raises(
            SourceError, match=r"a\.parquet: no column of images; it has pix, what, n; see --image-column"
        ):
            open_source(str(path))
        source = open_source(str(path), image_column="pix", label_column="what")
        assert listed(source) == {"a.parquet#0": (1, PNG[0]), "a.parquet#1": (0, PNG[1])}
        with pytest.raises(SourceError, match="--label-column n: is double"):
            open_source(str(path), image_column="pix", label_column="n")
        with pytest.raises(SourceError, match="--image-column no: is not there; it has pix, what, n"):
            open_source(str(path), image_column="no")
        path.write_bytes(b"PAR1 no, it is not PAR1")
        with pytest.raises(SourceError, match=r"a\.parquet: not a Parquet file: "):
            open_source(str(path))

    def test_from_an_object_store(self, s3: str) -> None:
        sink = io.BytesIO()
        pq.write_table(pa.table({"image": PNG[:9]}), sink, row_group_size=2)
        Folder(s3).write("set/a.parquet", sink.getvalue())
        assert [image for _, image in listed(open_source(f"{s3}/set")).values()] == PNG[:9]


class TestLists:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for n in range(3):
            (tmp_path / "img" / f"{n}.png").parent.mkdir(exist_ok=True)
            (tmp_path / "img" / f"{n}.png").write_bytes(PNG[n])
        return tmp_path

    def test_csv_and_json_lines(self, folder: Path) -> None:
        rows = [("img/0.png", "a"), (f"{folder}/img/1.png", "b"), ("img/no.png", "a")]
        with (folder / "list.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *rows])
        (folder / "list.jsonl").write_text("".join(json.dumps({"file": p, "class": c}) + "\n" for p, c in rows))
        for name in ("list.csv", "list.jsonl"):
            source = open_source(str(folder / name))
            assert source.classes == ["a", "b"]
            assert [(source.name(n), source.label(n)) for n in range(3)] == [
                ("img/0.png", 0), ("img/1.png", 1), ("img/no.png", 0)]  # fmt: skip
            assert [source.image(n) for n in range(2)] == PNG[:2]
            with pytest.raises(ImageError, match="not found"):
                source.image(2)

    def test_a_base_and_an_object_store(self, folder: Path, s3: str) -> None:
        (folder / "l.csv").write_text(f"image\n{s3}/set/0.png\n1.png\n")
        for n in range(2):
            Folder(s3).write(f"set/{n}.png", PNG[n])
        source = open_source(str(folder / "l.csv"), base=f"{s3}/set")
        assert listed(source) == {f"{n}.png": (None, PNG[n]) for n in range(2)}

    @pytest.mark.parametrize(
        "path", ["../x.png", "/etc/passwd", "s3://other/x.png", "file:///dev/zero", "img/../../x", ""]
    )
    def test_a_path_that_leads_elsewhere(self, path: str, folder: Path) -> None:
        (folder / "l.csv").write_text(f"path,label\nimg/0.png,a\n{path},b\n")
        with pytest.raises(SourceError) as caught:
            open_source(str(folder / "l.csv"))
        assert str(caught.value) == (
            f"{folder}/l.csv: row 2: {path!r} is not below {folder}; give the folder of the list's paths with --base"
        )

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("l.csv", "a,b\n1,2\n", "no column path or file or filename; it has a, b; see --image-column"),
            ("l.jsonl", '{"path": "x.png"}\nhello\n', "line 2 is not JSON"),
            ("l.jsonl", "[1]\n", "line 1 is not a JSON object"),
            ("l.jsonl", "[" * 100_000 + "\n", "line 1 is not JSON"),
            ("l.csv", "path\nimg/0.png\nimg/0.png\n", "img/0.png: occurs twice; each image needs a unique name"),
            ("l.csv", "path\n", "no images here"),
        ],
    )
    def test_lists_that_are_none(self, name: str, text: str, message: str, folder: Path) -> None:
        (folder / name).write_text(text)
        with pytest.raises(SourceError) as caught:
            open_source(str(folder / name))
        assert message in str(caught.value)
        assert str(caught.value).startswith(f"{folder}/{name}: ")

    def test_a_file_that_is_too_large_is_not_read_whole(self, folder: Path) -> None:
        with (folder / "img" / "big.png").open("wb") as file:
            file.truncate(1 << 40)
        (folder / "l.csv").write_text("path\nimg/big.png\n")
        source = open_source(str(folder / "l.csv"), max_bytes=1000)
        with pytest.raises(ImageError, match="too large: 1,001 bytes, of 1,000 that are allowed"):
            source.image(0)


def test_torchvisions_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST where torchvision keeps it, so that nothing is downloaded; FakeData, which nobody has to download."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    raw = tmp_path / "ganmill" / "torchvision" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    for prefix in ("train", "t10k"):
        head = np.array([2051, 6, 28, 28], ">i4").tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(np.array([2049, 6], ">i4").tobytes() + bytes(range(6)))
    source = open_source("torchvision:MNIST", "test")
    assert source.classes is not None
    assert source.classes[3] == "3 - three"
    for n in range(6):
        assert (source.name(n), source.label(n)) == (f"MNIST-test#{n}", n)
        assert np.array_equal(source.image(n), pixels[n, :, :, None])
    (raw / "t10k-labels-idx1-ubyte").write_bytes(np.array([2049, 6], ">i4").tobytes() + bytes([0, 1, 2, 12, 4, 5]))
    with pytest.raises(SourceError, match=r"torchvision:MNIST-test: image 3: its label is 12, of 10 classes"):
        open_source("torchvision:MNIST", "test")
    for name, split, message in (
        ("NoSuch", None, "torchvision has no dataset of that name"),
        ("os", None, "torchvision has no dataset of that name"),
        ("MNIST", "val", "torchvision's MNIST has train and test"),
    ):
        with pytest.raises(SourceError, match=message):
            open_source(f"torchvision:{name}", split)


def test_what_a_folder_is(tmp_path: Path) -> None:
    tar(tmp_path / "both" / "a.tar", TWO)
    (tmp_path / "both" / "x.png").write_bytes(PNG[0])
    with pytest.raises(SourceError, match="holds tars and image files; say with --kind which to take"):
        kind_of(str(tmp_path / "both"))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "l").symlink_to(tmp_path / "both")
    with pytest.raises(StorageError, match="links/l: a link to a folder is not followed"):
        kind_of(str(tmp_path / "links"))
