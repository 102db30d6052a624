"""The order of samples: a pure function of (seed, epoch, position), never of ranks or workers.

An epoch permutes the shards and concatenates them. The sequence of N samples is cut into C equal *streams*; C depends
on the plan, not on the world size. Each stream is shuffled in windows of bounded size. A global batch takes B/C samples
from every stream, and rank r of W reads the streams [r*C/W, (r+1)*C/W), rounded down. So the global batch at a step is
the same for every world size, every rank takes the same number of steps, and a resumed run reads no sample before the
current window.

An epoch leaves out the samples that do not fill a batch: fewer than B + C, different ones in each epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.errors import OrderError

MAX_STREAMS = 64


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive samples of one shard: its rows [start, stop)."""

    shard: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All that decides the order. `counts`: samples of each shard. `window`: samples that a stream shuffles at once."""

    counts: tuple[int, ...]
    batch: int
    streams: int
    window: int
    seed: int

    @property
    def stream_length(self) -> int:
        """Samples of a stream in an epoch."""
        return sum(self.counts) // self.streams

    @property
    def stream_batch(self) -> int:
        """Samples of each stream in a global batch."""
        return self.batch // self.streams

    @property
    def steps_per_epoch(self) -> int:
        return self.stream_length // self.stream_batch


def make_plan(counts: tuple[int, ...], batch: int, shuffle: int, seed: int) -> Plan:
    """The plan of a dataset: the most streams that divide the batch, at most one a shard and MAX_STREAMS.

    Raises: OrderError if the dataset has fewer samples than one batch.
    """
    if sum(counts) < batch:
        raise OrderError(
            f"the dataset has {sum(counts)} samples, less than one batch of {batch}; use a smaller --batch-size"
        )
    limit = min(len(counts), batch, MAX_STREAMS)
    streams = max(n for n in range(1, limit + 1) if batch % n == 0)
    return Plan(counts, batch, streams, max(1, shuffle // streams), seed)


def share(plan: Plan, rank: int, world: int) -> range:
    """The streams of a rank. Where `world` does not divide them, some ranks have one more."""
    return range(rank * plan.streams // world, (rank + 1) * plan.streams // world)


def check_workers(plan: Plan, workers: int, equal: bool = True) -> None:
    """Raises OrderError naming the possible numbers of workers, unless `workers` ranks can share the plan's streams.

    Args: equal: every rank must get the same number of streams; else they may differ by one.
    """
    if workers > plan.streams or (equal and plan.streams % workers):
        possible = ", ".join(str(n) for n in range(1, plan.streams + 1) if plan.streams % n == 0)
        if plan.batch % workers:
            raise OrderError(f"a batch of {plan.batch} cannot be shared by {workers} workers; use --workers {possible}")
        raise OrderError(
            f"too few shards: {len(plan.counts)} shards and a batch of {plan.batch} make {plan.streams} streams, "
            f"which {workers} workers cannot share; use --workers {possible}, or ingest with a smaller --shard-size"
        )


def spans(plan: Plan, epoch: int, stream: int) -> list[Span]:
    """The pieces of shards that make up one stream's epoch, in reading order."""
    order = np.random.default_rng([plan.seed, epoch]).permutation(len(plan.counts))
    first, last = stream * plan.stream_length, (stream + 1) * plan.stream_length
    result, position = [], 0
    for shard in order.tolist():
        count = plan.counts[shard]
        start, stop = max(first - position, 0), min(last - position, count)
        if start < stop:
            result.append(Span(shard, start, stop))
        position += count
    return result


def window_order(plan: Plan, epoch: int, stream: int, window: int) -> np.ndarray:
    """The order of a window's samples: a permutation of its length."""
    length = min(plan.window, plan.stream_length - window * plan.window)
    return np.random.default_rng([plan.seed, epoch, stream, window]).permutation(length)


def samples(plan: Plan, epoch: int, stream: int) -> Iterator[tuple[int, int]]:
    """One stream's epoch as (shard, row), in the order in which training sees it."""
    line = [(span.shard, row) for span in spans(plan, epoch, stream) for row in range(span.start, span.stop)]
    for window, start in enumerate(range(0, plan.stream_length, plan.window)):
        for position in window_order(plan, epoch, stream, window).tolist():
            yield line[start + position]
