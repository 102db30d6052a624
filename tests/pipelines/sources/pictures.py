"""Piles of pictures for property tests, laid down on disk as people have them; no picture equals another.

A pile is a small dataclass that hypothesis can print: what went wrong is read off it. `lay` writes it below a folder
and says what a source has to list: each name with the content and the label that were put in.
"""

import csv
import gzip
import io
import json
import os
import random
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import settings
from hypothesis import strategies as st

from pipelines import images
from pipelines.dataset import layout, writer
from pipelines.dataset.identity import Identity, from_json
from pipelines.dataset.manifest import Reject
from pipelines.dataset.shards import Sample
from pipelines.sources.base import Choice, Source
from pipelines.sources.registry import kind_of, open_source
from pipelines.storage.folder import Folder

SIDE = 8
MOST = 12  # pictures of a pile
# What stands in names: two cases, a space, letters of more bytes than one, an accent that combines, and what means
# something to CSV, to globs, to URLs and to the names of items.
LETTERS = "aB7éß日😀\u0301 -_+%#?*[]'\"(),;=&@"
ENDINGS = (".png", ".PNG", ".Png", ".jpg", ".JPEG", ".jpeg", ".webp", ".GIF", ".bmp", ".tif", ".TIFF", ".avif", ".ppm")
OTHERS = (".txt", ".TXT", ".json", ".png.bak", "")
_DISK = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a sync costs nothing there


def examples(share: float) -> settings:
    """More examples than other properties have, or fewer, whatever the profile says (tests/conftest.py)."""
    return settings(max_examples=max(1, int(share * settings.default.max_examples)))


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one example."""
    with tempfile.TemporaryDirectory(prefix="ganmill-pile-", dir=_DISK) as folder:
        yield Path(folder)


@cache
def pixels(number: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Noise, [height, width, 1]: other numbers give other pictures."""
    return np.random.default_rng([number, height, width]).integers(0, 256, (height, width, 1), np.uint8)


@cache
def png(number: int) -> bytes:
    return images.encode(pixels(number))


class Picture(NamedTuple):
    """A file with a picture in it. Zeros fill it up to `size` bytes; 0 leaves it as it is, of 130 bytes or so."""

    number: int
    size: int = 0

    @property
    def content(self) -> bytes:
        return png(self.number).ljust(self.size, b"\0")


class Laid(NamedTuple):
    """A pile on disk, and what has to be listed of it: name -> content (or why there is none) and label."""

    url: str
    choice: Choice
    listed: dict[str, tuple[Any, str | None]]
    ignored: int = 0  # what lies there beside the images

    def open(self) -> Source:
        return open_source(self.url, kind_of(self.url), self.choice)


SIZES = st.sampled_from((0, 0, 511, 512, 513, 1024, 5000))  # around a tar's blocks
words = st.text(LETTERS, min_size=1, max_size=3)
parts = words | words.map(lambda word: word + 110 * "x")  # two of them are more than a tar's header holds
folders_of = st.lists(parts, max_size=3).map("/".join)
labels = st.sampled_from(("0", "1", "7", "10", "cat", "Cat", "two words", "é", 'say "a, b"'))


def _path(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


image_names = st.builds(
    lambda folder, stem, ending: _path(folder, stem + ending), folders_of, parts, st.sampled_from(ENDINGS)
)


other_names = st.one_of(
    st.builds(
        lambda folder, stem, ending: _path(folder, stem + ending), folders_of, words, st.sampled_from(OTHERS[:-1])
    ),
    st.builds(lambda folder, stem: _path(folder, f".{stem}.png"), folders_of, words),
    st.builds(lambda stem: f"__MACOSX/{stem}.png", words),
)


def _numbered(keys: list[Any], sizes: list[int]) -> dict[Any, Picture]:
    """A picture of its own for each key."""
    return {key: Picture(number, sizes[number % len(sizes)]) for number, key in enumerate(keys)}


def numbered(keys: st.SearchStrategy[Any], most: int = MOST) -> st.SearchStrategy[dict[Any, Picture]]:
    keyed = st.lists(keys, min_size=1, max_size=most, unique=True)
    return st.builds(_numbered, keyed, st.lists(SIZES, min_size=1, max_size=4))


def _folder_label(name: str) -> str | None:
    return name.rpartition("/")[0].rpartition("/")[2] or None


def _write(root: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


@dataclass(frozen=True)
class Tree:
    """Image files in folders, which are their classes, and other files between them."""

    pictures: dict[str, Picture]
    others: list[str]

    @property
    def files(self) -> dict[str, bytes]:
        """All, in no order."""
        files = {name: picture.content for name, picture in self.pictures.items()} | dict.fromkeys(self.others, b"no")
        return dict(random.Random(len(files)).sample([*files.items()], len(files)))

    @property
    def listed(self) -> dict[str, tuple[Any, str | None]]:
        return {name: (picture.content, _folder_label(name)) for name, picture in self.pictures.items()}


trees = st.builds(Tree, numbered(image_names), st.lists(other_names, max_size=3, unique=True))


@dataclass(frozen=True)
class FolderPile:
    tree: Tree

    def lay(self, root: Path) -> Laid:
        _write(root / "pile", self.tree.files)
        return Laid(f"{root}/pile", Choice(), self.tree.listed, len(self.tree.others))


@dataclass(frozen=True)
class ZipPile:
    tree: Tree
    name: str
    method: int

    def lay(self, root: Path) -> Laid:
        with zipfile.ZipFile(root / self.name, "w", self.method) as archive:
            archive.writestr("empty folder/", b"")
            for name, data in self.tree.files.items():
                archive.writestr(name, data)
        return Laid(f"{root}/{self.name}", Choice(), self.tree.listed, len(self.tree.others))


class TarForm(NamedTuple):
    """How tarfile writes a tar. A time with a fraction has a PAX header for each member."""

    format: int
    mtime: float = 0
    comment: str = ""  # of a PAX header that is all members'


tar_forms = st.one_of(
    st.just(TarForm(tarfile.USTAR_FORMAT)),
    st.just(TarForm(tarfile.GNU_FORMAT)),
    st.builds(TarForm, st.just(tarfile.PAX_FORMAT), st.sampled_from((0, 1.5)), st.sampled_from(("", "é" * 300))),
)


def tar(path: Path, members: Mapping[str, bytes], form: TarForm, compression: str = "") -> None:
    """Write a tar, in GNU's format where ustar cannot hold a name."""
    pax = {"comment": form.comment} if form.comment else None
    sink = io.BytesIO()
    try:
        with tarfile.open(fileobj=sink, mode=f"w:{compression}", format=form.format, pax_headers=pax) as target:  # type: ignore[call-overload]  # its mode is a str
            for name, data in members.items():
                if "/" in name and form.format != tarfile.USTAR_FORMAT:
                    folder = tarfile.TarInfo(name.rpartition("/")[0])
                    folder.type = tarfile.DIRTYPE
                    target.addfile(folder)
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(data), form.mtime
                target.addfile(member, io.BytesIO(data))
    except ValueError:  # "name is too long"
        assert form.format == tarfile.USTAR_FORMAT
        return tar(path, members, TarForm(tarfile.GNU_FORMAT), compression)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sink.getvalue())


@dataclass(frozen=True)
class TarPile:
    tree: Tree
    name: str
    form: TarForm

    def lay(self, root: Path) -> Laid:
        ending = self.name.lower().rpartition(".")[2]
        tar(root / self.name, self.tree.files, self.form, {"tar": "", "tgz": "gz"}.get(ending, ending))
        return Laid(f"{root}/{self.name}", Choice(), self.tree.listed, len(self.tree.others))


class WebSample(NamedTuple):
    """Members of one key: images by their endings, and a label as text or as a field of a JSON object."""

    pictures: dict[str, Picture]
    label: str | None
    order: int


@dataclass(frozen=True)
class WebDatasetPile:
    tars: dict[str, dict[str, WebSample]]
    form: TarForm
    labels: str  # the ending of the members that hold the labels: cls or json, in any case

    def lay(self, root: Path) -> Laid:
        listed: dict[str, tuple[Any, str | None]] = {}
        for name, samples in self.tars.items():
            members = {}
            for key, sample in samples.items():
                members |= self._members(key, sample)
                for ending, picture in sample.pictures.items():
                    listed[f"{name}/{key}.{ending}"] = picture.content, sample.label
                if not sample.pictures:
                    listed[f"{name}/{key}"] = "no image in the sample", sample.label
            tar(root / "pile" / name, members, self.form)
        column = "kind" if self.labels.lower() == "json" else None
        return Laid(f"{root}/pile", Choice(label_column=column), listed, sum(map(len, self.tars.values())))

    def _members(self, key: str, sample: WebSample) -> dict[str, bytes]:
        """A sample's files, in an order that need not be that of any other's."""
        members = {f"{key}.{ending}": picture.content for ending, picture in sample.pictures.items()}
        members[f"{key}.txt"] = b"a caption"
        if self.labels.lower() == "json":
            members[f"{key}.{self.labels}"] = json.dumps({"kind": sample.label, "width": 8}).encode()
        elif sample.label is not None:
            members[f"{key}.{self.labels}"] = f"{sample.label}\n".encode()
        return dict(random.Random(sample.order).sample([*members.items()], len(members)))


@st.composite
def webdataset_piles(draw: st.DrawFn) -> WebDatasetPile:
    names = draw(
        st.lists(st.sampled_from(("000000.tar", "1.tar", "B.TAR", "a b.Tar", "é.tar")), min_size=1, unique=True)
    )
    places = draw(
        st.lists(
            st.tuples(st.sampled_from(names), st.builds(_path, folders_of, parts)),
            min_size=1,
            max_size=MOST,
            unique=True,
        )
    )
    endings = st.lists(st.sampled_from(("png", "JPG", "seg.png", "0.Webp")), max_size=2, unique=True)
    tars: dict[str, dict[str, WebSample]] = {name: {} for name in names}
    number = 0
    for name, key in places:
        pictures = {ending: Picture(number + n, draw(SIZES)) for n, ending in enumerate(draw(endings))}
        number += len(pictures)
        tars[name][key] = WebSample(pictures, draw(st.none() | labels), draw(st.integers(0, 3)))
    return WebDatasetPile(tars, draw(tar_forms), draw(st.sampled_from(("cls", "CLS", "json", "Json"))))


class Row(NamedTuple):
    picture: Picture | None  # None: null
    label: int | None


@dataclass(frozen=True)
class ParquetPile:
    files: dict[str, list[Row]]
    group: int  # rows of a row group
    image: str  # binary, large_binary, or struct as Hugging Face writes it
    label: str  # none, int64, string, dictionary, or ClassLabel, of which -1 says that there is none

    names = ("cat", "dog", "10", "9", "é")

    def lay(self, root: Path) -> Laid:
        listed: dict[str, tuple[Any, str | None]] = {}
        for name, rows in self.files.items():
            path = root / "pile" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(self._table(rows), path, row_group_size=self.group, data_page_size=256)
            for number, row in enumerate(rows):
                listed[f"{name}#{number}"] = row.picture.content if row.picture else "empty", self._label(row.label)
        (root / "pile" / "README.md").write_text("pictures")
        return Laid(f"{root}/pile", Choice(), listed, 1)

    def _label(self, label: int | None) -> str | None:
        if label is None or self.label == "none" or (self.label == "ClassLabel" and label < 0):
            return None
        return str(label) if self.label == "int64" else self.names[label]

    def _table(self, rows: list[Row]) -> pa.Table:
        contents = [row.picture.content if row.picture else None for row in rows]
        column = {
            "binary": lambda: pa.array(contents, pa.binary()),
            "large_binary": lambda: pa.array(contents, pa.large_binary()),
            "struct": lambda: pa.array(
                [{"bytes": content, "path": "x.png"} for content in contents],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
        }[self.image]()
        columns = {"id": pa.array(range(len(rows)), pa.int64()), "image": column}
        if self.label in ("int64", "ClassLabel"):
            columns["label"] = pa.array([row.label for row in rows], pa.int64())
        elif self.label != "none":
            texts = pa.array([None if row.label is None else self.names[row.label] for row in rows], pa.string())
            columns["label"] = texts.dictionary_encode() if self.label == "dictionary" else texts
        table = pa.table(columns)
        if self.label != "ClassLabel":
            return table
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(self.names)}}
        return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


@st.composite
def parquet_piles(draw: st.DrawFn) -> ParquetPile:
    label = draw(st.sampled_from(("int64", "ClassLabel", "string", "dictionary", "none")))
    known = st.sampled_from((0, 1, 3, -1) if label in ("int64", "ClassLabel") else (0, 1, 3))
    names = draw(
        st.lists(
            st.sampled_from(("a.parquet", "B.PARQUET", "0000.parquet", "deep/0000.parquet", "a b#1.Parquet")),
            min_size=1,
            unique=True,
        )
    )
    files: dict[str, list[Row]] = {}
    number = 0
    for name in names:
        rows = draw(st.lists(st.tuples(st.booleans() | st.just(True), SIZES, st.none() | known), max_size=5))
        files[name] = [
            Row(Picture(number + n, size) if there else None, its) for n, (there, size, its) in enumerate(rows)
        ]
        number += len(rows)
    if not number:
        files[names[0]] = [Row(Picture(0), 0)]
    return ParquetPile(
        files, draw(st.integers(1, 4)), draw(st.sampled_from(("binary", "large_binary", "struct"))), label
    )


@dataclass(frozen=True)
class ListPile:
    """A CSV file, or JSON lines, whose paths lie below its own folder or another; some files are not there."""

    pictures: dict[str, Picture]
    labels: list[str | None]
    missing: set[int]
    name: str
    absolute: bool
    elsewhere: bool

    def lay(self, root: Path) -> Laid:
        base = root / ("base" if self.elsewhere else "pile")
        rows: list[dict[str, Any]] = []
        listed: dict[str, tuple[Any, str | None]] = {}
        for number, (name, picture) in enumerate(self.pictures.items()):
            label = self.labels[number % len(self.labels)]
            if number not in self.missing:
                _write(base, {name: picture.content})
            rows.append({"width": 8, "label": label, "path": f"{base}/{name}" if self.absolute else name})
            listed[name] = "not found" if number in self.missing else picture.content, label
        (root / "pile").mkdir(exist_ok=True)
        with open(root / "pile" / self.name, "w", newline="", encoding="utf-8") as file:
            if self.name.lower().endswith(".csv"):
                writer = csv.DictWriter(file, ["width", "label", "path"])
                writer.writeheader()
                writer.writerows(rows)
            else:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return Laid(f"{root}/pile/{self.name}", Choice(base=str(base) if self.elsewhere else None), listed)


list_piles = st.builds(
    ListPile,
    numbered(image_names),
    st.lists(st.none() | labels, min_size=1, max_size=5),
    st.sets(st.integers(0, MOST), max_size=2),
    st.sampled_from(("list.csv", "list.jsonl", "list.ndjson", "LIST.CSV", "LIST.JSONL", "List.NDJSON")),
    st.booleans(),
    st.booleans(),
)


@dataclass(frozen=True)
class IdxPile:
    """Both splits, as MNIST's or EMNIST's, of which one is chosen."""

    labels: dict[str, list[int]]
    prefix: str
    ending: str
    upper: bool
    split: str
    width: int

    def lay(self, root: Path) -> Laid:
        (root / "pile").mkdir()
        listed: dict[str, tuple[Any, str | None]] = {}
        for split, its in self.labels.items():
            part = "train" if split == "train" else "t10k"
            first = 0 if split == "train" else len(self.labels["train"])
            pictures = [pixels(first + n, SIDE, self.width) for n in range(len(its))]
            content = {
                f"{self.prefix}{part}-images-idx3-ubyte": idx(np.stack(pictures)[..., 0]),
                f"{self.prefix}{part}-labels-idx1-ubyte": idx(np.array(its, np.uint8)),
            }
            for name, data in content.items():
                name = (name + self.ending).upper() if self.upper else name + self.ending
                (root / "pile" / name).write_bytes(gzip.compress(data) if self.ending else data)
                if split == self.split and "images" in name.lower():
                    name = name[: len(name) - len(self.ending)]
                    listed = {f"{name}#{n}": (picture, str(its[n])) for n, picture in enumerate(pictures)}
        prefix = self.prefix.upper() if self.upper else self.prefix
        return Laid(f"{root}/pile", Choice(f"{prefix}{self.split}"), listed, 2)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


_digits = st.lists(st.integers(0, 11), min_size=1, max_size=6)
idx_piles = st.builds(
    IdxPile,
    st.fixed_dictionaries({"train": _digits, "test": _digits}),
    st.sampled_from(("", "emnist-letters-")),
    st.sampled_from(("", ".gz")),
    st.booleans(),
    st.sampled_from(("train", "test")),
    st.sampled_from((SIDE, 5)),
)


@dataclass(frozen=True)
class TorchvisionPile:
    """torchvision's MNIST over files in its cache: it looks whether they are there, and downloads none then."""

    labels: dict[str, list[int]]
    split: str

    def lay(self, root: Path) -> Laid:
        raw = root / "ganmill" / "torchvision" / "MNIST" / "raw"
        raw.mkdir(parents=True)
        IdxPile(self.labels, "", "", False, "train", SIDE).lay(root)
        for file in (root / "pile").iterdir():
            file.rename(raw / file.name)
        os.environ["XDG_CACHE_HOME"] = str(root)  # where torchvision's files are; there is no flag for it
        first = 0 if self.split == "train" else len(self.labels["train"])
        names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
        its = self.labels[self.split]
        listed = {f"MNIST-{self.split}#{n}": (pixels(first + n), f"{i} - {names[i]}") for n, i in enumerate(its)}
        return Laid("torchvision:MNIST", Choice(self.split), listed)


_ten = st.lists(st.integers(0, 9), min_size=1, max_size=5)
torchvision_piles = st.builds(
    TorchvisionPile, st.fixed_dictionaries({"train": _ten, "test": _ten}), st.sampled_from(("train", "test"))
)


@dataclass(frozen=True)
class SealedPile:
    """A dataset of our own, of which some indices were rejected."""

    count: int
    gone: set[int]
    shard_size: int
    classes: list[str] | None

    def lay(self, root: Path) -> Laid:
        make(Folder(f"{root}/pile"), self)
        listed: dict[str, tuple[Any, str | None]] = {}
        for n in self.there:
            label = self.label(n)
            listed[f"{n:012d}"] = png(n), None if label is None or self.classes is None else self.classes[label]
        return Laid(f"{root}/pile", Choice(), listed)

    @property
    def there(self) -> list[int]:
        return [n for n in range(self.count) if n not in self.gone]

    def label(self, index: int) -> int | None:
        return index * index % len(self.classes) if self.classes else None

    @property
    def fields(self) -> dict[str, Any]:
        """The identity's JSON."""
        return {
            **{"producer": "ingest", "count": self.count, "shard_size": self.shard_size, "image_size": SIDE},
            **{"channels": 1, "classes": self.classes, "image": {"format": "png"}, "arithmetic": {}},
        }

    @property
    def identity(self) -> Identity:
        return from_json(self.fields)


def commit(folder: Folder, pile: SealedPile, shard: int) -> Any:
    """One shard of such a dataset."""
    owned = layout.shard_range(pile.identity, shard)
    samples = [Sample(n, png(n), pile.label(n)) for n in owned if n not in pile.gone]
    rejects = [Reject(n, f"{n}.txt", "not an image") for n in owned if n in pile.gone]
    names = {"source": [f"{sample.index}.png" for sample in samples]}
    return writer.commit(folder, shard, "ingest", samples, names, rejects)


def make(folder: Folder, pile: SealedPile) -> layout.Index:
    writer.claim(folder, pile.identity, {})
    records = {shard: commit(folder, pile, shard) for shard in range(layout.num_shards(pile.identity))}
    return writer.seal(folder, pile.identity, records, {"README.md": b"pictures\n"})


sealed_piles = st.builds(
    SealedPile,
    st.integers(1, 30),
    st.sets(st.integers(1, 29), max_size=6),  # never all of them
    st.integers(1, 9),
    st.sampled_from((None, ["cat", "dog", "ant"], ["0", "1"])),
)

PILES: dict[str, st.SearchStrategy[Any]] = {
    "images": st.builds(FolderPile, trees),
    "zip": st.builds(
        ZipPile,
        trees,
        st.sampled_from(("pile.zip", "a b é.ZIP")),
        st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)),
    ),
    "tar": st.builds(
        TarPile,
        trees,
        st.sampled_from(
            ("p.tar", "p.tar.gz", "p.tgz", "p.tar.bz2", "p.tar.xz", "P.TAR", "P.TAR.GZ", "P.Tgz", "p.TAR.XZ")
        ),
        tar_forms,
    ),
    "webdataset": webdataset_piles(),
    "parquet": parquet_piles(),
    "list": list_piles,
    "idx": idx_piles,
    "dataset": sealed_piles,
    "torchvision": torchvision_piles,
}
