"""Which image is at which index: the same however a source lists it, and the holdout's for ever."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.errors import SourceError
from pipelines.ingest import catalogue
from pipelines.ingest.catalogue import Catalogue, Reader
from pipelines.sources.base import Item
from pipelines.storage.folder import Folder


def files(count: int, prefix: str = "") -> list[Item]:
    return [Item(f"{prefix}{n}.png", f"{prefix}{n}.png", size=n, label="ab"[n % 2]) for n in range(count)]


def draw(items: list[Item], scratch: Path, seed: int = 0, holdout: float = 0.0) -> tuple[Catalogue, Catalogue | None]:
    scratch.mkdir()
    return catalogue.plan(items, "here", None, True, seed, holdout, scratch)


def names(drawn: Catalogue | None) -> list[str]:
    assert drawn is not None
    return [drawn.name(index) for index in range(len(drawn))]


def test_the_order_is_of_the_seed_and_not_of_the_listing(tmp_path: Path) -> None:
    items = files(1000)
    shuffled = random.Random(1).sample(items, 1000)
    first, again, other = (
        draw(chosen, tmp_path / str(n), seed)[0]
        for n, (chosen, seed) in enumerate([(items, 0), (shuffled, 0), (items, 1)])
    )
    assert names(first) == names(again) != names(other)
    assert first.digest == again.digest
    assert sorted(names(first)) == sorted(item.name for item in items)
    assert names(first)[:100] != sorted(names(first))[:100]


def test_blocks_stay_together_and_in_their_order(tmp_path: Path) -> None:
    items = [Item(f"{tar}#{n}", tar, n, block=tar) for tar in ("a", "b", "c", "d") for n in range(50)]
    found = names(draw(items, tmp_path / "s")[0])
    blocks = [found[start : start + 50] for start in range(0, 200, 50)]
    assert [[name.split("#")[1] for name in block] for block in blocks] == [[str(n) for n in range(50)]] * 4
    assert all({name[0] for name in block} == {block[0][0]} for block in blocks)
    assert sorted(block[0][0] for block in blocks) == ["a", "b", "c", "d"]
    assert [block[0][0] for block in blocks] != ["a", "b", "c", "d"]


def test_the_holdout_keeps_its_images_when_others_are_added(tmp_path: Path) -> None:
    kept, held = draw(files(2000), tmp_path / "a", holdout=0.1)
    more, more_held = draw([*files(2000), *files(3000, "new/")], tmp_path / "b", holdout=0.1)
    assert set(names(held)) < set(names(more_held))
    assert set(names(kept)) < set(names(more))
    assert set(names(kept)) | set(names(held)) == {item.name for item in files(2000)}
    assert 150 < len(names(held)) < 250
    _, other_seed = draw(files(2000), tmp_path / "c", seed=5, holdout=0.1)
    assert set(names(other_seed)) == set(names(held))
    assert set(names(held)) < set(names(draw(files(2000), tmp_path / "d", holdout=0.2)[1]))  # and a larger share adds


@pytest.mark.parametrize("change", [{"name": "x.png"}, {"size": 99}, {"label": "c"}, {"offset": 5}])
def test_another_source_has_another_digest(change: dict[str, object], tmp_path: Path) -> None:
    items = files(20)
    changed = [*items[:-1], items[-1]._replace(**change)]  # type: ignore[arg-type]
    assert draw(items, tmp_path / "a")[0].digest != draw(changed, tmp_path / "b")[0].digest


@pytest.mark.parametrize("shard_size", [1, 7, 1000, 100_000])
def test_workers_read_what_was_drawn_up(shard_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "ROWS_A_FILE", 256)
    drawn, _ = draw(files(1000), tmp_path / "s")
    folder = Folder(str(tmp_path / "out"))
    drawn.publish(folder, shard_size)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out" / "catalogue").iterdir()}
    drawn.publish(folder, shard_size)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out" / "catalogue").iterdir()}
    reader = Reader(folder, drawn.digest, shard_size)
    found = [reader.shard(shard) for shard in range(-(-1000 // shard_size))]
    assert [item.name for items, _ in found for item in items] == names(drawn)
    assert all(len(items) == shard_size for items, _ in found[:-1])
    for items, labels in found:
        assert labels == [int(item.name.split(".")[0]) % 2 for item in items]
        assert [item.size for item in items] == [int(item.name.split(".")[0]) for item in items]
    with pytest.raises(SourceError, match="planned for another source; start the command again"):
        Reader(folder, "0" * 64, shard_size).shard(0)
    with pytest.raises(SourceError, match=r"catalogue/\d+\.parquet: missing: did another run seal this dataset\?"):
        Reader(folder, drawn.digest, shard_size).shard(10**5)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["b", "a", "b"], ["a", "b"]),
        (["10", "9", "9"], ["9", "10"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["a", "a", "a"], None),
        ([None, "a", "b"], ["a", "b"]),
        ([None, None, None], None),
    ],
)
def test_classes(labels: list[str | None], classes: list[str] | None, tmp_path: Path) -> None:
    items = [Item(str(n), "", label=label) for n, label in enumerate(labels)]
    assert draw(items, tmp_path / "a")[0].classes == classes
    (tmp_path / "b").mkdir()
    unlabelled, _ = catalogue.plan(items, "here", ["x"], False, 0, 0.0, tmp_path / "b")
    assert unlabelled.classes is None


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "here: no images here; check --source"),
        ([*files(9), Item("3.png", "y")], "here: 3.png: occurs twice; each image needs a unique name"),
        ([Item("\udcff.png", "")], r"here: '\udcff.png': this name is not UTF-8; rename it"),
        ([Item("a", "", label="\ud800")], r"here: '\ud800': this name is not UTF-8; rename it"),
        (
            [Item(str(n), "", label=str(n)) for n in range(100_001)],
            "here: more than 100,000 classes: is this the column of",
        ),
        ([Item(str(n), "", label="xy"[n] * 1001) for n in range(2)], "xxx': a class's name has 1 to 1,000 letters"),
    ],
    ids=["none", "twice", "not UTF-8", "label not UTF-8", "classes", "long"],
)
def test_refusals(items: list[Item], message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        draw(items, tmp_path / "s")
    assert message in str(caught.value)


def test_memory_does_not_hold_the_list(tmp_path: Path) -> None:
    """Names of 100 bytes are 150 each as Python's strings, with the rest of an item 400; here 16, and a file."""

    def anonymous() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) << 10

    levels = []

    def many() -> Iterator[Item]:
        for n in range(400_000):
            if n in (100_000, 399_999):
                levels.append(anonymous())
            yield Item(f"{'d' * 90}/{n:07d}.png", f"{n}", size=n)

    assert len(catalogue.plan(many(), "here", None, True, 0, 0.0, tmp_path)[0]) == 400_000
    assert (levels[1] - levels[0]) / 300_000 < 60
