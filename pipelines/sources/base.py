"""The interface of a source: the driver streams its items; a worker reads the contents of one shard's items."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import NamedTuple, TypeVar

import numpy as np

from pipelines.dataset.attribution import NONE
from pipelines.errors import SourceError
from pipelines.images import ImageError, LimitError, Pixels

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm", ".pgm")
OTHER_SPLIT = "not of --split"  # a reason to ignore a file
AHEAD = 16  # concurrent requests of one worker: a store answers in 20 ms, a disk in one

T = TypeVar("T")
R = TypeVar("R")


class Item(NamedTuple):
    """One image of a source."""

    name: str  # relative to the source and unique in it: the manifest's `source` column
    place: str  # the file of the source that holds it
    offset: int = 0  # of its bytes in that file, its number there, or a checksum
    size: int = -1  # in bytes; -1 if unknown
    label: str | None = None  # its class, by name
    block: str = ""  # items of one block are read together and stay together; '' for a single item


@dataclass(frozen=True, slots=True)
class Choice:
    """The part of a source that is read, and the names of its columns."""

    split: str | None = None
    base: str | None = None  # lists: the folder to which their paths are relative
    image_column: str | None = None
    label_column: str | None = None
    max_bytes: int = 64 << 20  # of one image's file


class Tally:
    """Counts what a source lists, and what it ignores and why: nothing is left out without a count."""

    MOST = 1000  # reasons; more are counted together, so that odd names do not fill the memory

    def __init__(self) -> None:
        self.listed = 0
        self._ignored = Counter[str]()
        self._many = False

    def over(self, entries: Iterable[T]) -> Iterator[T]:
        """The entries, each counted as listed. Each must become an item or be ignored."""
        for entry in entries:
            self.listed += 1
            yield entry

    def ignore(self, why: str, count: int = 1) -> None:
        self._ignored["others" if self._many else why] += count
        if len(self._ignored) > self.MOST:
            self._many, self._ignored = True, Counter({"others": self._ignored.total()})

    def ignore_file(self, name: str) -> None:
        """Ignore a file that is hidden or no image; the reason is its ending."""
        path = PurePosixPath(name)
        ending = path.suffix.lower()
        plain = len(ending) <= 16 and ending.isprintable()
        self.ignore("hidden" if is_junk(name) else (ending if plain else "others") or "without an ending")

    def add(self, other: "Tally") -> None:
        self.listed += other.listed
        for why, count in other._ignored.items():
            self.ignore(why, count)

    @property
    def ignored(self) -> dict[str, int]:
        """The number of each reason, sorted."""
        return dict(sorted(self._ignored.items()))


Content = bytes | Pixels | ImageError  # a file's bytes, or pixels [H, W, C], or the reason why there are none


class Source(ABC):
    """Images of a user. Opening a source is cheap: every worker does it."""

    classes: list[str] | None = None  # as declared by the source; None: the labels of its items
    shape: tuple[int, int] | None = None  # height (= width) and channels, where they are the same for all images
    # Of the reader, in a dataset's identity: above 1 where an earlier version read wrong images from the same items. A
    # dataset of that version is neither continued nor reported as complete.
    revision = 1
    attribution = NONE  # title, licence and citation, where the source states them
    sealed = False  # True: every image could be decoded before, so that a failure means damage and not a reject

    def __init__(self) -> None:
        self.tally = Tally()

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """All items, those of a block together, else in any order. `tally` counts the rest.

        Raises: SourceError.
        """

    @abstractmethod
    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        """The contents of items, in their order. An ImageError stands for an item that cannot be read.

        Raises: SourceError for a source that changed after it was listed.
        """


def is_image(name: str) -> bool:
    """Whether a file is an image, by its ending. Hidden files are not, as those that macOS adds."""
    return name.lower().endswith(IMAGE_ENDINGS) and not is_junk(name)


def is_junk(name: str) -> bool:
    """Whether a file is hidden, or in a hidden folder."""
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def folder_label(name: str) -> str | None:
    """The class of a file: the name of its folder."""
    return PurePosixPath(name).parent.name or None


def ahead(call: Callable[[T], R], arguments: Iterable[T], at_once: int = AHEAD) -> Iterator[R]:
    """`map` with some concurrent calls, and at most as many results in memory."""
    waiting = iter(arguments)
    with ThreadPoolExecutor(at_once) as pool:
        running: list[Future[R]] = [pool.submit(call, argument) for argument in islice(waiting, at_once)]
        while running:
            yield running.pop(0).result()
            running += [pool.submit(call, argument) for argument in islice(waiting, 1)]


def too_large(size: int, limit: int) -> ImageError:
    return LimitError(f"too large: {size:,} bytes, of {limit:,} that are allowed")


def changed(where: str, what: str) -> SourceError:
    return SourceError(f"{where}: {what}: the source changed after it was listed; start again when nobody writes to it")


def distinct(classes: Iterable[object]) -> list[str]:
    """Class names made unique, by a number after the second of one name: ImageNet has two classes `crane`."""
    names: dict[str, None] = {}
    for number, name in enumerate(map(str, classes)):
        while name in names:
            name += f" #{number}"
        names[name] = None
    return [*names]


def class_of(label: int, classes: list[str] | None, where: str) -> str | None:
    """The name of a class by its number; None for -1, which means no class in Hugging Face's datasets.

    Raises: SourceError for a number that no class has.
    """
    if classes is None:
        return str(label)
    if label == -1:
        return None
    if not 0 <= label < len(classes):
        raise SourceError(f"{where}: its label is {label}, of {len(classes):,} classes; correct the source")
    return classes[label]


def find_column(names: Iterable[str], usual: Sequence[str]) -> str:
    """The first usual name that is a column, in any case; '' without one."""
    exact = [*names]
    lower = {name.lower(): name for name in reversed(exact)}
    return next((name for name in usual if name in exact), "") or next(
        (lower[name] for name in usual if name in lower), ""
    )


def of_split(names: Sequence[str], split: str | None, where: str, tally: Tally) -> list[str]:
    """The files of a split, by the usual names: `train-00000-of-00002.parquet`, `train/0.parquet`, `x-train-01.tar`.

    The others are counted as ignored.

    Raises: SourceError if there are several splits and none is chosen, or if the chosen one does not exist.
    """
    known = ("train", "validation", "valid", "val", "test")

    def words(name: str) -> set[str]:
        return set(name.lower().replace("/", "-").replace("_", "-").replace(".", "-").split("-"))

    found = [word for word in known if any(word in words(name) for name in names)]
    if split is None:
        if len(found) > 1:
            raise SourceError(f"{where}: has the splits {', '.join(found)}; choose one with --split")
        return sorted(names)
    chosen = sorted(name for name in names if split.lower() in words(name))
    if not chosen:
        raise SourceError(f"{where}: no split {split!r}; it has {', '.join(found) or 'none'}")
    others = len(names) - len(chosen)
    tally.listed += others
    if others:
        tally.ignore(OTHER_SPLIT, others)
    return chosen


def as_pixels(image: np.ndarray) -> Pixels:
    """Pixels [H, W] or [H, W, C] as [H, W, C]."""
    return image[:, :, None] if image.ndim == 2 else image
