"""The distances agree with libraries and with the formulas of the papers. Sums merge in any order."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from dcgan.evaluation.distances import (
    Answers,
    NearestNeighbour,
    Sums,
    frechet_distance,
    kernel_distance,
    manifold_metrics,
    nearest,
)

F = 12


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    """300 and 250 uint8 images of 2 x 2 pixels in colour, from two distributions."""
    rng = np.random.default_rng(0)
    mix = rng.normal(0, 15, (F, F))
    real = 120 + rng.normal(0, 1, (300, F)) @ mix
    fake = 135 + rng.normal(0, 1.2, (250, F)) @ mix
    return tuple(x.clip(0, 255).astype(np.uint8).reshape(-1, 3, 2, 2) for x in (real, fake))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def features(pictures: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    real, fake = (x.reshape(len(x), F) / np.float32(255) for x in pictures)
    return real, fake


class Pixels(nn.Module):
    """Our features `pixels` as a module for torchmetrics."""

    num_features = F

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return images_NCHW.flatten(1).float() / 255


def test_frechet_agrees_with_torchmetrics(
    pictures: tuple[np.ndarray, np.ndarray], features: tuple[np.ndarray, np.ndarray]
) -> None:
    theirs = FrechetInceptionDistance(feature=Pixels(), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    for images, real in zip(pictures, (True, False), strict=True):
        theirs.update(torch.from_numpy(images), real=real)
    ours = frechet_distance(*map(Sums.of, features))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_frechet_agrees_with_the_formula_in_scipy(features: tuple[np.ndarray, np.ndarray]) -> None:
    real, fake = (x.astype(np.float64) for x in features)
    a, b = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    expected = np.square(real.mean(0) - fake.mean(0)).sum() + np.trace(a + b - 2 * root.real)
    assert frechet_distance(Sums.of(real), Sums.of(fake)) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_agrees_with_torchmetrics(
    pictures: tuple[np.ndarray, np.ndarray], features: tuple[np.ndarray, np.ndarray]
) -> None:
    """One subset with all images. torchmetrics needs equal counts of both sets."""
    real, fake = (x[:250] for x in features)
    theirs = KernelInceptionDistance(feature=Pixels(), subsets=1, subset_size=250).set_dtype(torch.float64)
    for images, is_real in zip(pictures, (True, False), strict=True):
        theirs.update(torch.from_numpy(images[:250]), real=is_real)
    theirs.real_features = [x.double() for x in theirs.real_features]  # torchmetrics sums in the dtype of the features
    theirs.fake_features = [x.double() for x in theirs.fake_features]
    assert kernel_distance(real, fake) == pytest.approx(float(theirs.compute()[0]), rel=1e-6)


def test_kernel_distance_is_the_mean_over_all_pairs(features: tuple[np.ndarray, np.ndarray]) -> None:
    real, fake = (x[:n].astype(np.float64) for x, n in zip(features, (9, 7), strict=True))

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        pairs = [(x, y) for i, x in enumerate(a) for j, y in enumerate(b) if a is not b or i != j]
        return float(np.mean([(x @ y / F + 1) ** 3 for x, y in pairs]))

    expected = mean(real, real) + mean(fake, fake) - 2 * mean(real, fake)
    assert kernel_distance(real, fake) == pytest.approx(expected, rel=1e-9)


def test_manifold_agrees_with_the_definitions(features: tuple[np.ndarray, np.ndarray]) -> None:
    """The balls are computed image by image, as the paper defines them."""
    real, fake = (x[:n].astype(np.float64) for x, n in zip(features, (120, 90), strict=True))
    k = 3

    def radius(x: np.ndarray) -> np.ndarray:
        return np.array([sorted(np.linalg.norm(x - one, axis=1))[k] for one in x])

    distance = np.array([[np.linalg.norm(a - b) for b in fake] for a in real])
    in_real, in_fake = distance <= radius(real)[:, None], distance <= radius(fake)[None]
    found = manifold_metrics(real, fake, k)
    assert found.precision == np.mean([in_real[:, j].any() for j in range(len(fake))])
    assert found.recall == np.mean([in_fake[i].any() for i in range(len(real))])
    assert found.density == pytest.approx(in_real.sum() / (k * len(fake)), rel=1e-12)
    assert found.coverage == np.mean([in_real[i].any() for i in range(len(real))])
    assert 0 < found.recall < 1
    assert 0 < found.coverage < 1


def test_results_do_not_depend_on_the_block_size(
    features: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = manifold_metrics(*features), kernel_distance(*features)
    monkeypatch.setattr("dcgan.evaluation.distances._MAX_BLOCK", 17 * 300)
    assert manifold_metrics(*features) == whole[0]
    assert kernel_distance(*features) == pytest.approx(whole[1], rel=1e-9)


@pytest.mark.parametrize("parts", [2, 3, 50, 300])
def test_sums_of_parts_are_the_sums_of_the_whole(features: tuple[np.ndarray, np.ndarray], parts: int) -> None:
    real, fake = features
    rng = np.random.default_rng(parts)
    split = [Sums.of(part) for part in np.array_split(real[rng.permutation(len(real))], parts)]
    merged = Sums.none(F)
    for number in rng.permutation(parts):
        merged = split[number] + merged
    whole = Sums.of(real)
    assert merged.count == whole.count
    assert np.allclose(merged.covariance(), whole.covariance(), rtol=1e-9, atol=1e-12)
    other = Sums.of(fake)
    assert frechet_distance(merged, other) == pytest.approx(frechet_distance(whole, other), rel=1e-9)


def test_sums_of_features_far_from_zero() -> None:
    """Raw sums lose a factor of (mean / deviation)^2 in precision. At 100 they keep twelve of sixteen digits."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(100, 1, (500, F)), rng.normal(100.5, 1.1, (500, F))
    near = frechet_distance(Sums.of(x - 100), Sums.of(y - 100))
    assert frechet_distance(Sums.of(x), Sums.of(y)) == pytest.approx(near, rel=1e-9)


def test_distances_of_a_set_to_itself(features: tuple[np.ndarray, np.ndarray]) -> None:
    real, _ = features
    assert frechet_distance(Sums.of(real), Sums.of(real)) == pytest.approx(0.0, abs=1e-12)
    halves = kernel_distance(real[::2], real[1::2])
    assert abs(halves) < 0.1 * kernel_distance(*features)
    same = manifold_metrics(real, real)
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    distance, position = nearest(real, real)
    assert np.allclose(distance, 0.0, atol=1e-6)
    assert position.tolist() == list(range(len(real)))


def test_one_repeated_image_has_high_precision_and_low_recall(features: tuple[np.ndarray, np.ndarray]) -> None:
    real, _ = features
    found = manifold_metrics(real, real[:1].repeat(200, 0))
    assert found.precision == 1.0
    assert found.recall < 0.02
    assert found.coverage < 0.2


def test_the_nearest_neighbours_label_by_hand() -> None:
    train, labels = np.array([[0.0], [1.0], [10.0]]), np.array([0, 0, 1])
    found = NearestNeighbour(np.array([[0.4], [4.0], [9.0], [20.0]])).answers(train, labels)
    assert found.label_M.tolist() == [0, 0, 1, 1]
    assert np.allclose(found.distance_M, [0.16, 9.0, 1.0, 100.0], rtol=1e-5)


@pytest.mark.parametrize("far", [0.0, 1e3])
def test_nearest_neighbours_in_parts_agree_with_scikit_learn(far: float) -> None:
    """For any partition, and for features whose differences are a thousandth of their values."""
    rng = np.random.default_rng(0)
    train, test = rng.normal(far, 1, (500, 20)), rng.normal(far, 1, (300, 20))
    labels = rng.integers(0, 7, 500)
    expected = KNeighborsClassifier(1, algorithm="brute").fit(train, labels)
    distance, _ = expected.kneighbors(test)
    classifier = NearestNeighbour(test.astype(np.float32))
    for size in (500, 133):
        found = Answers.none(300)
        for start in range(0, 500, size):
            rows = slice(start, start + size)
            found += classifier.answers(train[rows].astype(np.float32), labels[rows])
        assert np.array_equal(found.label_M, expected.predict(test))
        assert np.allclose(np.sqrt(found.distance_M), distance[:, 0], rtol=1e-3)


def test_an_image_is_not_its_own_neighbour_and_its_duplicate_is() -> None:
    train = np.array([[0.0], [5.0], [5.0], [6.0], [9.0]])
    own = np.array([3, 1, 2, 0])
    distance, position = nearest(train, train[own], own)
    assert distance.tolist() == [1.0, 0.0, 0.0, 5.0]
    assert position.tolist()[1:3] == [2, 1]
    assert {position[0], position[3]} <= {1, 2}


def test_nearest_by_hand_with_and_without_queries() -> None:
    train = np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]])
    distance, position = nearest(train, np.array([[3.0, 4.5], [0.0, 1.0]]))
    assert distance.tolist() == [0.5, 1.0]
    assert position[1] == 0
    distance, position = nearest(train)
    assert distance.tolist() == [5.0, 1.0, 1.0]
    assert position.tolist() == [1, 2, 1]


def test_the_order_of_features_and_images_does_not_matter(features: tuple[np.ndarray, np.ndarray]) -> None:
    rng = np.random.default_rng(1)
    real, fake = (x[rng.permutation(len(x))][:, ::-1] for x in features)
    assert frechet_distance(Sums.of(real), Sums.of(fake)) == pytest.approx(
        frechet_distance(*map(Sums.of, features)), rel=1e-9
    )
    pairs = itertools.starmap(manifold_metrics, ((real, fake), features))
    assert next(pairs) == next(pairs)
