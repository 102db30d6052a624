"""Make an image again, and find the training image that is nearest to it, in a process of its own.

Both need much memory or torch: the server stays small without them, and the process starts when it is first asked.
"""

import math
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from pipelines import images
from pipelines.dataset import reader
from pipelines.errors import CorruptError, DatasetError
from pipelines.images import Pixels
from pipelines.storage.folder import Folder

MAX_VALUES = 1 << 30  # of all pixels; more are not searched: 60,000 digits have 47 million, and take some seconds


@dataclass(frozen=True, slots=True)
class Again:
    """An image made again: as PNG, the largest difference from the stored one, and the largest that is allowed."""

    png: bytes
    levels: int
    tolerance: int


@dataclass(frozen=True, slots=True)
class Nearest:
    """The training image with the smallest distance in pixels."""

    png: bytes
    key: str
    distance: float  # root of the mean squared difference, in grey levels
    searched: int  # images


class Helper:
    """The process. Its errors come back as they are; one that dies is started anew by the next question."""

    def __init__(self, dataset: str, real: str) -> None:
        self._dataset, self._real = dataset, real
        self._pool: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()

    def again(self, row: dict[str, Any]) -> Again:
        return self._call(make_again, self._dataset, row)  # type: ignore[no-any-return]

    def nearest(self, row: dict[str, Any]) -> Nearest:
        return self._call(find_nearest, self._dataset, self._real, row)  # type: ignore[no-any-return]

    def _call(self, function: Any, *arguments: Any) -> Any:
        with self._lock:
            if self._pool is None:
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(1, context, initializer=_live_with_the_server)
            pool = self._pool
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            with self._lock:
                self._pool = None
            raise CorruptError("the process that makes images again died; look at the memory, and try again") from error

    def close(self) -> None:
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = None


def _live_with_the_server() -> None:
    """A terminal's Ctrl-C goes to this process too: the server ends it. Without the server it ends itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


@cache
def _regenerator(dataset: str) -> Any:
    import torch

    from dcgan import numerics
    from jobs.command.regenerator import Regenerator

    torch.set_num_threads(1)  # as the actor that made the images
    folder = Folder(dataset)
    index = reader.open_sealed(folder)
    precision = "bf16" if index.identity.arithmetic.get("dtype") == "bfloat16" else "fp32"
    return Regenerator(folder, index, numerics.choose(precision, "cpu"))


def make_again(dataset: str, row: dict[str, Any]) -> Again:
    """Make a row's image again with the dataset's own model."""
    from jobs.command.regenerator import levels_apart

    regenerator = _regenerator(dataset)
    made = regenerator.again(row)
    stored = _stored(regenerator.folder, row, made.shape[2])
    if stored.shape != made.shape:
        raise CorruptError(f"{dataset}: sample {row['key']}: its image is {stored.shape}, the model's {made.shape}")
    return Again(images.encode(made), levels_apart(made, stored), regenerator.tolerance)


def find_nearest(dataset: str, real: str, row: dict[str, Any]) -> Nearest:
    """The training image nearest to a row's image, by all pixels of all training images."""
    folder = Folder(real)
    index = reader.open_sealed(folder)
    values = index.samples * math.prod(index.image_shape)
    if values > MAX_VALUES:
        raise DatasetError(f"{real}: {index.samples:,} images have {values:,} values; {MAX_VALUES:,} are searched here")
    wanted = _stored(Folder(dataset), row, index.image_shape[2]).astype(np.float32).ravel()
    best, found, searched = np.inf, None, 0
    for record in index.shards:
        samples = [*reader.samples(folder, index, record)]
        if not samples:
            continue
        pixels_NP = np.stack([reader.pixels(folder, index, sample).ravel() for sample in samples]).astype(np.float32)
        distance_N = np.square(pixels_NP - wanted).mean(axis=1)
        nearest = int(distance_N.argmin())
        if distance_N[nearest] < best:
            best, found = float(distance_N[nearest]), samples[nearest]
        searched += len(samples)
    if found is None:
        raise CorruptError(f"{real}: no images")
    return Nearest(images.encode(reader.pixels(folder, index, found)), f"{found.index:012d}", best**0.5, searched)


def _stored(folder: Folder, row: dict[str, Any], channels: int) -> Pixels:
    return images.decode(reader.read_image(folder, row), channels)
