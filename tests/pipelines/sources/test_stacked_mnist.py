"""Stacked MNIST: each image is three digits of the source, the same ones whoever reads it, in whatever company."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import SourceError
from pipelines.sources.base import Choice, Item, Source
from pipelines.sources.idx import ArraySource
from pipelines.sources.registry import open_source
from pipelines.sources.stacked_mnist import COUNT, StackedSource, chosen, stacked_mnist
from pipelines.storage.folder import Folder
from tests.pipelines.sources.test_sources import idx_files, write

SEEDS = st.integers(0, 2**63 - 1)


def digits(count: int, seed: int) -> ArraySource:
    rng = np.random.default_rng(seed)
    return ArraySource("x", rng.integers(0, 256, (count, 4, 4), np.uint8), rng.integers(0, 10, count))


def pixels(source: Source, items: list[Item]) -> list[bytes]:
    return [np.asarray(content).tobytes() for content in source.read(items)]


@given(st.integers(1, 30), st.integers(1, 40), SEEDS, st.data())
def test_an_image_is_its_three_digits_in_any_order_and_company(
    number: int, count: int, seed: int, data: st.DataObject
) -> None:
    single = digits(number, 1)
    source = StackedSource(single, count, seed)
    items = [*source.items()]
    assert len(items) == count == source.tally.listed
    assert len({item.name for item in items}) == count
    alone = [pixels(StackedSource(digits(number, 1), count, seed), [item])[0] for item in items]
    asked = data.draw(st.lists(st.integers(0, count - 1), max_size=20), "asked")
    assert pixels(source, [items[n] for n in asked]) == [alone[n] for n in asked]
    for item, three_3, [content] in zip(
        items, chosen(seed, count, number), (list(source.read([item])) for item in items), strict=True
    ):
        assert content.shape == (4, 4, 3)
        for channel, digit in enumerate(three_3):
            assert np.array_equal(content[..., channel], single.images[digit])
            assert item.label is not None
            assert int(item.label[channel]) == single.labels_N[digit]


@given(st.integers(1, 70_000), st.integers(1, 500), st.integers(1, 500), SEEDS)
def test_fewer_images_are_the_first_of_more(number: int, fewer: int, more: int, seed: int) -> None:
    fewer, more = sorted((fewer, more))
    assert np.array_equal(chosen(seed, fewer, number), chosen(seed, more, number)[:fewer])


def test_a_changed_digit_changes_the_images_that_show_it_and_no_other() -> None:
    single = digits(20, 1)
    before = [item.offset for item in StackedSource(single, 200, 5).items()]
    single.images[3, 0, 0] ^= 255
    after = [item.offset for item in StackedSource(single, 200, 5).items()]
    shows = (chosen(5, 200, 20) == 3).any(1).tolist()
    assert [one != other for one, other in zip(before, after, strict=True)] == shows
    assert 0 < sum(shows) < 200


def test_every_class_is_there_as_often_as_chance_has_it() -> None:
    """128,000 stacks of equally many digits: 128 of each class, with a deviation of 11."""
    labels_N = np.arange(60_000) % 10
    classes_N = labels_N[chosen(0, COUNT, 60_000)] @ np.array([100, 10, 1])
    counts_K = np.bincount(classes_N, minlength=1000)
    assert len(counts_K) == 1000
    assert counts_K.min() > 128 - 5 * 11.3
    assert counts_K.max() < 128 + 5 * 11.3
    share = np.mean((counts_K - 128) ** 2 / 128)  # chi square over its 999 degrees of freedom
    assert 0.8 < share < 1.2


def test_the_first_choices_are_those_of_every_version() -> None:
    assert chosen(0, 2, 60_000).tolist() == [[7259, 45458, 5049], [14556, 16803, 1725]]


def test_idx_files_are_opened_by_kind_and_counted(tmp_path: Path) -> None:
    url = str(write(tmp_path, idx_files("")))
    source = open_source(url, "stacked-mnist", Choice("train"))
    assert isinstance(source, StackedSource)
    assert source.classes == [f"{n:03d}" for n in range(1000)]
    assert source.tally.listed == sum(source.tally.ignored.values()) == 2  # the other split's files


def test_letters_are_no_digits(tmp_path: Path) -> None:
    files = idx_files("")
    files["train-labels-idx1-ubyte"] = files["train-labels-idx1-ubyte"][:-1] + bytes([26])
    folder = Folder(str(write(tmp_path, files)))
    with pytest.raises(SourceError) as error:
        stacked_mnist(folder, Choice("train"))
    assert str(error.value) == f"{folder}: labels up to 26; --kind stacked-mnist needs digits, 0 to 9"
