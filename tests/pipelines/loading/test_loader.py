"""The loader: what ranks get is the plan's order, pixel for pixel, from any step on, or an error naming the shard."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pipelines import images
from pipelines.dataset import layout, reader, writer
from pipelines.dataset.identity import from_json
from pipelines.dataset.layout import Index
from pipelines.dataset.manifest import Reject
from pipelines.dataset.shards import Sample
from pipelines.errors import CorruptError
from pipelines.loading import loader, order
from pipelines.loading.loader import Batch
from pipelines.loading.order import Plan
from pipelines.storage.folder import Folder

SIZE = 6
COUNT, SHARD_SIZE = 42, 8
GONE = {3, 8, 9, 10, *range(16, 24), 30, 41}  # so that shards have uneven numbers of samples: 7, 5, 0, 7, 8, 1


def pixels(index: int, channels: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (SIZE, SIZE, channels), np.uint8)


def make(folder: Folder, channels: int, classes: list[str] | None) -> Index:
    identity = from_json({
        "producer": "ingest", "count": COUNT, "shard_size": SHARD_SIZE,
        "image_size": SIZE, "channels": channels, "classes": classes, "image": {"format": "png"}, "arithmetic": {},
    })  # fmt: skip
    writer.claim(folder, identity, {})
    records = {}
    for shard in range(layout.num_shards(identity)):
        owned = layout.shard_range(identity, shard)
        samples = [
            Sample(n, images.encode(pixels(n, channels)), n % 5 if classes else None)
            for n in owned if n not in GONE
        ]  # fmt: skip
        rejects = [Reject(n, "x", "empty") for n in owned if n in GONE]
        records[shard] = writer.commit(folder, shard, "ingest", samples, {"source": ["x"] * len(samples)}, rejects)
    return writer.seal(folder, identity, records, {})


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, Index]:
    """Not to be changed."""
    folder = Folder(str(tmp_path_factory.mktemp("loader") / "grey"))
    return folder, make(folder, 1, list("abcde"))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert loaders() == []


def loaders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "loader"]


def plan_of(index: Index, batch: int = 6, shuffle: int = 9, seed: int = 4) -> Plan:
    return order.make_plan(tuple(record.samples for record in index.shards), batch, shuffle, seed)


def expected(plan: Plan, channels: int, steps: range, labels: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """The global batches that the order says, made from the pixels that went into the dataset."""
    rows = [
        [n for n in range(s * SHARD_SIZE, min((s + 1) * SHARD_SIZE, COUNT)) if n not in GONE]
        for s in range(len(plan.counts))
    ]
    result = []
    for step in steps:
        epoch, within = divmod(step, plan.steps_per_epoch)
        share = slice(within * plan.stream_batch, (within + 1) * plan.stream_batch)
        taken = [
            rows[shard][row]
            for stream in range(plan.streams)
            for shard, row in list(order.samples(plan, epoch, stream))[share]
        ]
        result.append(
            (np.stack([pixels(n, channels) for n in taken]), np.array([n % 5 if labels else 0 for n in taken]))
        )
    return result


def load(folder: Folder, index: Index, plan: Plan, rank: int, world: int, steps: range) -> list[Batch]:
    with closing(loader.batches(folder, index, plan, rank, world, steps.start)) as batches:
        return list(islice(batches, len(steps)))


def assert_equal(ranks: list[list[Batch]], whole: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """The ranks' batches, laid side by side, are the global ones."""
    assert {len(rank) for rank in ranks} == {len(whole)}
    for step, (images_BHWC, labels_B) in enumerate(whole):
        sizes = [len(rank[step].labels_B) for rank in ranks]
        assert [rank[step].first for rank in ranks] == [sum(sizes[:number]) for number in range(len(ranks))]
        assert np.array_equal(np.concatenate([rank[step].images_BHWC for rank in ranks]), images_BHWC)
        assert np.array_equal(np.concatenate([rank[step].labels_B for rank in ranks]), labels_B)
        assert {(rank[step].images_BHWC.dtype, rank[step].labels_B.dtype) for rank in ranks} == {
            (np.dtype(np.uint8), np.dtype(np.int64))
        }


@pytest.mark.parametrize("shuffle", [1, 9, 1000])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 5, 6])
def test_the_ranks_batches_side_by_side_are_the_order_pixel_for_pixel(
    sealed: tuple[Folder, Index], world: int, shuffle: int
) -> None:
    plan = plan_of(sealed[1], shuffle=shuffle)
    assert (plan.counts, plan.streams, plan.steps_per_epoch) == ((7, 5, 0, 7, 8, 1), 6, 4)
    steps = range(2 * plan.steps_per_epoch + 1)
    ranks = [load(*sealed, plan, rank, world, steps) for rank in range(world)]
    assert_equal(ranks, expected(plan, 1, steps, labels=True))


@pytest.mark.parametrize("batch", [1, 4, 10, 28])
def test_the_order_holds_for_any_batch_that_the_dataset_fills(sealed: tuple[Folder, Index], batch: int) -> None:
    plan = plan_of(sealed[1], batch=batch)
    steps = range(plan.steps_per_epoch + 2)
    assert_equal([load(*sealed, plan, 0, 1, steps)], expected(plan, 1, steps, labels=True))


@pytest.mark.parametrize(("channels", "classes"), [(3, None), (3, list("abcde")), (1, None)])
def test_colours_arrive_in_order_and_labels_are_zeros_without_classes(
    channels: int, classes: list[str] | None, tmp_path: Path
) -> None:
    folder = Folder(str(tmp_path))
    index = make(folder, channels, classes)
    plan = plan_of(index)
    assert_equal([load(folder, index, plan, 0, 1, range(4))], expected(plan, channels, range(4), bool(classes)))


@pytest.mark.parametrize("shuffle", [1, 9, 30, 1000])
def test_starting_at_a_step_is_skipping_the_steps_before_it_over_epoch_borders_too(
    sealed: tuple[Folder, Index], shuffle: int
) -> None:
    plan = plan_of(sealed[1], shuffle=shuffle)
    whole = load(*sealed, plan, 1, 2, range(16))
    for start in (1, 2, 5, 6, 7, 12, 13):
        late = load(*sealed, plan, 1, 2, range(start, 16))
        for one, other in zip(whole[start:], late, strict=True):
            assert np.array_equal(one.images_BHWC, other.images_BHWC)
            assert np.array_equal(one.labels_B, other.labels_B)


def test_an_object_store_gives_the_same_batches(sealed: tuple[Folder, Index], s3: str) -> None:
    folder = Folder(f"{s3}/d")
    for name in sealed[0].tree():
        folder.write(name, sealed[0].read(name))
    plan = plan_of(sealed[1])
    ranks = [load(folder, reader.open_sealed(folder), plan, rank, 2, range(7)) for rank in range(2)]
    assert_equal(ranks, expected(plan, 1, range(7), labels=True))


def test_ranks_that_take_turns_do_not_disturb_each_other(sealed: tuple[Folder, Index]) -> None:
    plan = plan_of(sealed[1])
    streams = [loader.batches(*sealed, plan, rank, 3, 0) for rank in range(3)]
    turns = [[next(stream) for stream in streams] for _ in range(8)]
    for stream in streams:
        stream.close()
    assert_equal([[turn[rank] for turn in turns] for rank in range(3)], expected(plan, 1, range(8), labels=True))


@pytest.mark.parametrize("damage", ["flipped", "cut", "deleted"])
def test_a_shard_that_is_not_as_sealed_is_an_error_in_the_consumer(
    sealed: tuple[Folder, Index], damage: str, tmp_path: Path
) -> None:
    shutil.copytree(sealed[0].url, tmp_path / "copy")
    folder, index, name = Folder(f"{tmp_path}/copy"), sealed[1], sealed[1].shards[3].tar
    data = bytearray(folder.read(name))
    words = {
        "flipped": "changed after the seal (its sha256 differs)",
        "cut": f"{len(data) // 2} bytes, sealed with {len(data)}",
        "deleted": "missing",
    }
    if damage == "flipped":
        data[700] ^= 1
        folder.write(name, bytes(data))
    elif damage == "cut":
        folder.write(name, bytes(data[: len(data) // 2]))
    else:
        folder.delete(name)
    plan = plan_of(index)
    batches = loader.batches(folder, index, plan, 0, 1, 0)
    with pytest.raises(CorruptError) as caught:
        list(islice(batches, plan.steps_per_epoch))
    assert str(caught.value) == f"{folder}/{name}: {words[damage]}"
    assert loaders() == []
    assert list(batches) == []


@pytest.mark.parametrize("taken", [1, 2, 20])
def test_closing_ends_the_thread(sealed: tuple[Folder, Index], taken: int) -> None:
    batches = loader.batches(*sealed, plan_of(sealed[1]), 0, 1, 0)
    assert len(list(islice(batches, taken))) == taken
    assert len(loaders()) == 1
    batches.close()
    assert loaders() == []


def test_an_error_of_the_consumer_ends_the_thread(sealed: tuple[Folder, Index]) -> None:
    def consume() -> None:
        with closing(loader.batches(*sealed, plan_of(sealed[1]), 0, 1, 0)) as batches:
            for _ in batches:
                raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        consume()
    assert loaders() == []


def test_the_thread_runs_ahead_by_a_few_batches_and_no_further(tmp_path: Path) -> None:
    """Take one batch, then delete every shard: only what was read ahead can still come."""
    folder = Folder(str(tmp_path))
    index = make(folder, 1, None)
    plan = plan_of(index, batch=1, shuffle=1)
    batches = loader.batches(folder, index, plan, 0, 1, 0)
    next(batches)
    shutil.rmtree(tmp_path / "shards")
    with pytest.raises(CorruptError, match=r"missing$"):
        list(islice(batches, 10 * plan.steps_per_epoch))
