"""The order of training as a pure function: what must hold of it for any dataset, batch, world and epoch."""

from collections import Counter
from functools import cache

import numpy as np
import pytest

from pipelines.errors import OrderError
from pipelines.loading import order
from pipelines.loading.order import Plan, check_workers, make_plan

COUNTS = [
    (10,),
    (1, 1, 1, 1),
    (3, 5, 7),
    (0, 9, 0, 4, 2, 1),
    (25,) * 8,
    (29, 30, 31, 7) * 2,
    (3,) * 70,
]
BATCHES = (1, 2, 3, 8, 12, 30, 64)
SHUFFLES = (1, 20, 10_000)
GRID = [
    (counts, batch, shuffle) for counts in COUNTS for batch in BATCHES for shuffle in SHUFFLES if sum(counts) >= batch
]
EPOCHS = (0, 5)
Position = tuple[int, int]


@cache
def stream(plan: Plan, epoch: int, number: int) -> list[Position]:
    return list(order.samples(plan, epoch, number))


def global_batch(plan: Plan, epoch: int, step: int, streams: range | None = None) -> list[Position]:
    """What the given streams (by default all) give to the batch of a step, in their order."""
    share = slice(step * plan.stream_batch, (step + 1) * plan.stream_batch)
    return [sample for number in streams or range(plan.streams) for sample in stream(plan, epoch, number)[share]]


def epoch_of(plan: Plan, epoch: int) -> list[Position]:
    return [sample for step in range(plan.steps_per_epoch) for sample in global_batch(plan, epoch, step)]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_no_sample_is_seen_twice_in_an_epoch_and_fewer_than_a_batch_and_a_stream_each_are_left_out(
    counts: tuple[int, ...],
) -> None:
    everything = {(shard, row) for shard, count in enumerate(counts) for row in range(count)}
    for _, batch, shuffle in [point for point in GRID if point[0] == counts]:
        plan = make_plan(counts, batch, shuffle, seed=3)
        for epoch in EPOCHS:
            seen = Counter(epoch_of(plan, epoch))
            assert {*seen} <= everything
            assert {*seen.values()} == {1}
            assert len(everything) - len(seen) < batch + plan.streams
            assert len(seen) == plan.steps_per_epoch * batch


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_every_stream_is_as_long_as_every_other_so_all_ranks_take_the_same_steps(counts: tuple[int, ...]) -> None:
    for _, batch, shuffle in [point for point in GRID if point[0] == counts]:
        plan = make_plan(counts, batch, shuffle, seed=0)
        assert plan.steps_per_epoch >= 1
        assert plan.stream_batch * plan.streams == batch
        for epoch in EPOCHS:
            lengths = {len(stream(plan, epoch, number)) for number in range(plan.streams)}
            assert lengths == {plan.stream_length}
        assert plan.steps_per_epoch * plan.stream_batch <= plan.stream_length


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_the_global_batch_is_the_same_for_every_world_up_to_the_streams(counts: tuple[int, ...]) -> None:
    for _, batch, shuffle in [point for point in GRID if point[0] == counts]:
        plan = make_plan(counts, batch, shuffle, seed=1)
        for step in {0, plan.steps_per_epoch - 1}:
            whole = global_batch(plan, 2, step)
            for world in range(1, plan.streams + 1):
                check_workers(plan, world, equal=plan.streams % world == 0)
                ranks = [global_batch(plan, 2, step, order.share(plan, rank, world)) for rank in range(world)]
                assert [sample for rank in ranks for sample in rank] == whole
                sizes = {len(rank) for rank in ranks}
                assert max(sizes) - min(sizes) == (plan.stream_batch if plan.streams % world else 0)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_a_stream_is_shuffled_within_its_windows_and_nowhere_else(counts: tuple[int, ...]) -> None:
    for _, batch, shuffle in [point for point in GRID if point[0] == counts]:
        plan = make_plan(counts, batch, shuffle, seed=0)
        assert plan.window == max(1, shuffle // plan.streams)
        for number in range(plan.streams):
            spans = order.spans(plan, 1, number)
            line = [(span.shard, row) for span in spans for row in range(span.start, span.stop)]
            taken = stream(plan, 1, number)
            assert len(line) == len(taken)
            for start in range(0, len(line), plan.window):
                window = slice(start, start + plan.window)
                assert sorted(taken[window]) == sorted(line[window])


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_streams_cut_the_epochs_shards_into_pieces_that_do_not_overlap(counts: tuple[int, ...]) -> None:
    for batch in (batch for batch in BATCHES if batch <= sum(counts)):
        plan = make_plan(counts, batch, 64, seed=5)
        for epoch in EPOCHS:
            spans = [span for number in range(plan.streams) for span in order.spans(plan, epoch, number)]
            assert all(0 <= span.start < span.stop <= counts[span.shard] for span in spans)
            rows = Counter((span.shard, row) for span in spans for row in range(span.start, span.stop))
            assert {*rows.values()} == {1}
            assert sum(counts) - len(rows) < plan.streams


def test_order_is_a_pure_function() -> None:
    for counts, batch, shuffle in GRID[::5]:
        first, again = make_plan(counts, batch, shuffle, 7), make_plan(counts, batch, shuffle, 7)
        assert first == again
        assert list(order.samples(first, 3, 0)) == list(order.samples(again, 3, 0))


BIG = make_plan((100,) * 8, 8, 64, seed=0)


def test_epochs_differ_from_each_other_and_leave_out_other_samples() -> None:
    assert len({tuple(epoch_of(BIG, epoch)) for epoch in range(10)}) == 10
    uneven = make_plan((99, 100, 101, 7) * 3, 30, 64, seed=0)
    assert len({frozenset(epoch_of(uneven, epoch)) for epoch in range(10)}) == 10


def test_seed_and_epoch_are_not_added_up() -> None:
    plans = {seed: make_plan((100,) * 8, 8, 64, seed) for seed in range(4)}
    orders = {(seed, epoch): tuple(epoch_of(plans[seed], epoch)) for seed in plans for epoch in range(4)}
    assert len({*orders.values()}) == len(orders)
    shards = {point: tuple(span.shard for span in order.spans(plans[point[0]], point[1], 0)) for point in orders}
    assert shards[0, 1] != shards[1, 0]


def test_large_seeds_are_seeds_too() -> None:
    seeds = (0, 1, 2**31, 2**32, 2**32 + 1, 2**63 - 1)
    assert len({tuple(epoch_of(make_plan((100,) * 8, 8, 64, seed), 0)) for seed in seeds}) == len(seeds)


def test_streams_and_windows_are_shuffled_each_its_own_way() -> None:
    long = make_plan((1000,) * 4, 4, 400, seed=0)
    orders = {
        tuple(order.window_order(long, epoch, number, window))
        for epoch in range(3)
        for number in range(long.streams)
        for window in range(5)
    }
    assert len(orders) == 3 * 4 * 5


def test_a_shuffle_of_one_keeps_the_rows_of_a_shard_in_order() -> None:
    plan = make_plan((50,), 5, 1, seed=0)
    assert stream(plan, 0, 0) == [(0, row) for row in range(50)]
    assert sorted(stream(make_plan((50,), 5, 50, seed=0), 0, 0)) == stream(plan, 0, 0)


@pytest.mark.parametrize(
    ("shards", "batch", "streams"),
    [(1, 64, 1), (8, 64, 8), (8, 12, 6), (70, 64, 64), (70, 128, 64), (100, 96, 48), (9, 7, 7), (6, 7, 1), (5, 1, 1)],
)
def test_there_are_as_many_streams_as_divide_the_batch_up_to_one_a_shard(shards: int, batch: int, streams: int) -> None:
    assert make_plan((200,) * shards, batch, 64, 0).streams == streams


def test_a_dataset_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(OrderError) as caught:
        make_plan((20, 30, 13), 64, 1000, 0)
    assert str(caught.value) == ("the dataset has 63 samples, less than one batch of 64; use a smaller --batch-size")
    assert make_plan((20, 30, 14), 64, 1000, 0).steps_per_epoch == 1


@pytest.mark.parametrize(
    ("shards", "batch", "workers", "message"),
    [
        (8, 64, 3, "a batch of 64 cannot be shared by 3 workers; use --workers 1, 2, 4, 8"),
        (4, 9, 2, "a batch of 9 cannot be shared by 2 workers; use --workers 1, 3"),
        (
            3, 64, 4,
            "too few shards: 3 shards and a batch of 64 make 2 streams, which 4 workers cannot share; "
            "use --workers 1, 2, or ingest with a smaller --shard-size",
        ),
        (
            1, 64, 2,
            "too few shards: 1 shards and a batch of 64 make 1 streams, which 2 workers cannot share; "
            "use --workers 1, or ingest with a smaller --shard-size",
        ),
    ],
)  # fmt: skip
def test_workers_who_cannot_share_are_told_how_many_can(shards: int, batch: int, workers: int, message: str) -> None:
    with pytest.raises(OrderError) as caught:
        check_workers(make_plan((100,) * shards, batch, 64, 0), workers)
    assert str(caught.value) == message


def test_more_workers_than_streams_cannot_share_unequally_either() -> None:
    for counts, batch, _ in GRID[:: len(SHUFFLES)]:
        plan = make_plan(counts, batch, 64, 0)
        check_workers(plan, plan.streams, equal=False)
        with pytest.raises(OrderError, match=f"{plan.streams + 1} workers"):
            check_workers(plan, plan.streams + 1, equal=False)


def test_exactly_the_divisors_of_the_streams_can_share() -> None:
    for counts, batch, _ in GRID[:: len(SHUFFLES)]:
        plan = make_plan(counts, batch, 64, 0)
        for workers in range(1, 2 * plan.streams + 2):
            if plan.streams % workers:
                with pytest.raises(OrderError, match=f"{workers} workers"):
                    check_workers(plan, workers)
            else:
                check_workers(plan, workers)
                assert np.gcd(plan.streams, workers) == workers
