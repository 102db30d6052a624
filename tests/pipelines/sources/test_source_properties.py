"""Every kind of source, over random piles of pictures: nothing vanishes, nothing is swapped, whoever reads it how.

The law of reading: whatever is asked of one source object before, in one call or in several, each content is what a
fresh source gives for that item alone, and that is what was put in, under the label that was put in.
"""

import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jobs.ingestion.worker import IngestShard
from pipelines import images
from pipelines.dataset import layout, reader, writer
from pipelines.dataset.identity import Identity, from_json
from pipelines.errors import CorruptError, SourceError
from pipelines.images import ImageError
from pipelines.ingest import catalogue
from pipelines.ingest.catalogue import Catalogue
from pipelines.sources.base import Content, Item, Source
from pipelines.sources.registry import Origin, kind_of
from pipelines.storage.folder import Folder
from tests.pipelines.sources.pictures import PILES, SIDE, Laid, SealedPile, examples, png, scratch, sealed_piles

SEEDS = st.integers(0, 2**63 - 1)
REJECTED = "rejected"


@pytest.fixture(scope="module", autouse=True)
def _cache_stays() -> Iterator[None]:
    """A pile of torchvision's lies in its own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", "/nonexistent")
        yield


def plain(content: Content | str) -> Any:
    """A content that can be compared; a reason is its text."""
    if isinstance(content, np.ndarray):
        return content.shape, content.tobytes()
    return str(content) if isinstance(content, ImageError) else content


def read(source: Source, items: Sequence[Item]) -> list[Any]:
    return [plain(content) for content in source.read(items)]


@pytest.mark.parametrize("kind", PILES)
@examples(2)
@given(data=st.data())
def test_a_content_is_what_its_item_alone_gives_in_whatever_order_and_company_it_is_read(
    kind: str, data: st.DataObject
) -> None:
    pile = data.draw(PILES[kind], "pile")
    with scratch() as root:
        laid = pile.lay(root)
        source = laid.open()
        items = [*source.items()]
        assert kind_of(laid.url) == kind
        assert {item.name: item.label for item in items} == {name: label for name, (_, label) in laid.listed.items()}
        assert len(items) == len(laid.listed)
        assert source.tally.listed == len(items) + laid.ignored
        assert sum(source.tally.ignored.values()) == laid.ignored
        alone = [read(laid.open(), [item]) for item in items]
        assert alone == [[plain(laid.listed[item.name][0])] for item in items]
        asked = data.draw(st.lists(st.lists(st.integers(0, len(items) - 1), max_size=8), max_size=3), "asked")
        for numbers in asked:
            assert read(source, [items[n] for n in numbers]) == [alone[n][0] for n in numbers]
        side_by_side = zip_longest(*(source.read([items[n] for n in numbers]) for numbers in asked))
        found = [[plain(content) for content in row if content is not None] for row in side_by_side]
        assert found == [[alone[n][0] for n in row if n is not None] for row in zip_longest(*asked)]


def drawn(laid: Laid, root: Path, seed: int, holdout: float = 0.0) -> tuple[Catalogue, Catalogue | None]:
    source = laid.open()
    return catalogue.plan(source.items(), laid.url, source.classes, True, seed, holdout, root)


def identity(part: Catalogue, shard_size: int) -> Identity:
    fields = {
        "producer": "ingest",
        "source": part.digest,
        "count": len(part),
        "shard_size": shard_size,
        "image": {"format": "png", "resize": "stretch", "background": [255, 255, 255]},
        "image_size": SIDE,
        "channels": 1,
        "classes": part.classes,
        "dedupe": None,
        "limits": {"bytes": 64 << 20, "pixels": images.MAX_PIXELS},
        "arithmetic": {},
    }
    return from_json(fields)


@pytest.mark.parametrize("kind", PILES)
@given(data=st.data(), seed=SEEDS, shard_size=st.integers(1, 13), holdout=st.sampled_from((0.0, 0.5)))
def test_a_catalogue_gives_each_item_once_with_its_label(
    kind: str, data: st.DataObject, seed: int, shard_size: int, holdout: float
) -> None:
    pile = data.draw(PILES[kind], "pile")
    with scratch() as root:
        laid = pile.lay(root)
        listed = {item.name: item for item in laid.open().items()}
        found: list[str] = []
        for number, part in enumerate(drawn(laid, root, seed, holdout)):
            if part is None or not len(part):
                continue
            folder = Folder(f"{root}/made{number}")
            part.publish(folder, shard_size)
            reader = catalogue.Reader(folder, part.digest, shard_size)
            shards = range(-(-len(part) // shard_size))
            first = len(found)
            for shard in shards:
                items, labels = reader.shard(shard)
                assert len(items) == min(shard_size, len(part) - shard * shard_size)
                for index, (item, label) in enumerate(zip(items, labels, strict=True), shard * shard_size):
                    there = listed[item.name]
                    assert (item.place, item.offset, item.size) == (there.place, there.offset, there.size)
                    assert part.name(index) == item.name
                    # One class alone is none, unless the source declares it.
                    assert (part.classes[label] if label is not None else None) == (
                        there.label if part.classes else None
                    )
                found += [item.name for item in items]
            blocks = [listed[name].block or name for name in found[first:]]
            borders = sum(one != other for one, other in pairwise(blocks))
            assert borders == len({*blocks}) - 1  # a block's items stay together
            assert reader.shard(0) == catalogue.Reader(folder, part.digest, shard_size).shard(0)
        assert sorted(found) == sorted(listed)


def contents(folder: Folder, settled: Identity) -> dict[str, tuple[Any, str | None]]:
    """What a dataset holds, by source: pixels and class name, read back through its tars; or that it was rejected."""
    found: dict[str, tuple[Any, str | None]] = {}
    classes = settled.classes
    parts = {shard: reader.read_part(folder, shard) for shard in range(layout.num_shards(settled))}
    index = writer.seal(folder, settled, {shard: record for shard, (_, record) in parts.items()}, {})
    for record in index.shards:
        part = parts[record.shard][0]
        reader.check_shard(folder, index, record)
        sources = part.table["source"].to_pylist()
        for sample, name in zip(reader.samples(folder, index, record), sources, strict=True):
            label = None if sample.label is None else classes[sample.label]
            found[name] = plain(images.decode(sample.image, 1)), label
        found |= {reject.source: (REJECTED, None) for reject in part.rejects}
        assert len(sources) + len(part.rejects) == len(layout.shard_range(settled, record.shard))
    return found


def wanted(laid: Laid, classes: list[str] | None) -> dict[str, tuple[Any, str | None]]:
    """What a dataset of a pile has to hold."""
    result: dict[str, tuple[Any, str | None]] = {}
    for name, (content, label) in laid.listed.items():
        taken = not isinstance(content, str) and (label is not None or classes is None)
        pixels = images.normalise(content, SIDE, 1, "stretch", (255, 255, 255)) if taken else np.zeros(0)
        result[name] = (plain(pixels), label if classes else None) if taken else (REJECTED, None)
    return result


@pytest.mark.parametrize("kind", PILES)
@given(data=st.data(), seed=SEEDS, shard_size=st.integers(1, 13), workers=st.integers(1, 3))
def test_each_image_of_a_dataset_is_the_picture_that_its_source_names_whoever_takes_which_shard_when(
    kind: str, data: st.DataObject, seed: int, shard_size: int, workers: int
) -> None:
    pile = data.draw(PILES[kind], "pile")
    with scratch() as root:
        laid = pile.lay(root)
        origin = Origin(laid.url, kind, laid.choice)
        part, _ = drawn(laid, root, seed)
        settled = identity(part, shard_size)
        shards = data.draw(st.permutations(range(layout.num_shards(settled))), "shards")
        made: list[dict[str, bytes]] = []
        for name, order, many in (("one", sorted(shards), 1), ("many", shards, workers)):
            folder = Folder(f"{root}/{name}")
            writer.claim(folder, settled, {})
            part.publish(folder, shard_size)
            actors = [IngestShard(folder.url, origin) for _ in range(many)]
            results = [actors[turn % many](shard) for turn, shard in enumerate(order)]
            made.append({file: folder.read(file) for file in folder.tree()})
            assert sorted(result["record"]["shard"] for result in results) == sorted(shards)
            rejects = Counter(reject["source"] for result in results for reject in result["rejects"])
            found = contents(folder, settled)
            assert found == wanted(laid, part.classes)
            assert rejects == Counter(name for name, (pixels, _) in found.items() if pixels == REJECTED)
        assert made[0] == made[1]


@given(count=st.integers(1, 40), seeds=st.lists(SEEDS, min_size=2, max_size=2), more=st.integers(0, 40), data=st.data())
def test_an_image_keeps_its_side_of_the_holdout_and_any_change_of_an_item_is_seen(
    count: int, seeds: list[int], more: int, data: st.DataObject
) -> None:
    items = [Item(f"{n}.png", "x", n, 9, f"{n % 3}") for n in range(count + more)]
    with scratch() as root:
        sides = []
        for seed, many in zip(seeds, (count, count + more), strict=True):
            parts = catalogue.plan(items[:many], "x", None, True, seed, 0.5, root)
            sides.append([{part.name(n) for n in range(len(part))} for part in parts if part is not None])
            assert sorted(name for side in sides[-1] for name in side) == sorted(item.name for item in items[:many])
        assert all(fewer <= all_ for fewer, all_ in zip(*sides, strict=True))
        n = data.draw(st.integers(0, count - 1), "changed")
        change = data.draw(st.sampled_from(({"name": "y"}, {"offset": -1}, {"size": 8}, {"label": "7"})), "to")
        digests = {
            catalogue.plan(its, "x", None, True, seeds[0], 0.0, root)[0].digest
            for its in (items, [*items[:n], items[n]._replace(**change), *items[n + 1 :]])
        }
        assert len(digests) == 2
        with pytest.raises(SourceError, match="occurs twice"):
            catalogue.plan([*items, items[n]._replace(offset=99)], "x", None, True, seeds[0], 0.0, root)


SPOILT = ("a header zeroed", "a header changed", "cut", "another behind it", "more behind it")


@given(PILES["tar"] | PILES["webdataset"], st.sampled_from(SPOILT), st.data())
def test_a_damaged_tar_is_refused_or_gives_all_that_was_put_in(pile: Any, how: str, data: st.DataObject) -> None:
    with scratch() as root:
        laid = pile.lay(root)
        tars = [path for path in root.rglob("*") if path.is_file() and tarfile.is_tarfile(path)]
        path = data.draw(st.sampled_from(sorted(tars)), "tar")
        assume(path.suffix.lower() == ".tar")
        content = bytearray(path.read_bytes())
        with tarfile.open(path) as tar:
            header = data.draw(st.sampled_from([member.offset for member in tar] or [0]), "header")
        if how == "a header zeroed":
            content[header : header + 512] = bytes(512)
        elif how == "a header changed":
            content[header + data.draw(st.integers(0, 511), "at")] ^= 1 << data.draw(st.integers(0, 7), "bit")
        elif how == "cut":
            del content[header:]
        elif how == "another behind it":
            content += bytes(content)
        else:
            content += bytes(data.draw(st.integers(0, 2000), "zeros")) + b"x"
        path.write_bytes(content)
        with suppress(SourceError):
            items = [*laid.open().items()]
            found = {item.name: (read(laid.open(), [item])[0], item.label) for item in items}
            assert found == {name: (plain(put), label) for name, (put, label) in laid.listed.items()}


@given(sealed_piles, st.data())
def test_a_dataset_that_is_ingested_again_gives_what_was_put_in_or_is_refused(
    pile: SealedPile, data: st.DataObject
) -> None:
    with scratch() as root:
        laid = pile.lay(root)
        folder, source = Folder(laid.url), laid.open()
        items = [*source.items()]
        item = data.draw(st.sampled_from(items), "item")
        tar = bytearray(folder.read(item.place))
        tar[item.offset + data.draw(st.integers(0, item.size - 1), "at")] ^= 1 << data.draw(st.integers(0, 7), "bit")
        folder.write(item.place, bytes(tar))
        asked = data.draw(st.permutations(items), "asked")
        with pytest.raises(CorruptError, match=item.name):
            list(source.read(asked))
        others = [its for its in asked if its != item]
        assert list(source.read(others)) == [png(int(its.name)) for its in others]


@examples(0.08)
@given(seed=SEEDS, count=st.integers(66_000, 80_000), shard_size=st.sampled_from((1000, 30_000, 65_536)))
def test_a_catalogue_of_several_files_gives_each_item_once(seed: int, count: int, shard_size: int) -> None:
    """Files hold 65,536 rows, so no small pile has two of them."""
    with scratch() as root:
        items = (Item(f"{n}.png", f"{n % 7}", n, n % 11, str(n % 3)) for n in range(count))
        part, _ = catalogue.plan(items, "x", None, True, seed, 0.0, root)
        folder = Folder(f"{root}/made")
        part.publish(folder, shard_size)
        reader = catalogue.Reader(folder, part.digest, shard_size)
        numbers: list[int] = []
        for shard in range(-(-count // shard_size)):
            its, labels = reader.shard(shard)
            assert len(its) == min(shard_size, count - shard * shard_size)
            numbers += [item.offset for item in its]
            assert labels == [item.offset % 3 for item in its]
        assert sorted(numbers) == [*range(count)]
        assert pa.array(part.table["offset"]).take(pa.array(part.rows_N)).to_pylist() == numbers
