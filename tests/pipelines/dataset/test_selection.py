"""Selections: what is written is read back, a dataset seen through one holds just that, and nothing else is one."""

import hashlib
import io
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import images
from pipelines.dataset import reader, selection
from pipelines.dataset.layout import Index
from pipelines.dataset.selection import COLUMNS, Facts, Selection, SelectionError
from pipelines.errors import CorruptError, DatasetError
from pipelines.loading import loader, order
from pipelines.storage.folder import Folder
from tests.pipelines.loading.test_loader import COUNT, GONE, SHARD_SIZE, make, pixels

THERE = [n for n in range(COUNT) if n not in GONE]
SOME = [0, 2, 4, 5, 11, 12, 15, 24, 25, 26, 29, 31, 32, 33, 36, 37, 39]  # of shards 0, 1, 3 and 4, not of 5
ROOT = "ab" * 32


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, Index]:
    """42 indices in 6 shards, some of them empty. Not to be changed."""
    folder = Folder(str(tmp_path_factory.mktemp("selection") / "grey"))
    return folder, make(folder, 1, list("abcde"))


def facts(root: str, taken: int) -> Facts:
    return Facts(
        dataset=root,
        rule="top",
        parameters={"share": 0.5},
        images=len(THERE),
        classes=[{"label": None, "taken": taken, "of": len(THERE)}],
        report={"lowest_logit": [0.25]},
    )


def encoded(index_N: list[int], weights: list[float] | None = None, root: str = ROOT) -> bytes:
    return selection.encode(
        facts(root, len(index_N)), np.array(index_N, np.int64), None if weights is None else np.array(weights)
    )


def view(sealed: tuple[Folder, Index], index_N: list[int], weights: list[float] | None = None) -> Index:
    """The dataset as a selection of these indices shows it."""
    return selection.narrow(sealed[1], selection.decode(encoded(index_N, weights, sealed[1].root), "s"), "s")


def test_what_is_written_is_read_back() -> None:
    data = encoded(SOME)
    read = selection.decode(data, "x")
    assert (read.index_N.tolist(), read.facts) == (SOME, facts(ROOT, len(SOME)))
    assert read.digest == hashlib.sha256(data).hexdigest()
    assert read.index_N.dtype == np.int64


def test_the_same_selection_gives_the_same_bytes_and_another_others() -> None:
    assert encoded(SOME) == encoded(SOME)
    assert len({encoded(SOME), encoded(SOME[1:]), encoded(SOME, root="cd" * 32), encoded(SOME, [2] * len(SOME))}) == 4


def test_the_file_is_plain() -> None:
    file = pq.ParquetFile(io.BytesIO(encoded(SOME)))
    assert [(field.name, str(field.type), field.nullable) for field in file.schema_arrow] == [
        ("key", "string", False),
        ("index", "int64", False),
        ("weight", "float", False),
    ]
    assert {*file.metadata.metadata} == {b"ganmill"}
    told = json.loads(file.metadata.metadata[b"ganmill"])
    assert told == {"format": 1, "selected": len(SOME), **asdict(facts(ROOT, len(SOME)))}


def test_many_rows_are_small_and_come_back_over_row_groups() -> None:
    index_N = np.flatnonzero(np.random.default_rng(0).random(400_000) < 0.5)
    data = selection.encode(facts(ROOT, len(index_N)), index_N)
    assert pq.ParquetFile(io.BytesIO(data)).metadata.num_row_groups == 4
    assert len(data) < 4 * len(index_N)
    assert np.array_equal(selection.decode(data, "x").index_N, index_N)


def test_a_file_on_storage_is_named_by_its_url(sealed: tuple[Folder, Index], s3: str) -> None:
    Folder(s3).write("a/b.parquet", encoded(SOME))
    assert selection.read(f"{s3}/a/b.parquet").index_N.tolist() == SOME
    with pytest.raises(SelectionError, match=rf"^{s3}/a/c\.parquet: not found; make a selection with jobs/curate\.py$"):
        selection.read(f"{s3}/a/c.parquet")


def test_a_view_holds_the_chosen_samples_and_no_others(sealed: tuple[Folder, Index]) -> None:
    folder, index = sealed[0], view(sealed, SOME)
    assert (index.samples, index.root, index.identity) == (len(SOME), sealed[1].root, sealed[1].identity)
    assert [record.samples for record in index.shards] == [4, 3, 0, 5, 5, 0]
    found = [sample for record in index.shards for sample in reader.samples(folder, index, record)]
    assert [sample.index for sample in found] == SOME
    for sample in found:
        assert np.array_equal(images.decode(sample.image, 1), pixels(sample.index, 1))
    batches = [batch for record in index.shards for batch in loader.in_order(folder, index, record, 2)]
    assert np.array_equal(np.concatenate([b for b, _ in batches]), np.stack([pixels(n, 1) for n in SOME]))
    assert np.concatenate([labels for _, labels in batches]).tolist() == [n % 5 for n in SOME]
    for position, n in enumerate(SOME):
        key, image = loader.at(folder, index, position)
        assert (key, np.array_equal(image, pixels(n, 1))) == (f"{n:012d}", True)


def test_a_shard_of_which_nothing_was_chosen_is_not_read(sealed: tuple[Folder, Index]) -> None:
    index = view(sealed, SOME)
    nowhere = Folder(f"{sealed[0]}/nowhere")
    assert list(reader.samples(nowhere, index, index.shards[5])) == []
    with pytest.raises(CorruptError, match="missing"):
        list(reader.samples(nowhere, index, index.shards[0]))


def test_all_of_a_dataset_is_the_dataset(sealed: tuple[Folder, Index]) -> None:
    assert view(sealed, THERE) == sealed[1]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread for thread in threading.enumerate() if thread.name == "loader"] == []


def epochs(folder: Folder, index: Index, world: int, batch: int, steps: range) -> list[list[int]]:
    """The indices of each global batch, the ranks' shares side by side, told by the pixels."""
    known = {pixels(n, 1).tobytes(): n for n in range(COUNT)}
    plan = order.make_plan(tuple(record.samples for record in index.shards), batch, 9, 4)
    ranks = []
    for rank in range(world):
        with closing(loader.batches(folder, index, plan, rank, world, steps.start)) as batches:
            ranks.append([[known[i.tobytes()] for i in one.images_BHWC] for one in islice(batches, len(steps))])
    return [[n for share in shares for n in share] for shares in zip(*ranks, strict=True)]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_epoch_takes_each_chosen_sample_at_most_once_and_no_other(sealed: tuple[Folder, Index], world: int) -> None:
    """17 samples in batches of 6, one less for each of the streams: 2 steps; which are left out changes."""
    index = view(sealed, SOME)
    whole = epochs(sealed[0], index, world, 6, range(40))
    assert whole == epochs(sealed[0], index, 1, 6, range(40))
    for epoch in range(20):
        seen = [n for step in whole[2 * epoch : 2 * epoch + 2] for n in step]
        assert len(seen) == len({*seen}) == 12
        assert {*seen} <= {*SOME}
    assert {n for step in whole for n in step} == {*SOME}
    assert whole[7:] == epochs(sealed[0], index, world, 6, range(7, 40))


def test_a_weight_is_how_often_a_sample_comes_in_an_epoch(sealed: tuple[Folder, Index]) -> None:
    index = view(sealed, [1, 4, 25, 33, 34], [1, 3, 2, 1, 5])
    assert index.samples == 12
    first, second = epochs(sealed[0], index, 1, 1, range(24))[:12], epochs(sealed[0], index, 1, 1, range(12, 24))
    for epoch in (first, second):
        assert Counter(n for step in epoch for n in step) == {1: 1, 4: 3, 25: 2, 33: 1, 34: 5}
    assert first != second


def test_a_selection_of_another_dataset_is_refused_in_one_line(sealed: tuple[Folder, Index]) -> None:
    other = selection.decode(encoded(SOME), "s.parquet")
    with pytest.raises(DatasetError) as error:
        selection.narrow(sealed[1], other, "/a/s.parquet")
    assert str(error.value) == (
        f"/a/s.parquet: made of the dataset with root abababababab, but this one has {sealed[1].root[:12]}; give "
        "that dataset, or make another selection with jobs/curate.py"
    )


def test_samples_that_the_dataset_does_not_have_are_an_error(sealed: tuple[Folder, Index]) -> None:
    with pytest.raises(SelectionError, match=r"^s: names index 42, the dataset has 42$"):
        view(sealed, [0, COUNT])
    index = view(sealed, [0, 3, 5])  # 3 was rejected when the dataset was made
    with pytest.raises(CorruptError, match=r"000000\.tar: 2 samples, the selection has 3$"):
        list(reader.samples(sealed[0], index, index.shards[0]))


def parquet(table: pa.Table, footer: object = None, group: int = 1 << 17, more: Any = None, **options: Any) -> bytes:
    """A Parquet file with a selection's footer, or another."""
    told = {"format": 1, "selected": len(table), **asdict(facts(ROOT, len(table)))} if footer is None else footer
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, **{"store_schema": False, **options}) as writer:
        writer.write_table(table, row_group_size=group)
        writer.add_key_value_metadata(
            {b"ganmill": told if isinstance(told, bytes) else json.dumps(told), **(more or {})}
        )
    return sink.getvalue()


def rows(index: list[int], keys: list[str] | None = None, weight: list[float] | None = None) -> pa.Table:
    columns = [keys or [f"{n:012d}" for n in index], index, weight or [1.0] * len(index)]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, COLUMNS, strict=True)], COLUMNS)


WHOLE = {"format": 1, "selected": 3, **asdict(facts(ROOT, 3))}
ROWS = rows([1, 5, 9])
ANY = pa.schema([field.with_nullable(True) for field in COLUMNS])
HOSTILE = {
    "nothing": (b"", "its footer holds ARROW:schema, or there is none"),
    "no footer of ours": (
        parquet(ROWS, b"[]"),
        "selected is .*|list is list|.*should be a valid dictionary",
    ),
    "not JSON": (parquet(ROWS, b"\xff"), "codec can't decode"),
    "deep JSON": (parquet(ROWS, b"[" * 100_000), "recursion|more entries"),
    "many lists": (parquet(ROWS, b"[" * 300_000), "more entries than classes"),
    "a field more": (parquet(ROWS, {**WHOLE, "evil": 1}), "evil is 1: Extra inputs"),
    "a field less": (parquet(ROWS, {k: v for k, v in WHOLE.items() if k != "rule"}), "rule is dict: Field required"),
    "another format": (parquet(ROWS, {**WHOLE, "format": 2}), "format is 2"),
    "no root": (parquet(ROWS, {**WHOLE, "dataset": "../x"}), "dataset is '../x'"),
    "another count": (parquet(ROWS, {**WHOLE, "selected": 2}), "does not match its 3 rows"),
    "a huge count": (parquet(ROWS, {**WHOLE, "selected": 10**9}), "selected is 1000000000"),
    "no rows": (parquet(rows([]), {**WHOLE, "selected": 1}), "does not match its 0 rows"),
    "a column more": (parquet(ROWS.append_column("evil", pa.array([b"x"] * 3)), WHOLE), "its columns are"),
    "a column less": (parquet(ROWS.drop_columns(["weight"]), WHOLE), "its columns are"),
    "another type": (parquet(ROWS.set_column(1, "index", pa.array(["1", "5", "9"])), WHOLE), "its columns are"),
    "nulls": (parquet(ROWS.cast(ANY), WHOLE), "its columns are"),
    "Arrow's own types": (parquet(ROWS, WHOLE, store_schema=True), "holds ARROW:schema"),
    "pandas's types": (parquet(ROWS, WHOLE, more={b"pandas": b"{}"}), "its footer holds pandas"),
    "not ascending": (parquet(rows([1, 9, 5]), WHOLE), "indices are not ascending"),
    "twice": (parquet(rows([1, 5, 5]), WHOLE), "indices are not ascending"),
    "not ascending over groups": (parquet(rows([1, 5, 5]), WHOLE, group=2), "indices are not ascending"),
    "negative": (parquet(rows([-5, 5, 9]), WHOLE), "indices are not ascending"),
    "other keys": (parquet(rows([1, 5, 9], ["000000000001", "000000000006", "000000000009"]), WHOLE), "keys between"),
    "long keys": (parquet(rows([1, 5, 9], ["0" * 10**6] * 3), WHOLE), "keys between"),
    "no weight": (parquet(rows([1, 5, 9], weight=[1, 0, 1]), WHOLE), "a weight must be a whole number"),
    "half a weight": (parquet(rows([1, 5, 9], weight=[1, 1.5, 1]), WHOLE), "a weight must be a whole number"),
    "weights that are no numbers": (parquet(rows([1, 5, 9], weight=[1, float("nan"), 1]), WHOLE), "a weight must be"),
    "endless weights": (parquet(rows([1, 5, 9], weight=[1, float("inf"), 1]), WHOLE), "a weight must be"),
    "heavy weights": (parquet(rows([1, 5, 9], weight=[6e7, 6e7, 1]), WHOLE), "add up to more than 100,000,000"),
    "a large row group": (
        parquet(rows(list(range(70_000)))),
        "a row group of more than 65,536 rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_a_selection_is_refused_by_name(name: str) -> None:
    data, told = HOSTILE[name]
    with pytest.raises(SelectionError, match=rf"^s3://b/s\.parquet: not a selection, or damaged: .*({told})") as error:
        selection.decode(data, "s3://b/s.parquet")
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


def test_the_files_of_the_test_above_are_refused_for_what_they_are_named_by() -> None:
    assert selection.decode(parquet(ROWS, WHOLE, group=2), "x").index_N.tolist() == [1, 5, 9]


def test_a_key_that_is_written_once_and_stands_in_every_row_is_held_once() -> None:
    """65,536 rows of a key of 1 MB: 64 GB, if they were taken out of their dictionary before their length is known."""
    index = list(range(65_536))
    once = pa.DictionaryArray.from_arrays(np.zeros(len(index), np.int32), ["0" * 10**6])
    table = pa.table([once, index, np.ones(len(index), np.float32)], names=COLUMNS.names)
    data = io.BytesIO()
    schema = pa.schema([COLUMNS.field(0).with_type(once.type), *list(COLUMNS)[1:]])
    with pq.ParquetWriter(data, schema, store_schema=False) as writer:
        writer.write_table(table.cast(schema))
        told = {"format": 1, "selected": len(index), **asdict(facts(ROOT, len(index)))}
        writer.add_key_value_metadata({b"ganmill": json.dumps(told)})
    with pytest.raises(SelectionError, match="keys between 0 and 65535"):
        selection.decode(data.getvalue(), "x")


@pytest.mark.parametrize("size", range(1, len(encoded(SOME)), 97))
def test_a_file_that_is_cut_short_is_refused(size: int) -> None:
    with pytest.raises(SelectionError, match="not a selection, or damaged"):
        selection.decode(encoded(SOME)[:size], "x")


def test_a_byte_that_is_another_is_an_error_or_another_selection() -> None:
    """Parquet checks no sums of its own here: what is read is at least of the right form, and named by its digest."""
    data, known = encoded(SOME), hashlib.sha256(encoded(SOME)).hexdigest()
    read: list[Selection] = []
    for place in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        try:
            read.append(selection.decode(bytes(damaged), "x"))
        except SelectionError:
            continue
    assert all(one.digest != known and np.all(np.diff(one.index_N) >= 0) for one in read)


def test_duckdb_and_polars_join_it_with_the_manifest(sealed: tuple[Folder, Index], tmp_path: Path) -> None:
    file = tmp_path / "s.parquet"
    file.write_bytes(encoded(SOME, root=sealed[1].root))
    manifest = f"{sealed[0]}/manifest/*.parquet"
    found = duckdb.sql(
        f"select m.index, m.shard, m.label, s.weight from '{manifest}' m join '{file}' s using (key) order by m.index"
    ).fetchall()
    assert found == [(n, n // SHARD_SIZE, n % 5, 1.0) for n in SOME]
    assert polars.read_parquet(manifest).join(polars.read_parquet(file), on="key")["index"].sort().to_list() == SOME
