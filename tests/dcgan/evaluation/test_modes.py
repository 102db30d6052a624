"""Modes and their divergence: by hand, and of as many images as are published."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from dcgan.evaluation import modes
from dcgan.evaluation.classifier import Classifier


def test_the_digits_of_a_class_by_hand() -> None:
    assert modes.digits_of(np.array([0, 7, 42, 905])).tolist() == [[0, 0, 0], [0, 0, 7], [0, 4, 2], [9, 0, 5]]


@given(st.lists(st.integers(0, 999), min_size=1, max_size=50))
def test_shares_are_those_of_independent_channels(labels: list[int]) -> None:
    label_N = np.array(labels)
    share_K = modes.shares(label_N)
    assert share_K.sum() == pytest.approx(1.0)
    digits = [f"{label:03d}" for label in labels]
    for label in {*labels, 123}:
        parts = [sum(d[c] == f"{label:03d}"[c] for d in digits) / len(digits) for c in range(3)]
        assert share_K[label] == pytest.approx(np.prod(parts))


@given(st.lists(st.integers(0, 9), min_size=5, max_size=5).filter(any), st.integers(0, 2**32))
def test_the_divergence_agrees_with_scipy_and_empty_classes_add_nothing(counts: list[int], seed: int) -> None:
    share_K = np.random.default_rng(seed).dirichlet(np.full(5, 3.0))
    assert modes.divergence(np.array(counts), share_K) == pytest.approx(entropy(counts, share_K), abs=1e-12)
    assert modes.reached(np.array(counts)) == sum(count > 0 for count in counts)


def test_real_images_have_the_published_figures() -> None:
    """1,000 modes and a divergence near 0 of 26,000 real images; by chance it is 999 / 52,000 = 0.019."""
    share_K = np.full(1000, 0.001)
    counts = [np.random.default_rng(seed).multinomial(modes.IMAGES, share_K) for seed in range(20)]
    assert {modes.reached(count_K) for count_K in counts} == {1000}
    found = np.array([modes.divergence(count_K, share_K) for count_K in counts])
    assert found.mean() == pytest.approx(999 / 52_000, rel=0.03)


def test_a_collapsed_generator_reaches_one_mode() -> None:
    count_K = np.eye(1000, dtype=np.int64)[7] * 26_000
    assert modes.reached(count_K) == 1
    assert modes.divergence(count_K, np.full(1000, 0.001)) == pytest.approx(np.log(1000))


def test_each_channel_is_read_by_itself() -> None:
    reader = Classifier(8, 1, 10).eval()
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    label_B = modes.classes_of(reader, images)
    for channel, place in enumerate((100, 10, 1)):
        grey = np.repeat(images[..., channel : channel + 1], 3, axis=3)
        assert np.array_equal(modes.digits_of(modes.classes_of(reader, grey))[:, 0], label_B // place % 10)
