"""Stacked MNIST: three random digits as the red, green and blue of one image, so there are 1,000 known classes.

It measures how many of the classes a generator reaches. The digits of an image follow from a seed and its number alone.

Source: Metz et al. 2016, arXiv:1611.02163, sec. 3.3.1; 128,000 images as in Lin et al. 2018 (PacGAN), arXiv:1712.04086.
"""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from pipelines.errors import SourceError
from pipelines.sources.base import Choice, Content, Item, Source
from pipelines.sources.idx import ArraySource, idx
from pipelines.storage.folder import Folder

COUNT = 128_000
SEED = 0
CLASSES = [f"{number:03d}" for number in range(1000)]


class StackedSource(Source):
    """Images of three digits of another source each. Red, green and blue are drawn independently, with replacement."""

    def __init__(self, digits: ArraySource, count: int = COUNT, seed: int = SEED) -> None:
        super().__init__()
        self._digits, self._chosen_N3 = digits, chosen(seed, count, len(digits.images))
        self.classes = CLASSES
        self.shape = digits.shape and (digits.shape[0], 3)
        self.tally.add(digits.tally)  # the files beside the two

    def items(self) -> Iterator[Item]:
        for number, digits_3 in enumerate(self.tally.over(self._chosen_N3)):
            name = "".join(str(label) for label in self._digits.labels_N[digits_3])
            image = self._stack(number)
            # The checksum of the pixels as offset: a change of the digits is found.
            yield Item(f"stacked#{number}", str(number), zlib.crc32(image.data), image.size, name)

    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        return (self._stack(int(item.place)) for item in items)

    def _stack(self, number: int) -> np.ndarray:
        return np.stack([*self._digits.images[self._chosen_N3[number]]], axis=2)


def chosen(seed: int, count: int, digits: int) -> np.ndarray:
    """digits_N3: which three of the `digits` make each image. The first images are the same for every count.

    Raw words of Philox, which numpy keeps for ever, unlike the bounded integers that it makes of them.
    """
    words = np.random.Philox(key=seed).random_raw(3 * count).reshape(count, 3)
    digits_N3: np.ndarray = (words % np.uint64(digits)).astype(np.int64)
    return digits_N3


def stacked_mnist(folder: Folder, choice: Choice) -> StackedSource:
    """Stacks of the digits of a folder of IDX files."""
    digits = idx(folder, choice)
    if digits.labels_N.max() > 9:
        raise SourceError(f"{folder}: labels up to {digits.labels_N.max()}; --kind stacked-mnist needs digits, 0 to 9")
    return StackedSource(digits)
