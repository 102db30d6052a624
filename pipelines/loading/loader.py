"""The batches of one rank from a sealed dataset on any store: checked shards in, uint8 pixels out, in planned order."""

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from pipelines.dataset import reader, shards
from pipelines.dataset.layout import Index
from pipelines.dataset.manifest import ShardRecord
from pipelines.dataset.shards import Sample
from pipelines.images import Pixels
from pipelines.loading import order
from pipelines.loading.order import Plan
from pipelines.storage.folder import Folder

PREFETCH_BATCHES = 4


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a global batch. B images, H x W pixels, C channels."""

    images_BHWC: np.ndarray  # uint8
    labels_B: np.ndarray  # int64; zeros without classes
    first: int  # where in the global batch the share begins


def batches(folder: Folder, index: Index, plan: Plan, rank: int, world: int, step: int) -> Generator[Batch, None, None]:
    """The rank's batches from global step `step` on, epoch after epoch without end.

    A thread reads and decodes a few batches ahead. Its errors are raised here: CorruptError for a shard that changed
    after the seal.
    """
    ready: queue.Queue[Batch | BaseException] = queue.Queue(PREFETCH_BATCHES)
    closed = threading.Event()

    def put(item: Batch | BaseException) -> None:
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for batch in _produce(folder, index, plan, rank, world, step):
                put(batch)
                if closed.is_set():
                    return
        except BaseException as error:  # the consumer raises it
            put(error)

    thread = threading.Thread(target=produce, name="loader", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join()


def in_order(folder: Folder, index: Index, record: ShardRecord, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A shard's images_NHWC and label_N (-1 without a class), `size` at a time, in the order of the shard."""
    line = reader.samples(folder, index, record)
    while taken := list(islice(line, size)):
        labels = [-1 if sample.label is None else sample.label for sample in taken]
        yield np.stack([reader.pixels(folder, index, sample) for sample in taken]), np.array(labels, np.int64)


def at(folder: Folder, index: Index, position: int) -> tuple[str, Pixels]:
    """Key and pixels of the image at a position among all images of the dataset. Reads its whole shard."""
    for record in index.shards:
        if position < record.samples:
            sample = next(islice(reader.samples(folder, index, record), position, None))
            return shards.key(sample.index), reader.pixels(folder, index, sample)
        position -= record.samples
    raise IndexError(position)


def _produce(folder: Folder, index: Index, plan: Plan, rank: int, world: int, step: int) -> Iterator[Batch]:
    share = order.share(plan, rank, world)
    epoch, first = divmod(step, plan.steps_per_epoch)
    while True:
        streams = [_stream(folder, index, plan, epoch, stream, first * plan.stream_batch) for stream in share]
        for _ in range(first, plan.steps_per_epoch):
            taken = [sample for stream in streams for sample in islice(stream, plan.stream_batch)]
            yield Batch(
                np.stack([reader.pixels(folder, index, sample) for sample in taken]),
                np.array([sample.label or 0 for sample in taken], np.int64),
                share.start * plan.stream_batch,
            )
        epoch, first = epoch + 1, 0


def _stream(folder: Folder, index: Index, plan: Plan, epoch: int, stream: int, start: int) -> Iterator[Sample]:
    """One stream's samples from position `start` on. Shards before the window of `start` are not read."""
    window = start // plan.window
    line = _read(folder, index, order.spans(plan, epoch, stream), window * plan.window)
    skip = start - window * plan.window
    while window * plan.window < plan.stream_length:
        permutation = order.window_order(plan, epoch, stream, window)
        buffer = list(islice(line, len(permutation)))
        for position in permutation[skip:].tolist():
            yield buffer[position]
        window, skip = window + 1, 0


def _read(folder: Folder, index: Index, spans: list[order.Span], start: int) -> Iterator[Sample]:
    """The samples of consecutive spans, without the first `start`."""
    for span in spans:
        length = span.stop - span.start
        if start >= length:
            start -= length
            continue
        record = index.shards[span.shard]
        yield from islice(reader.samples(folder, index, record), span.start + start, span.stop)
        start = 0
