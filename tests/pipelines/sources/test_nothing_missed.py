"""Nothing is left out in silence: what a source lists becomes an image, a reject, a count with a name, or an error."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as HfImage

from jobs.ingestion.worker import IngestShard
from pipelines.dataset import writer
from pipelines.dataset.shards import Sample
from pipelines.errors import CorruptError, SourceError
from pipelines.images import ImageError
from pipelines.ingest import catalogue
from pipelines.sources import registry
from pipelines.sources.base import Choice, Tally, distinct
from pipelines.sources.registry import Origin, kind_of
from pipelines.storage.folder import Folder, StorageError
from tests.pipelines.dataset.test_reader_and_writer import identity
from tests.pipelines.dataset.test_reader_and_writer import produce as sealed_dataset
from tests.pipelines.sources.test_containers import PNG, SAMPLES, TREE, tar
from tests.pipelines.sources.test_sources import CLASSED, TRAIN, idx, idx_files, open_source, write, zipped


def counted(url: object, split: str | None = None, **choice: Any) -> tuple[int, int, dict[str, int]]:
    """How many a source lists, how many become items, and what is ignored; the sum is checked."""
    source = registry.open_source(str(url), kind_of(str(url)), Choice(split, **choice))
    items = len([*source.items()])
    assert source.tally.listed == items + sum(source.tally.ignored.values())
    return source.tally.listed, items, source.tally.ignored


@contextlib.contextmanager
def stopped_by_permissions() -> Iterator[None]:
    """Permissions never stop root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


class TestFolders:
    def test_a_folder_that_cannot_be_read_is_an_error(self) -> None:
        """Not fewer images, and not a class less."""
        with tempfile.TemporaryDirectory() as base:  # below pytest's own folder nobody else can read anything
            folder = Path(base, "pictures")
            write(folder, CLASSED)
            for path, mode in ((Path(base), 0o755), (folder, 0o755), (folder / "cats", 0)):
                path.chmod(mode)
            source = registry.open_source(str(folder), "images", Choice())
            with stopped_by_permissions():
                for look in (lambda: kind_of(str(folder)), lambda: [*source.items()]):
                    with pytest.raises(StorageError) as caught:
                        look()
                    assert str(caught.value) == f"{folder}/cats: permission denied"
            (folder / "cats").chmod(0o755)
            assert counted(folder)[1] == len(CLASSED)

    def test_a_link_to_nothing_is_a_reject(self, tmp_path: Path) -> None:
        write(tmp_path, CLASSED)
        (tmp_path / "cats" / "gone.png").symlink_to(tmp_path / "nowhere.png")
        (tmp_path / "cats" / "loop.png").symlink_to("loop.png")
        (tmp_path / "cats" / "there.png").symlink_to("a.png")
        os.mkfifo(tmp_path / "cats" / "pipe.png")
        source = open_source(str(tmp_path))
        names = [source.name(n) for n in range(len(source))]
        assert names == sorted([*CLASSED, *(f"cats/{name}.png" for name in ("gone", "loop", "pipe", "there"))])
        for name in ("gone", "loop", "pipe"):
            with pytest.raises(ImageError, match=r"^not found: a link to nothing, or no regular file$"):
                source.image(names.index(f"cats/{name}.png"))
        assert source.image(names.index("cats/there.png")) == CLASSED["cats/a.png"]

    @pytest.mark.parametrize("store", ["local", "s3"])
    @pytest.mark.parametrize(
        ("data", "what"),
        [
            (CLASSED["cats/a.png"] + b"\0", "more than the {size} bytes that it had"),
            (CLASSED["cats/a.png"][:-1], "{less} bytes, of {size} that it had"),
            (b"", "0 bytes, of {size} that it had"),
            (None, "missing"),
        ],
        ids=["longer", "shorter", "empty", "gone"],
    )
    def test_a_file_that_changed_since_it_was_listed_is_an_error(
        self, data: bytes | None, what: str, store: str, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        folder = Folder(str(tmp_path) if store == "local" else request.getfixturevalue("s3"))
        for name, content in CLASSED.items():
            folder.write(name, content)
        source = open_source(folder.url)
        if data is None:
            folder.delete("cats/a.png")
        else:
            folder.write("cats/a.png", data)
        size = len(CLASSED["cats/a.png"])
        with pytest.raises(SourceError) as caught:
            source.image(1)
        assert str(caught.value) == (
            f"{folder}/cats/a.png: {what.format(size=size, less=size - 1)}: the source changed after it was listed; "
            "start again when nobody writes to it"
        )

    @pytest.mark.parametrize("store", ["local", "s3", "gs", "az"])
    def test_other_files_and_hidden_ones_are_counted(
        self, store: str, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        others = ("a.txt", "cats/B.TXT", "x.zip", "y.csv", "z.parquet", "cats/noending", "cats/.hidden.png")
        folder = Folder(str(tmp_path) if store == "local" else f"{request.getfixturevalue(store)}/in")
        for name, data in {**CLASSED, **dict.fromkeys(others, b"x"), ".git/config": b"x"}.items():
            folder.write(name, data)
        ignored = {".csv": 1, ".parquet": 1, ".txt": 2, ".zip": 1, "hidden": 2, "without an ending": 1}
        assert counted(folder) == (len(CLASSED) + 8, len(CLASSED), ignored)

    def test_what_is_rare_may_come_last(self, tmp_path: Path) -> None:
        """A folder is looked through to its end to tell what it is: these are more files than one page of a store."""
        for number in range(10_050):
            (tmp_path / f"{number}.txt").touch()
        (tmp_path / "zz").mkdir()
        (tmp_path / "zz" / "a.png").write_bytes(PNG[0])
        assert counted(tmp_path) == (10_051, 1, {".txt": 10_050})
        tar(tmp_path / "zz" / "deep" / "a.tar", SAMPLES)
        with pytest.raises(SourceError, match="holds tars and image files; say with --kind which to take"):
            kind_of(str(tmp_path))


PARTS: list[list[tuple[str, bytes]]] = [
    [("a/x.png", PNG[0]), ("b/y.png", PNG[1])],
    [("a/z.png", PNG[2]), ("c/w.png", PNG[3])],
]
PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
TWO_IN_ONE = (
    r"pets\.tar[.a-z0-9]*: it ends after b/y.png, at byte 2,048, but more data follow from byte \d+,240 on: several "
)


class TestTars:
    @pytest.fixture
    def two(self, tmp_path: Path) -> list[bytes]:
        return [tar(tmp_path / "made" / f"{n}.tar", [*part]).read_bytes() for n, part in enumerate(PARTS)]  # type: ignore[list-item]

    def test_two_tars_in_one_are_an_error(self, two: list[bytes], tmp_path: Path) -> None:
        (tmp_path / "pets.tar").write_bytes(b"".join(two))
        with pytest.raises(SourceError, match=TWO_IN_ONE):
            open_source(f"{tmp_path}/pets.tar")

    @pytest.mark.parametrize("ending", PACKERS)
    def test_two_packed_tars_in_one_are_an_error(self, ending: str, two: list[bytes], tmp_path: Path) -> None:
        pack = PACKERS[ending]
        for content in (pack(two[0]) + pack(two[1]), pack(b"".join(two))):
            (tmp_path / f"pets.tar{ending}").write_bytes(content)
            with pytest.raises(SourceError, match=TWO_IN_ONE):
                open_source(f"{tmp_path}/pets.tar{ending}")

    @pytest.mark.parametrize("ending", PACKERS)
    def test_one_tar_in_several_streams_is_whole(self, ending: str, two: list[bytes], tmp_path: Path) -> None:
        pack, path = PACKERS[ending], tmp_path / f"pets.tar{ending}"
        for padding in (b"", bytes(512)):
            path.write_bytes(pack(two[0][:700]) + pack(b"") + pack(two[0][700:]) + padding)
            source = open_source(str(path))
            assert [source.image(n) for n in range(2)] == PNG[:2]

    @pytest.mark.parametrize("ending", PACKERS)
    @pytest.mark.parametrize("behind", [b"x", b"garbage" * 100, bytes(8) + b"x"])
    def test_what_follows_a_packed_stream_is_an_error(
        self, ending: str, behind: bytes, two: list[bytes], tmp_path: Path
    ) -> None:
        path = tmp_path / f"pets.tar{ending}"
        path.write_bytes(PACKERS[ending](two[0]) + behind)
        with pytest.raises(SourceError, match=rf"pets\.tar\{ending}: damaged: "):
            open_source(str(path))

    @pytest.mark.parametrize("ending", PACKERS)
    def test_a_packed_tar_that_is_cut_is_an_error(self, ending: str, two: list[bytes], tmp_path: Path) -> None:
        path, whole = tmp_path / f"pets.tar{ending}", PACKERS[ending](two[0])
        for size in (1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(SourceError, match=rf"pets\.tar\{ending}: damaged: "):
                open_source(str(path))

    def test_a_folder_that_says_it_has_bytes_hides_no_member(self, tmp_path: Path) -> None:
        """As tars of old have it: the size of a folder is the disk's, and no bytes follow."""
        folder = tarfile.TarInfo("d")
        folder.type, folder.size = tarfile.DIRTYPE, 1024
        whole = tar(tmp_path / "a.tar", [("d/x.png", PNG[0]), ("d/y.png", PNG[1])]).read_bytes()
        (tmp_path / "a.tar").write_bytes(folder.tobuf(tarfile.USTAR_FORMAT) + whole)
        assert counted(tmp_path / "a.tar") == (2, 2, {})

    def test_members_that_are_no_images_and_of_other_splits_are_counted(self, tmp_path: Path) -> None:
        path = tar(tmp_path / "a.tar", [("train/a.png", PNG[0]), ("train/b.TXT", b""), ("test/c.png", PNG[1])])
        assert counted(path) == (3, 2, {".txt": 1})
        assert counted(path, "train") == (3, 1, {".txt": 1, "not of --split": 1})


class TestWebDataset:
    def test_tars_in_subfolders_are_shards_too(self, tmp_path: Path) -> None:
        tar(tmp_path / "0.tar", SAMPLES)
        tar(tmp_path / "more" / "1.tar", SAMPLES)
        source = open_source(str(tmp_path))
        assert [source.name(n) for n in range(12)] == [
            f"{name}/{n:04d}.jpg" for name in ("0.tar", "more/1.tar") for n in range(6)
        ]

    def test_members_beside_images_and_labels_are_counted(self, tmp_path: Path) -> None:
        tar(tmp_path / "train-0.tar", [*SAMPLES, ("9.cls", b"7"), ("9.txt", b"x")])
        tar(tmp_path / "test-0.tar", SAMPLES)
        (tmp_path / "notes.md").write_text("x")
        (tmp_path / ".old.tar").write_text("x")
        ignored = {".json": 6, ".md": 1, ".txt": 1, "hidden": 1, "not of --split": 1}
        assert counted(tmp_path, "train") == (7 + 10, 7, ignored)
        by_field = {**ignored, ".cls": 7}
        del by_field[".json"]  # its labels
        assert counted(tmp_path, "train", label_column="kind") == (7 + 11, 7, by_field)

    def test_two_labels_of_a_sample_are_an_error(self, tmp_path: Path) -> None:
        tar(tmp_path / "a.tar", [("1.png", PNG[0]), ("1.cls", b"1"), ("1.CLS", b"2")])
        with pytest.raises(SourceError, match=r"a\.tar: 1: two labels, \.cls and \.CLS"):
            open_source(str(tmp_path))


class TestUpperCase:
    """Names as cameras and Windows write them."""

    def test_tars_in_a_folder_and_their_members(self, tmp_path: Path) -> None:
        tar(tmp_path / "0.tar", SAMPLES)
        tar(tmp_path / "1.TAR", [(str(name).upper(), data) for name, data in SAMPLES])
        source = open_source(str(tmp_path))
        assert [source.name(n) for n in range(6, 12)] == [f"1.TAR/{n:04d}.JPG" for n in range(6)]
        assert [source.label(n) for n in range(12)] == [0, 1, 2] * 4
        by_field = open_source(str(tmp_path), label_column="kind")
        assert [by_field.label(n) for n in range(12)] == [0, 1] * 6

    @pytest.mark.parametrize(
        ("ending", "mode"), [(".TAR", "w"), (".TAR.GZ", "w:gz"), (".Tgz", "w:gz"), (".tar.XZ", "w:xz")]
    )
    def test_a_tar_of_a_tree(self, ending: str, mode: str, tmp_path: Path) -> None:
        source = open_source(str(tar(tmp_path / f"X{ending}", TREE, mode=mode)))
        assert [source.image(n) for n in range(2)] == PNG[:2]

    def test_parquet_files_and_columns(self, tmp_path: Path) -> None:
        for name, images_column, labels_column in (("a.parquet", "Image", "LABEL"), ("B.PARQUET", "Image", "LABEL")):
            pq.write_table(pa.table({images_column: PNG[:3], labels_column: [0, 1, 0]}), tmp_path / name)
        assert len(open_source(f"{tmp_path}/B.PARQUET")) == 3
        source = open_source(str(tmp_path))
        assert [source.label(n) for n in range(6)] == [0, 1, 0] * 2

    @pytest.mark.parametrize("name", ["X.CSV", "X.JSONL", "X.NDJSON", "x.Csv", "x.Jsonl"])
    def test_lists(self, name: str, tmp_path: Path) -> None:
        write(tmp_path, CLASSED)
        rows = [("cats/a.png", "c"), ("dogs/deep/c.png", "d")]
        lines = (
            ["Path,Label", *(",".join(row) for row in rows)]
            if name.lower().endswith("csv")
            else [json.dumps({"FILE": path, "Class": label}) for path, label in rows]
        )
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        source = open_source(f"{tmp_path}/{name}")
        assert source.classes == ["c", "d"]
        assert [source.image(n) for n in range(2)] == [CLASSED[path] for path, _ in rows]

    def test_a_zip(self, tmp_path: Path) -> None:
        assert len(open_source(str(zipped(tmp_path / "X.ZIP", CLASSED)))) == len(CLASSED)

    @pytest.mark.parametrize("ending", ["", ".gz"])
    def test_idx_files(self, ending: str, tmp_path: Path) -> None:
        write(tmp_path, {name.upper(): data for name, data in idx_files(ending).items()})
        source = open_source(str(tmp_path), "train")
        assert [source.label(n) for n in range(len(TRAIN[1]))] == TRAIN[1].tolist()
        assert source.name(0) == "TRAIN-IMAGES-IDX3-UBYTE#0"


class TestIdx:
    def test_files_that_are_not_read_are_counted(self, tmp_path: Path) -> None:
        more = {"train-images-idx3-ubyte": idx(TRAIN[0]), "notes.md": b"", "deep/train-labels-idx1-ubyte": b""}
        write(tmp_path, {**idx_files(".gz"), **more})
        # The plain images are read; their packed copy, and files elsewhere, are not.
        ignored = {".gz": 1, ".md": 1, "not of --split": 2, "without an ending": 1}
        assert counted(tmp_path, "train") == (12 + 5, 12, ignored)


class TestZips:
    def two(self, tmp_path: Path) -> list[bytes]:
        return [zipped(tmp_path / f"{n}.zip", dict(part)).read_bytes() for n, part in enumerate(PARTS)]

    def refused(self, data: bytes, tmp_path: Path) -> str:
        (tmp_path / "x.zip").write_bytes(data)
        with pytest.raises(SourceError) as caught:
            open_source(f"{tmp_path}/x.zip")
        return str(caught.value).removeprefix(f"{tmp_path}/x.zip: ")

    def test_two_zips_in_one_are_an_error(self, tmp_path: Path) -> None:
        """zipfile reads the last one alone."""
        first, second = self.two(tmp_path)
        assert self.refused(first + second, tmp_path) == (
            "its directory does not list the file at byte 0: two zips, or damaged; repair it (zip -FF), or "
            "unpack each and ingest the folder"
        )
        # And the first one, where the second has no end.
        assert self.refused(first + second[:-30], tmp_path).startswith(
            f"{len(second) - 30:,} bytes follow its end: a second zip, or a damaged one; repair it"
        )

    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    @pytest.mark.parametrize("left_out", [0, 1, 2])
    def test_a_file_that_the_directory_leaves_out_is_an_error(self, left_out: int, method: int, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
            for n in range(3):
                archive.writestr(f"{n}.png", PNG[n])
            entry = archive.filelist.pop(left_out)
        assert self.refused((tmp_path / "x.zip").read_bytes(), tmp_path).startswith(
            f"its directory does not list the file at byte {entry.header_offset:,}: "
        )

    def test_a_directory_that_lists_fewer_than_the_end_says_is_an_error(self, tmp_path: Path) -> None:
        data = bytearray(self.two(tmp_path)[0])
        data[-14:-10] = struct.pack("<HH", 3, 3)
        assert self.refused(bytes(data), tmp_path) == "its directory lists 2 files, its end record 3: damaged"

    def test_what_unpacks_itself_or_has_a_comment_is_whole(self, tmp_path: Path) -> None:
        plain = zipped(tmp_path / "plain.zip", CLASSED)
        digest = open_source(str(plain)).digest
        (tmp_path / "self.zip").write_bytes(b"#!/bin/sh\nexit 1\n" * 100 + plain.read_bytes())
        assert open_source(f"{tmp_path}/self.zip").digest == digest
        with zipfile.ZipFile(plain, "a") as archive:
            archive.comment = b"made with care" * 100
        assert open_source(str(plain)).digest == digest

    def test_fields_and_descriptors_between_the_files_hide_nothing(self, tmp_path: Path) -> None:
        class Pipe(io.BytesIO):
            def seekable(self) -> bool:
                return False  # so that sizes follow the data

        sink = Pipe()
        with zipfile.ZipFile(sink, "w") as archive:
            for name, data in CLASSED.items():
                entry = zipfile.ZipInfo(name)
                entry.extra = struct.pack("<HH", 0xCAFE, 300) + bytes(300)
                archive.writestr(entry, data)
        (tmp_path / "x.zip").write_bytes(sink.getvalue())
        assert counted(tmp_path / "x.zip") == (len(CLASSED), len(CLASSED), {})

    def test_two_files_of_one_name_are_an_error(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("a.png", PNG[0])
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr("a.png", PNG[1])
        assert self.refused((tmp_path / "x.zip").read_bytes(), tmp_path).startswith("a.png: occurs twice")

    def test_backslashes_of_windows_are_folders(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for name, data in {**CLASSED, "empty/": b"", "cats/notes.txt": b""}.items():
                entry = zipfile.ZipInfo("x")
                entry.filename, entry.create_system = name.replace("/", "\\"), 0
                archive.writestr(entry, data)
        source = open_source(f"{tmp_path}/x.zip")
        assert source.classes == ["ants", "cats", "deep"]
        assert [source.image(n) for n in range(4)] == [CLASSED[name] for name in sorted(CLASSED)]
        assert counted(tmp_path / "x.zip")[2] == {".txt": 1}

    def test_a_store_that_fails_is_no_damaged_image(self, s3: str) -> None:
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w") as archive:
            for n in range(3):
                archive.writestr(f"{n}.png", np.random.default_rng(n).bytes(1 << 20))
        Folder(s3).write("x.zip", sink.getvalue())
        source = open_source(f"{s3}/x.zip")
        assert isinstance(source.image(2), bytes)
        Folder(s3).delete("x.zip")
        with pytest.raises(SourceError, match=r"x\.zip: not found"):
            source.image(0)

    def test_a_zip_that_was_replaced_since_it_was_listed_is_an_error(self, tmp_path: Path) -> None:
        path = zipped(tmp_path / "x.zip", CLASSED)
        listed = open_source(str(path))
        zipped(path, {**CLASSED, "cats/a.png": CLASSED["cats/b.png"]})
        now = registry.open_source(str(path), "zip", Choice())
        with pytest.raises(SourceError, match=r"x\.zip: cats/a\.png: another file: the source changed after"):
            [*now.read(listed._items)]


class TestLists:
    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("l.csv", "path,label\na.png,x\nb, c.png,x\n", "row 2: has 3 fields, its header 2"),
            ("l.csv", "path,label\na.png,x\nb.png\n", "row 2: has 1 fields, its header 2"),
            ("l.csv", "path,label,label\na.png,x,y\n", "label names two of its columns"),
            ("l.jsonl", '{"path": "a.png", "x": "%s"}\n' % ("y" * (1 << 20)), "line 1 has more than 1,048,576 bytes"),
            (
                "l.jsonl",
                '{"path": "a.png"}\n{"path": "b.png", "label": "x"}\n',
                "row 2: has label, which row 1 has not",
            ),
            ("l.jsonl", '{"path": "a.png", "label": ["x"]}\n', 'row 1: its label is no name, but ["x"]'),
            ("l.jsonl", '{"path": "a.png", "label": "\\ud800"}\n', r"'\ud800': this name is not UTF-8"),
        ],
        ids=["more", "fewer", "twice", "long", "late", "no name", "surrogate"],
    )
    def test_rows_that_are_none(self, name: str, text: str, message: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(SourceError) as caught:
            open_source(f"{tmp_path}/{name}")
        assert str(caught.value).startswith(f"{tmp_path}/{name}: {message}")

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("l.csv", "path,label\n\na.png,x\n\nb.png,y,\n"),
            ("l.jsonl", '{"path": "a.png", "label": "x"}\n\n \n{"path": "b.png", "label": "y"}\n'),
        ],
    )
    def test_blank_lines_are_counted(self, name: str, text: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text(text)
        assert counted(tmp_path / name) == (4, 2, {"blank lines": 2})

    @pytest.mark.parametrize("kind", ["pipe", "folder"])
    def test_a_path_to_no_file_is_an_error_and_no_wait(self, kind: str, tmp_path: Path) -> None:
        (tmp_path / "l.csv").write_text("path\nx.png\n")
        os.mkfifo(tmp_path / "x.png") if kind == "pipe" else (tmp_path / "x.png").mkdir()
        with pytest.raises(StorageError, match=r"x\.png: (not a regular file|a folder is where a file should be)"):
            open_source(f"{tmp_path}/l.csv").image(0)

    def test_an_image_needs_no_ending(self, tmp_path: Path) -> None:
        write(tmp_path, {"l.csv": b"path\nimages/0\nnotes.txt\n", "images/0": PNG[0], "notes.txt": b"x"})
        assert counted(tmp_path / "l.csv") == (2, 2, {})


class TestParquet:
    def hugging_face(self, path: Path, labels: list[int | None], names: list[str]) -> None:
        path.parent.mkdir(exist_ok=True, parents=True)
        features = Features({"image": HfImage(), "label": ClassLabel(names=names)})
        rows = {"image": [{"bytes": PNG[n], "path": None} for n in range(len(labels))], "label": [0] * len(labels)}
        Dataset.from_dict(rows, features).to_parquet(path)
        table = pq.read_table(path)
        changed = pa.array(labels, pa.int64())
        pq.write_table(table.set_column(1, table.schema.field("label"), changed), path, row_group_size=2)

    @pytest.mark.parametrize("label", [2, 99, -2])
    def test_a_label_beyond_the_classes_is_an_error(self, label: int, tmp_path: Path) -> None:
        self.hugging_face(tmp_path / "a.parquet", [0, 1, None, -1, label], ["cat", "dog"])
        with pytest.raises(SourceError) as caught:
            open_source(f"{tmp_path}/a.parquet")
        assert str(caught.value) == (
            f"{tmp_path}/a.parquet: row 4: its label is {label}, of 2 classes; correct the source"
        )

    def test_no_label_is_none_and_no_error(self, tmp_path: Path) -> None:
        self.hugging_face(tmp_path / "a.parquet", [0, 1, None, -1], ["cat", "dog"])
        source = open_source(f"{tmp_path}/a.parquet")
        assert [source.label(n) for n in range(4)] == [0, 1, None, None]

    def test_files_that_name_other_classes_are_an_error(self, tmp_path: Path) -> None:
        self.hugging_face(tmp_path / "a.parquet", [0, 1], ["cat", "dog"])
        self.hugging_face(tmp_path / "b.parquet", [0, 1], ["dog", "cat"])
        with pytest.raises(SourceError, match=r"b\.parquet: its label names other classes than the first file's"):
            open_source(str(tmp_path))

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"image": PNG[:2]}, "no column label, of which the first file has one"),
            ({"image": PNG[:2], "label": [0.5, 1.5]}, "its label is double, unlike the first file's"),
            ({"image": ["a", "b"], "label": [0, 1]}, "its image is string, unlike the first file's"),
        ],
    )
    def test_files_with_other_columns_are_an_error(
        self, columns: dict[str, list[Any]], message: str, tmp_path: Path
    ) -> None:
        pq.write_table(pa.table({"image": PNG[:2], "label": [0, 1]}), tmp_path / "a.parquet")
        pq.write_table(pa.table(columns), tmp_path / "b.parquet")
        with pytest.raises(SourceError) as caught:
            open_source(str(tmp_path))
        assert str(caught.value) == f"{tmp_path}/b.parquet: {message}"

    def test_a_damaged_page_is_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        rows = [np.random.default_rng(n).bytes(100) for n in range(200)]
        table = pa.table({"image": rows, "label": [n * 7919 for n in range(200)]})
        pq.write_table(table, path, compression="zstd", use_dictionary=False)
        whole, refused = path.read_bytes(), []
        for start in range(4, len(whole), 499):
            path.write_bytes(whole[:start] + bytes(90) + whole[start + 90 :])
            try:
                source = open_source(str(path))
                source.image(0)
            except SourceError as error:  # and no other error
                refused.append(str(error).removeprefix(f"{path}: "))
        assert {line.split(":")[0] for line in refused} == {"row group 0 cannot be read", "not a Parquet file"}
        assert not any("\n" in line for line in refused)

    def test_a_row_group_of_fewer_rows_than_its_file_says_is_an_error(self, tmp_path: Path) -> None:
        """Found by changing bytes: rows were left out in silence, or were an IndexError."""
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"image": PNG[:9], "label": [*range(9)]}), path)
        whole = path.read_bytes()
        size = int.from_bytes(whole[-8:-4], "little")
        footer = whole[-8 - size : -8]
        asked, refused = 0, set()
        for at in range(len(footer)):
            if footer[at] != 18:  # 9 as Thrift writes it
                continue
            path.write_bytes(whole[: -8 - size] + footer[:at] + bytes([20]) + footer[at + 1 :] + whole[-8:])
            asked += 1
            try:
                source = open_source(str(path))
                assert [source.image(n) for n in range(len(source))] == PNG[:9]
            except SourceError as error:
                refused.add(str(error).removeprefix(f"{path}: "))
        assert asked > 1
        assert "row group 0: label has 9 of its 10 rows; damaged" in refused

    def test_pages_are_compared_with_their_checksums(self, tmp_path: Path) -> None:
        path, rows = tmp_path / "a.parquet", [bytes([n]) * 100 for n in range(9)]
        pq.write_table(pa.table({"image": rows}), path, compression="none", write_page_checksum=True)
        path.write_bytes(path.read_bytes().replace(rows[4], rows[5]))
        with pytest.raises(SourceError, match=r"a\.parquet: row group 0 cannot be read: .*checksum"):
            open_source(str(path)).image(4)

    def test_a_file_that_lost_rows_since_it_was_listed_is_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"image": PNG[:5]}), path)
        items = open_source(str(path))._items
        pq.write_table(pa.table({"image": PNG[:3]}), path)
        with pytest.raises(SourceError, match=r"a\.parquet: row 3 is missing: the source changed after"):
            [*registry.open_source(str(path), "parquet", Choice()).read(items)]

    def test_other_files_and_other_splits_are_counted(self, tmp_path: Path) -> None:
        for name in ("train-0", "train-1", "test-0"):
            pq.write_table(pa.table({"image": PNG[:2]}), tmp_path / f"{name}.parquet")
        write(tmp_path, {"README.md": b"", "dataset_infos.json": b"", ".gitattributes": b""})
        ignored = {".json": 1, ".md": 1, "hidden": 1, "not of --split": 1}
        assert counted(tmp_path, "train") == (4 + 4, 4, ignored)

    def test_a_folder_without_any_is_refused(self, tmp_path: Path) -> None:
        write(tmp_path, CLASSED)
        with pytest.raises(SourceError, match="no Parquet files here; check --source and --kind"):
            registry.open_source(str(tmp_path), "parquet", Choice())


class TestSealed:
    """Every image is compared with its row in the manifest, and one that is not as sealed is no reject."""

    @pytest.fixture
    def sealed(self, tmp_path: Path) -> Path:
        sealed_dataset(Folder(f"{tmp_path}/sealed"), identity())
        return tmp_path / "sealed"

    def take(self, source: Path, **limits: int) -> dict[str, Any]:
        """What a worker does with the images of a dataset, as one shard."""
        origin = Origin(str(source), "dataset", Choice(max_bytes=limits.get("bytes", 1 << 20)))
        opened = registry.open_source(origin.url, origin.kind, origin.choice)
        with tempfile.TemporaryDirectory() as scratch:
            drawn, _ = catalogue.plan(opened.items(), "here", opened.classes, True, 0, 0.0, Path(scratch))
            output = Folder(f"{source}-again")
            pixels = limits.get("pixels", 1 << 20)
            changes = {"count": len(drawn), "shard_size": 100, "source": drawn.digest, "classes": drawn.classes}
            limited = {"limits": {"bytes": origin.choice.max_bytes, "pixels": pixels}, "dedupe": None}
            writer.claim(output, identity(**changes, **limited), {})
            drawn.publish(output, 100)
        return IngestShard(output.url, origin)(0)

    def test_what_is_whole_is_taken(self, sealed: Path) -> None:
        assert self.take(sealed)["record"]["samples"] == 6
        assert counted(sealed) == (6, 6, {})

    @pytest.mark.parametrize("shard", [0, 1, 2])
    def test_a_changed_image_is_an_error_that_names_it(self, shard: int, sealed: Path) -> None:
        """Same length, and pixels that can be decoded: another image of the dataset, say."""
        part = pq.read_table(sealed / "manifest" / f"{shard:06d}.parquet").to_pylist()
        row, path = part[-1], sealed / "shards" / f"{shard:06d}.tar"
        data = bytearray(path.read_bytes())
        data[row["offset"] + row["size"] - 20] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptError) as caught:
            self.take(sealed)
        assert str(caught.value) == (
            f"{path}: sample {row['key']}: its image changed after the seal (its sha256 differs)"
        )
        assert not (sealed.parent / "sealed-again" / "manifest").exists()

    def test_rows_of_several_shards_in_any_order_are_compared_with_their_own(self, sealed: Path) -> None:
        source = registry.open_source(str(sealed), "dataset", Choice())
        items = sorted(source.items(), key=lambda item: item.name[::-1])
        whole = {item.name: content for item, content in zip(items, source.read(items), strict=True)}
        for item in reversed(items):
            assert [*source.read([item])] == [whole[item.name]]

    def odd(self, folder: Path, samples: list[Sample]) -> Path:
        """A dataset that was sealed with images or labels that it cannot have."""
        settled = identity(count=len(samples), shard_size=10)
        at = Folder(str(folder))
        writer.claim(at, settled, {})
        record = writer.commit(at, 0, "ingest", samples, {"source": ["x"] * len(samples)})
        writer.seal(at, settled, {0: record}, {})
        return folder

    @pytest.mark.parametrize(
        ("data", "why"), [(b"no image", "not an image"), (PNG[0][:-30], "damaged: "), (b"", "empty")]
    )
    def test_an_image_that_cannot_be_decoded_is_an_error(self, data: bytes, why: str, tmp_path: Path) -> None:
        source = self.odd(tmp_path / "odd", [Sample(0, PNG[0], 0), Sample(1, data, 1)])
        with pytest.raises(CorruptError) as caught:
            self.take(source)
        assert str(caught.value).startswith(f"{source}/shards/000000.tar: sample 000000000001: {why}")

    @pytest.mark.parametrize("label", [3, 99, -1, None])
    def test_a_label_that_no_class_has_is_an_error(self, label: int | None, tmp_path: Path) -> None:
        source = self.odd(tmp_path / "odd", [Sample(0, PNG[0], 0), Sample(1, PNG[1], label)])
        with pytest.raises(CorruptError) as caught:
            self.take(source)
        assert str(caught.value) == (
            f"{source}/manifest/000000.parquet: sample 000000000001: its class is {label}, of 3"
        )

    @pytest.mark.parametrize("limits", [{"bytes": 10}, {"pixels": 10}])
    def test_what_is_larger_than_the_user_lets_it_be_is_a_reject(self, limits: dict[str, int], sealed: Path) -> None:
        rejects = self.take(sealed, **limits)["rejects"]
        assert len(rejects) == 6
        assert {reject["reason"].split(":")[0] for reject in rejects} == {"too large"}


class TestNames:
    def test_the_second_class_of_a_name_gets_its_number(self) -> None:
        assert distinct(["crane", "x", "crane", "crane"]) == ["crane", "x", "crane #2", "crane #3"]

    def test_more_kinds_than_are_kept_are_counted_together_in_whatever_order(self) -> None:
        names = [f"x.{n}" for n in range(Tally.MOST + 5)]
        forwards, backwards = Tally(), Tally()
        for name in names:
            forwards.ignore_file(name)
        for name in reversed(names):
            backwards.ignore_file(name)
        assert forwards.ignored == backwards.ignored == {"others": len(names)}


def test_listed_is_what_anybody_counts(tmp_path: Path) -> None:
    """By find, tar and zip themselves."""
    write(tmp_path / "in", {**CLASSED, "a.txt": b"", "cats/b.JSON": b"", "cats/.h": b""})
    files = [path for path in (tmp_path / "in").rglob("*") if path.is_file()]
    with tarfile.open(tmp_path / "x.tar", "w") as packed:
        packed.add(tmp_path / "in", "in")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in files:
            archive.write(path, path.relative_to(tmp_path))
    for url in ("in", "x.tar", "x.zip"):
        assert counted(tmp_path / url) == (len(files), len(CLASSED), {".json": 1, ".txt": 1, "hidden": 1})
