"""Shards, parts, seals, selections and batches, over random datasets: what went in comes out, and no change passes.

What a dataset must hold is told by its pile (tests/pipelines/sources/pictures.py): sample n is picture n.
"""

import dataclasses
import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pipelines import images
from pipelines.dataset import layout, manifest, reader, selection, shards, writer
from pipelines.dataset.journal import Journal
from pipelines.dataset.layout import Index
from pipelines.dataset.manifest import PartError, Reject
from pipelines.dataset.selection import Facts
from pipelines.dataset.shards import Sample, ShardError
from pipelines.errors import CorruptError, DatasetError
from pipelines.images import ImageError
from pipelines.ingest import duplicates
from pipelines.loading import loader, order
from pipelines.sources.base import Item
from pipelines.sources.tar_members import read_pieces
from pipelines.storage.folder import Folder, StorageError
from tests.pipelines.sources.pictures import SealedPile, commit, examples, make, pixels, png, scratch, sealed_piles

REFUSALS = (CorruptError, DatasetError, PartError, ShardError, StorageError)
ON_S3 = settings(examples(0.15), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

contents = st.integers(0, 2**32 - 1).flatmap(
    lambda seed: st.sampled_from((0, 1, 7, 511, 512, 513, 1024, 9999, 20_480)).map(
        lambda size: np.random.default_rng(seed).bytes(size)
    )
)
indices = st.integers(0, 10**12 - 1)
samples = st.lists(
    st.builds(Sample, indices, contents, st.none() | st.integers(0, 99_999)), max_size=6, unique_by=lambda s: s.index
).map(lambda its: sorted(its, key=lambda sample: sample.index))


@given(samples, st.sampled_from(("png", "jpg", "webp")))
def test_a_shard_is_the_tar_that_tarfile_writes_and_its_samples_come_back(its: list[Sample], extension: str) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in its:
            members = {extension: sample.image}
            if sample.label is not None:
                members["cls"] = str(sample.label).encode()
            for ending, data in members.items():
                member = tarfile.TarInfo(f"{sample.index:012d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    packed = shards.pack(its, extension)
    assert packed.data == sink.getvalue()
    assert list(shards.unpack(packed.data, "x")) == its
    assert (packed.index, packed.label) == ([s.index for s in its], [s.label for s in its])
    for sample, offset, size, sha256 in zip(its, packed.offset, packed.size, packed.sha256, strict=True):
        assert packed.data[offset : offset + size] == sample.image
        assert sha256 == hashlib.sha256(sample.image).digest()
    with tarfile.open(fileobj=io.BytesIO(packed.data)) as tar:
        assert [m.offset_data for m in tar if not m.name.endswith(".cls")] == packed.offset


@given(samples, st.integers(1, 3), st.integers(0, 20_000), st.integers(1, 255))
def test_a_shard_ends_at_its_end(its: list[Sample], records: int, at: int, byte: int) -> None:
    more = bytearray(records * tarfile.RECORDSIZE)
    assert list(shards.unpack(shards.pack(its, "png").data + more, "x")) == its
    more[at % len(more)] = byte
    with pytest.raises(ShardError):
        list(shards.unpack(shards.pack(its, "png").data + more, "x"))


@given(samples, st.integers(0, 10**6), st.data())
def test_a_part_gives_back_its_rows_and_rejects(its: list[Sample], shard: int, data: st.DataObject) -> None:
    text = st.text(max_size=8)
    names = data.draw(st.lists(text, min_size=len(its), max_size=len(its)), "sources")
    rejects = data.draw(st.lists(st.builds(Reject, indices, text, text), max_size=4), "rejects")
    packed = shards.pack(its, "png")
    encoded = manifest.encode("ingest", shard, packed, {"source": names}, rejects)
    part = manifest.decode(encoded, "x")
    assert (part.shard, part.rejects) == (shard, tuple(rejects))
    assert (part.tar_bytes, part.tar_sha256) == (len(packed.data), hashlib.sha256(packed.data).hexdigest())
    assert part.table.to_pylist() == [
        {
            **{"key": f"{sample.index:012d}", "index": sample.index, "shard": shard, "offset": offset},
            **{"size": len(sample.image), "sha256": hashlib.sha256(sample.image).digest(), "label": sample.label},
            "source": name,
        }
        for sample, offset, name in zip(its, packed.offset, names, strict=True)
    ]
    record = manifest.record(encoded, part)
    assert (record.shard, record.samples, record.bytes) == (shard, len(its), len(packed.data))
    assert (record.part_bytes, record.part_sha256) == (len(encoded), hashlib.sha256(encoded).hexdigest())


def read_parts(folder: Folder, pieces: list[tuple[int, int]], data: bytes) -> None:
    """Range by range, and by seeking in one open file, as bytes and io.BytesIO would."""
    oracle = io.BytesIO(data)
    with folder.open("file") as file:
        for at, size in pieces:
            at %= len(data) + 10
            assert file.seek(at) == oracle.seek(at)
            assert file.read(size) == oracle.read(size)
            assert file.tell() == oracle.tell()
            if at + size <= len(data):
                assert folder.read_range("file", at, size) == data[at : at + size]
            else:
                with pytest.raises(StorageError):
                    folder.read_range("file", at, size)
        assert file.seek(-1, 2) == len(data) - 1
        assert file.read() == data[-1:]
        assert file.seek(-1, 1) == len(data) - 1
    assert folder.read("file") == data


file_data = st.builds(
    lambda seed, size: np.random.default_rng(seed).bytes(size), st.integers(0, 99), st.integers(1, 5000)
)
piece_lists = st.lists(st.tuples(st.integers(0, 6000), st.integers(1, 3000)), max_size=8)


@given(file_data, piece_lists)
def test_a_range_of_a_file_is_that_range(data: bytes, pieces: list[tuple[int, int]]) -> None:
    with scratch() as root:
        folder = Folder(str(root))
        folder.write("file", data)
        read_parts(folder, pieces, data)


@ON_S3
@given(st.integers(400_000, 600_000), st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 300_000)), max_size=8))
def test_a_range_of_an_object_is_that_range(s3: str, size: int, pieces: list[tuple[int, int]]) -> None:
    """Larger than what one request reads ahead."""
    data = np.random.default_rng(size).bytes(size)
    folder = Folder(s3)
    folder.write("file", data)
    read_parts(folder, pieces, data)


def read_items(folder: Folder, files: list[bytes], asked: list[tuple[int, int, int]], limit: int) -> None:
    items = [Item(f"{n}", f"{file}", at, size) for n, (file, at, size) in enumerate(asked)]
    found = [str(c) if isinstance(c, ImageError) else c for c in read_pieces(folder, items, limit)]
    for item, content in zip(items, found, strict=True):
        if item.size > limit:
            assert str(content).startswith("too large")
        elif not item.size:
            assert content in ("empty", "no image in the sample")
        else:
            assert content == files[int(item.place)][item.offset : item.offset + item.size]


@st.composite
def askings(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, int]]]:
    """The size of two files, and pieces of them: in their order and close together, or not."""
    size = draw(st.sampled_from((2000, 300_000)))
    asked = []
    for file in draw(st.lists(st.integers(0, 1), max_size=4)):
        at = draw(st.integers(0, size - 1))
        for gap, length in draw(st.lists(st.tuples(st.sampled_from((0, 1, 600, 65_536, 65_537)), st.integers(0, 700)))):
            if at + gap + length <= size:
                asked.append((file, at + gap, length))
                at += gap + length
    return size, asked


@given(askings(), st.sampled_from((1, 300, 10_000)))
def test_pieces_of_files_are_what_each_alone_is(asking: tuple[int, list[tuple[int, int, int]]], limit: int) -> None:
    with scratch() as root:
        files = [np.random.default_rng(n).bytes(asking[0]) for n in range(2)]
        folder = Folder(str(root))
        for n, data in enumerate(files):
            folder.write(f"{n}", data)
        read_items(folder, files, asking[1], limit)


@ON_S3
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5000), st.integers(0, 999)), min_size=20, max_size=40))
def test_pieces_of_objects_are_in_the_order_in_which_they_were_asked_for(s3: str, asked: Any) -> None:
    """Requests are under way side by side."""
    files = [np.random.default_rng(n).bytes(6000) for n in range(2)]
    for n, data in enumerate(files):
        Folder(s3).write(f"{n}", data)
    read_items(Folder(s3), files, asked, 900)


def told(index: Index, folder: Folder) -> list[tuple[int, Any, int | None]]:
    """Index, pixels and label of all that a dataset holds."""
    return [
        (sample.index, images.decode(sample.image, 1).tobytes(), sample.label)
        for record in index.shards
        for sample in reader.samples(folder, index, record)
    ]


def put_in(pile: SealedPile, chosen: list[int]) -> list[tuple[int, Any, int | None]]:
    return [(n, pixels(n).tobytes(), pile.label(n)) for n in chosen]


def verify(folder: Folder) -> int:
    """All that jobs/verify.py checks of a dataset."""
    index = reader.open_sealed(folder)
    reader.check_files(folder, index)
    return sum(reader.check_shard(folder, index, record) for record in index.shards)


@given(sealed_piles, st.data())
def test_a_dataset_holds_what_was_put_in_and_each_row_is_a_range_read(pile: SealedPile, data: st.DataObject) -> None:
    with scratch() as root:
        folder = Folder(str(root))
        made = make(folder, pile)
        index = reader.open_sealed(folder)
        assert index == made
        assert verify(folder) == index.samples == len(pile.there)
        assert told(index, folder) == put_in(pile, pile.there)
        rows = [
            (row, reject)
            for record in index.shards
            for part in [reader.read_sealed_part(folder, record)]
            for row, reject in [(part.table.to_pylist(), part.rejects)]
        ]
        assert [row["index"] for its, _ in rows for row in its] == pile.there
        assert {reject.index for _, its in rows for reject in its} == {n for n in pile.gone if n < pile.count}
        for row in (row for its, _ in rows for row in its):
            image = folder.read_range(f"shards/{row['shard']:06d}.tar", row["offset"], row["size"])
            assert (image, row["label"]) == (png(row["index"]), pile.label(row["index"]))
        position = data.draw(st.integers(0, index.samples - 1), "position")
        key, image_HWC = loader.at(folder, index, position)
        assert (int(key), image_HWC.tobytes()) == (pile.there[position], pixels(pile.there[position]).tobytes())
        size = data.draw(st.integers(1, 8), "size")
        for record in index.shards:
            its = [n for n in pile.there if n // pile.shard_size == record.shard]
            batches = [*loader.in_order(folder, index, record, size)]
            assert [len(label_N) for _, label_N in batches] == [
                len(its[i : i + size]) for i in range(0, len(its), size)
            ]
            assert [image.tobytes() for images_N, _ in batches for image in images_N] == [
                pixels(n).tobytes() for n in its
            ]
            known = [-1 if pile.label(n) is None else pile.label(n) for n in its]
            assert [label for _, label_N in batches for label in label_N.tolist()] == known


# Any change of any file of a sealed dataset.


@given(
    sealed_piles, st.sampled_from(("flip", "cut", "longer", "emptied", "deleted", "of another", "one more")), st.data()
)
def test_verify_refuses_any_change_of_any_file(pile: SealedPile, change: str, data: st.DataObject) -> None:
    with scratch() as root:
        folder = Folder(f"{root}/one")
        make(folder, pile)
        name = data.draw(st.sampled_from(sorted(folder.tree())), "file")
        before = folder.read(name)
        at = data.draw(st.integers(0, len(before) - 1), "at")
        if change == "flip":
            after = bytes([*before[:at], before[at] ^ 1 << data.draw(st.integers(0, 7), "bit"), *before[at + 1 :]])
        elif change == "cut":
            after = before[:at]
        elif change == "longer":
            after = before + bytes(data.draw(st.integers(1, 20_480), "more"))
        elif change == "of another":
            other = Folder(f"{root}/other")
            make(other, dataclasses.replace(pile, count=pile.count + 1, classes=["ant", "bee"]))
            after = other.read(name)
        else:
            after = b""
        assume(after != before)
        if change == "deleted":
            folder.delete(name)
        elif change == "one more":
            folder.write(data.draw(st.sampled_from(("shards/999999.tar", "manifest/999999.parquet"))), before)
        else:
            folder.write(name, after)
        with pytest.raises(REFUSALS) as caught:
            verify(folder)
        assert folder.url in str(caught.value)


@given(sealed_piles, st.sampled_from(("record", "tar", "part")), st.data())
def test_no_seal_without_all_shards(pile: SealedPile, gone: str, data: st.DataObject) -> None:
    with scratch() as root:
        folder = Folder(str(root))
        writer.claim(folder, pile.identity, {})
        records = {shard: commit(folder, pile, shard) for shard in range(layout.num_shards(pile.identity))}
        shard = data.draw(st.sampled_from(sorted(records)), "shard")
        if gone == "record":
            del records[shard]
        else:
            folder.delete(getattr(records[shard], gone))
        with pytest.raises(CorruptError):
            writer.seal(folder, pile.identity, records, {})
        assert layout.SEAL not in folder.list()


@given(sealed_piles, st.data())
def test_a_part_that_another_run_replaced_is_read_whatever_the_journal_says(
    pile: SealedPile, data: st.DataObject
) -> None:
    """For one run the source has lost an image by then: its part of that shard has other rows, and a reject."""
    lost = data.draw(st.sampled_from(pile.there), "lost")
    with scratch() as root:
        folder = Folder(str(root))
        writer.claim(folder, pile.identity, {})
        records = {shard: commit(folder, pile, shard) for shard in range(layout.num_shards(pile.identity))}
        journal = Journal(folder, pile.identity)
        for shard, record in records.items():
            owned = layout.shard_range(pile.identity, shard)
            journal.add(record, has_rejects=not pile.gone.isdisjoint(owned))
            if lost in owned:
                records[shard] = commit(folder, dataclasses.replace(pile, gone={*pile.gone, lost}), shard)
                assume(records[shard].part_bytes != record.part_bytes)
        journal.flush()
        found = [*writer.records_of(folder, records, Journal(folder, pile.identity))]
        assert sorted((record for record, _ in found), key=lambda record: record.shard) == [*records.values()]
        rejected = {reject.index for _, rejects in found for reject in rejects}
        assert rejected == {n for n in range(pile.count) if n in {*pile.gone, lost}}


@given(sealed_piles, st.data())
def test_verify_refuses_two_files_of_one_kind_swapped(pile: SealedPile, data: st.DataObject) -> None:
    with scratch() as root:
        folder = Folder(str(root))
        index = make(folder, pile)
        assume(len(index.shards) > 1)
        one, other = data.draw(st.permutations(index.shards), "shards")[:2]
        for name in data.draw(st.sampled_from((["tar"], ["part"], ["tar", "part"])), "of"):
            first, second = getattr(one, name), getattr(other, name)
            content = folder.read(first)
            folder.write(first, folder.read(second))
            folder.write(second, content)
        with pytest.raises(REFUSALS):
            verify(folder)


def resealed(folder: Folder, pile: SealedPile, shard: int, tar: bytes, part: bytes) -> None:
    """A seal that agrees with any tar and part, as a writer that errs would leave it: hashes and sizes are right."""
    folder.write(manifest.tar_name(shard), tar)
    folder.write(manifest.part_name(shard), part)
    records = {n: reader.read_part(folder, n)[1] for n in range(layout.num_shards(pile.identity))}
    records[shard] = dataclasses.replace(records[shard], bytes=len(tar), sha256=hashlib.sha256(tar).hexdigest())
    writer.seal(folder, pile.identity, records, {"README.md": b"pictures\n"})


def swap(*columns: str) -> Callable[[dict[str, list[Any]], list[Sample], int, int], None]:
    def change(rows: dict[str, list[Any]], samples: list[Sample], one: int, other: int) -> None:
        for column in columns:
            rows[column][one], rows[column][other] = rows[column][other], rows[column][one]

    return change


def nudge(column: str, by: int) -> Callable[[dict[str, list[Any]], list[Sample], int, int], None]:
    def change(rows: dict[str, list[Any]], samples: list[Sample], one: int, other: int) -> None:
        rows[column][one] += by

    return change


def swap_images(rows: dict[str, list[Any]], samples: list[Sample], one: int, other: int) -> None:
    samples[one], samples[other] = (
        dataclasses.replace(samples[one], image=samples[other].image),
        dataclasses.replace(samples[other], image=samples[one].image),
    )


def swap_labels(rows: dict[str, list[Any]], samples: list[Sample], one: int, other: int) -> None:
    samples[one], samples[other] = (
        dataclasses.replace(samples[one], label=samples[other].label),
        dataclasses.replace(samples[other], label=samples[one].label),
    )


def lose(rows: dict[str, list[Any]], samples: list[Sample], one: int, other: int) -> None:
    for column in rows.values():
        del column[one]


def lose_sample(rows: dict[str, list[Any]], samples: list[Sample], one: int, other: int) -> None:
    del samples[one]


DISAGREEMENTS = {
    "two labels of the part are swapped": swap("label"),
    "two offsets": swap("offset"),
    "two hashes": swap("sha256"),
    "two offsets and their hashes": swap("offset", "sha256"),
    "two keys": swap("key"),
    "two indices": swap("index"),
    "an offset is one too high": nudge("offset", 1),
    "a size is one too low": nudge("size", -1),
    "a row is of another shard": nudge("shard", 1),
    "two images of the tar are swapped": swap_images,
    "two labels of the tar are swapped": swap_labels,
    "a row is lost": lose,
    "a sample is lost": lose_sample,
}


@pytest.mark.parametrize("change", DISAGREEMENTS)
@examples(0.25)
@given(data=st.data(), count=st.integers(2, 12), shard_size=st.integers(2, 5))
def test_verify_refuses_a_tar_and_a_part_that_disagree_though_the_seal_agrees_with_both(
    change: str, data: st.DataObject, count: int, shard_size: int
) -> None:
    pile = SealedPile(count, set(), shard_size, ["cat", "dog", "ant"])
    with scratch() as root:
        folder = Folder(str(root))
        make(folder, pile)
        shard = data.draw(st.integers(0, (count - 2) // shard_size), "shard")
        owned = layout.shard_range(pile.identity, shard)
        assume(len(owned) > 1)
        one, other = data.draw(st.permutations(range(len(owned))), "rows")[:2]
        samples = [Sample(n, png(n).ljust(300, b"\0"), pile.label(n)) for n in owned]  # images of one size
        assume("labels" not in change or samples[one].label != samples[other].label)
        packed = shards.pack(samples, "png")
        honest = manifest.encode("ingest", shard, packed, {"source": [f"{n}.png" for n in owned]})
        resealed(folder, pile, shard, packed.data, honest)
        assert verify(folder) == count
        rows = manifest.decode(honest, "x").table.to_pydict()
        DISAGREEMENTS[change](rows, samples, one, other)
        resealed(folder, pile, shard, shards.pack(samples, "png").data, rewritten(honest, rows))
        with pytest.raises(REFUSALS) as caught:
            verify(folder)
        assert f"{shard:06d}" in str(caught.value)


def rewritten(part: bytes, rows: dict[str, list[Any]]) -> bytes:
    """A part with other rows and the same footer."""
    table = pq.read_table(io.BytesIO(part))
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(pa.table(rows, table.schema))
        writer.add_key_value_metadata({manifest.FOOTER: pq.read_metadata(io.BytesIO(part)).metadata[manifest.FOOTER]})
    return sink.getvalue()


@pytest.mark.parametrize("what", ["index", "label", "no label", "size", "no image", "short", "twice", "unordered"])
@examples(0.25)
@given(data=st.data(), pile=sealed_piles)
def test_readers_refuse_a_sample_that_no_shard_of_the_dataset_can_hold(
    what: str, data: st.DataObject, pile: SealedPile
) -> None:
    with scratch() as root:
        folder = Folder(str(root))
        make(folder, pile)
        index = reader.open_sealed(folder)
        record = data.draw(st.sampled_from([record for record in index.shards if record.samples]), "shard")
        its = [*reader.samples(folder, index, record)]
        sample = its[-1]
        known = len(pile.classes or [])
        beyond = (record.shard + 1) * pile.shard_size + data.draw(st.integers(0, 3), "beyond")
        assume(what != "unordered" or len(its) > 1)
        its[-2 if what == "unordered" else -1 :] = {
            "index": [dataclasses.replace(sample, index=min(beyond, 10**6))],
            "label": [dataclasses.replace(sample, label=known + data.draw(st.integers(0, 3), "too high"))],
            "no label": [dataclasses.replace(sample, label=None if known else 0)],
            "size": [dataclasses.replace(sample, image=images.encode(pixels(0, 8, 9)))],
            "no image": [dataclasses.replace(sample, image=b"no image")],
            "short": [],
            "twice": [sample, sample],
            "unordered": [sample, its[-2] if len(its) > 1 else sample],
        }[what]
        tar = shards.pack(its, "png").data
        folder.write(record.tar, tar)
        broken = dataclasses.replace(record, bytes=len(tar), sha256=hashlib.sha256(tar).hexdigest())
        with pytest.raises((CorruptError, ShardError)) as caught:
            list(reader.samples(folder, index, broken))
        assert f"{folder}/{record.tar}" in str(caught.value)


# Selections and batches.

weights = st.integers(1, 3)


def selected(index: Index, chosen: dict[int, int], root: str = "") -> Index:
    """The dataset as a selection shows it, written and read back. `root`: of another dataset that it was made of."""
    classes = [{"label": None, "taken": 0, "of": 0}]
    facts = Facts(dataset=root or index.root, rule="r", parameters={}, images=index.samples, classes=classes)
    encoded = selection.encode(facts, np.array(sorted(chosen), np.int64), np.array([chosen[n] for n in sorted(chosen)]))
    return selection.narrow(index, selection.decode(encoded, "s"), "s")


def often(chosen: dict[int, int]) -> list[int]:
    return [n for n in sorted(chosen) for _ in range(chosen[n])]


@given(sealed_piles, st.data())
def test_a_selection_shows_exactly_the_chosen_samples_as_often_as_they_were_chosen(
    pile: SealedPile, data: st.DataObject
) -> None:
    with scratch() as root:
        folder = Folder(f"{root}/d")
        index = make(folder, pile)
        chosen = data.draw(st.dictionaries(st.sampled_from(pile.there), weights, min_size=1), "chosen")
        view = selected(index, chosen)
        assert told(view, folder) == put_in(pile, often(chosen))
        assert (view.samples, view.root) == (len(often(chosen)), index.root)
        absent = sorted({*range(pile.count)} - {*pile.there})
        if absent:
            gone = data.draw(st.sampled_from(absent), "gone")
            with pytest.raises(CorruptError):
                told(selected(index, chosen | {gone: 1}), folder)
        with pytest.raises(DatasetError):
            selected(index, chosen | {pile.count: 1})
        with pytest.raises(DatasetError):
            selected(index, chosen, "0" * 64)


@st.composite
def plans(draw: st.DrawFn) -> tuple[SealedPile, dict[int, int] | None, int, int, int]:
    """A dataset, perhaps seen through a selection; a batch that it fills, a shuffle and a seed."""
    pile = draw(sealed_piles)
    chosen = draw(st.none() | st.dictionaries(st.sampled_from(pile.there), weights, min_size=1))
    most = len(pile.there if chosen is None else often(chosen))
    batch = draw(st.integers(1, max(1, most // 4)) | st.integers(1, most))  # an epoch of several steps, or of one
    return pile, chosen, batch, draw(st.sampled_from((1, 3, 10, 1000))), draw(st.integers(0, 2**63 - 1))


Seen = Counter[tuple[bytes, int]]


def load(folder: Folder, index: Index, plan: order.Plan, world: int, steps: range) -> list[list[tuple[bytes, int]]]:
    """The global batches, put together from all ranks' shares."""
    whole: list[list[tuple[bytes, int]]] = [[] for _ in steps]
    for rank in range(world):
        with closing(loader.batches(folder, index, plan, rank, world, steps.start)) as batches:
            for step, batch in enumerate(islice(batches, len(steps))):
                assert batch.first == len(whole[step])
                images_B = [image.tobytes() for image in batch.images_BHWC]
                whole[step] += zip(images_B, batch.labels_B.tolist(), strict=True)
    return whole


@given(plans(), st.data())
def test_the_global_batches_are_the_same_for_every_world_and_each_sample_comes_at_most_as_often_as_it_is_there(
    drawn: tuple[SealedPile, dict[int, int] | None, int, int, int], data: st.DataObject
) -> None:
    pile, chosen, batch, shuffle, seed = drawn
    with scratch() as root:
        folder = Folder(str(root))
        index = make(folder, pile)
        index = index if chosen is None else selected(index, chosen)
        there = pile.there if chosen is None else often(chosen)
        plan = order.make_plan(tuple(record.samples for record in index.shards), batch, shuffle, seed)
        epoch = plan.steps_per_epoch
        steps = range(min(2 * epoch, epoch + 6))
        whole = load(folder, index, plan, 1, steps)
        assert {len(its) for its in whole} == {batch}
        put: Seen = Counter((pixels(n).tobytes(), pile.label(n) or 0) for n in there)
        for first in range(0, len(steps), epoch):
            seen = Counter(one for its in whole[first : first + epoch] for one in its)
            assert seen <= put
        assert len(there) - batch * epoch < batch + plan.streams
        if chosen is None and min(plan.window, plan.stream_length) >= 8 and len(steps) == 2 * epoch:
            assert whole[:epoch] != whole[epoch:]
        for world in range(1, plan.streams + 1):  # most of them do not divide the streams
            assert load(folder, index, plan, world, steps[:1]) == whole[:1]
        world = data.draw(st.integers(1, plan.streams), "world")
        assert load(folder, index, plan, world, steps) == whole
        start = data.draw(st.integers(0, len(steps) - 1), "start")
        assert load(folder, index, plan, world, steps[start:]) == whole[start:]


@given(st.integers(0, 2**63 - 1), st.integers(8, 40), st.integers(1, 3), st.integers(0, 1000))
def test_each_window_of_each_stream_and_epoch_is_shuffled_and_in_its_own_way(
    seed: int, window: int, streams: int, epoch: int
) -> None:
    """Two permutations of 8 are equal once in 40,000 times."""
    plan = order.Plan((window * streams,) * 3, streams, streams, window, seed)
    found = [
        tuple(order.window_order(plan, e, stream, w).tolist())
        for e in (epoch, epoch + 1)
        for stream in range(streams)
        for w in range(3)
    ]
    assert len({*found}) == len(found)
    assert tuple(range(window)) not in found
    assert {tuple(sorted(one)) for one in found} == {tuple(range(window))}
    for stream in range(streams):
        assert sum(span.stop - span.start for span in order.spans(plan, epoch, stream)) == plan.stream_length
    lines = {
        e: [(span.shard, span.start) for s in range(streams) for span in order.spans(plan, e, s)] for e in range(12)
    }
    assert len({tuple(line) for line in lines.values()}) > 1  # shards too


# Duplicates.


@given(st.lists(st.integers(0, 4), max_size=20))
def test_exact_duplicates_are_those_whose_pixels_came_before(numbers: list[int]) -> None:
    codes = [duplicates.code(pixels(n), "exact") for n in numbers]
    firsts = {n: numbers.index(n) for n in numbers}
    assert duplicates.find(codes, "exact") == {i: firsts[n] for i, n in enumerate(numbers) if firsts[n] != i}


@st.composite
def near_codes(draw: st.DrawFn) -> list[bytes]:
    """Hashes some bits apart, with thumbnails some levels apart."""
    bases = [np.random.default_rng(n).bytes(8) for n in range(2)]
    codes = []
    flipped = st.sets(st.sampled_from((0, 16, 32, 48)))  # a bit of each band, of which one has to agree
    levels = st.sampled_from((0, 24, 25, 200))
    for base, flips, level in draw(st.lists(st.tuples(st.sampled_from(bases), flipped, levels), max_size=14)):
        bits = int.from_bytes(base, "big")
        for flip in flips:
            bits ^= 1 << flip
        codes.append(bits.to_bytes(8, "big") + bytes([level] * 16))
    return codes


@examples(3)
@given(near_codes())
def test_near_duplicates_are_those_that_comparing_each_with_each_finds(codes: list[bytes]) -> None:
    kept: list[int] = []
    found = {}
    for number, code in enumerate(codes):
        same = [
            other
            for other in kept
            if (int.from_bytes(code[:8], "big") ^ int.from_bytes(codes[other][:8], "big")).bit_count() <= 3
            and abs(code[8] - codes[other][8]) <= 24
        ]
        if same:
            found[number] = same[0]
        else:
            kept.append(number)
    assert duplicates.find(codes, "near") == found
