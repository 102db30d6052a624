"""The tick metric matches its definition, is near 0 for equal distributions, and grows with the difference."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dcgan.evaluation import distances
from dcgan.evaluation.features import efficientnet_lite0
from dcgan.evaluation.tick_metric import RandomFeatures, TickMetric, diversity, kernel_distance
from jobs.command import feature_weights


def blobs(count: int, seed: int, shift: float = 0.0, channels: int = 1) -> np.ndarray:
    """Images of a spot with random position, size and brightness. `shift` makes them darker."""
    rng = np.random.default_rng(seed)
    down, right = np.mgrid[0:28, 0:28]
    top, left = rng.uniform(8, 20, (2, count, 1, 1))
    width, brightness = rng.uniform(3, 6, (count, 1, 1)), rng.uniform(100, 255, (count, 1, 1))
    light = brightness * np.exp(-((down - top) ** 2 + (right - left) ** 2) / width**2) * (1 - shift)
    return light[..., None].repeat(channels, 3).astype(np.uint8)


def test_the_distance_by_hand() -> None:
    """Two real and two fake vectors of one feature, standardised by the reals' mean 2 and deviation sqrt(2)."""
    real, fake = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [4.0]])
    a, b = [-1 / 2**0.5, 1 / 2**0.5], [0.0, 2**0.5]

    def kernel(x: float, y: float) -> float:
        return (x * y + 1) ** 3

    between = sum(kernel(x, y) for x in a for y in b) / 4
    assert kernel_distance(real, fake) == pytest.approx(kernel(*a) + kernel(*b) - 2 * between)


def test_the_distance_is_the_mean_over_all_pairs_of_different_vectors() -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.normal(2, 3, (7, 4)), rng.normal(1, 2, (5, 4))
    mean, spread = real.mean(0), real.std(0, ddof=1)
    x, y = (real - mean) / spread, (fake - mean) / spread

    def mean_kernel(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (same and i == j)]
        return float(np.mean([(a[i] @ b[j] / 4 + 1) ** 3 for i, j in pairs]))

    expected = mean_kernel(x, x, True) + mean_kernel(y, y, True) - 2 * mean_kernel(x, y, False)
    assert kernel_distance(torch.from_numpy(real), torch.from_numpy(fake)) == pytest.approx(expected)


@pytest.fixture(scope="module")
def features() -> RandomFeatures:
    return RandomFeatures(1)


@pytest.fixture(scope="module")
def real(features: RandomFeatures) -> Tensor:
    return features(blobs(100, seed=0))


def test_the_distance_of_equal_distributions_is_near_0_on_average(features: RandomFeatures, real: Tensor) -> None:
    distances = [kernel_distance(real, features(blobs(100, seed=seed))) for seed in range(1, 6)]
    shifted = kernel_distance(real, features(blobs(100, seed=1, shift=0.2)))
    assert max(map(abs, distances)) < 0.2 * shifted
    assert abs(np.mean(distances)) < 0.05 * shifted  # unbiased: the mean of many goes to 0


def test_the_distance_grows_with_a_shift(features: RandomFeatures, real: Tensor) -> None:
    distances = [kernel_distance(real, features(blobs(100, seed=1, shift=s))) for s in (0.0, 0.15, 0.3, 0.6)]
    assert distances == sorted(distances)
    assert distances[1] > 10 * abs(distances[0])


def test_a_repeated_image_is_far_from_the_real_images(features: RandomFeatures, real: Tensor) -> None:
    one = blobs(1, seed=5).repeat(100, 0)
    assert kernel_distance(real, features(one)) > 20 * abs(kernel_distance(real, features(blobs(100, seed=1))))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 255, 256, 300])
def test_features_of_an_image_do_not_depend_on_the_batch(channels: int, count: int) -> None:
    network = RandomFeatures(channels)
    images_NHWC = blobs(count, 3, channels=channels)
    found = network(images_NHWC)
    assert (found.shape, found.dtype) == ((count, 384), torch.float32)
    assert torch.isfinite(found).all()
    for n in {0, count - 1}:
        assert torch.allclose(network(images_NHWC[n : n + 1])[0], found[n], rtol=1e-4, atol=1e-5)


def test_every_instance_has_the_same_features_and_the_global_random_state_stays() -> None:
    images_NHWC = blobs(3, seed=0)
    torch.manual_seed(1)
    first = RandomFeatures(1)(images_NHWC)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)
    torch.manual_seed(2)
    assert torch.equal(RandomFeatures(1)(images_NHWC), first)


def test_a_feature_that_is_constant_on_the_real_images_does_not_decide_the_distance() -> None:
    both = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    both[:, 3] = 0
    distance = kernel_distance(both[:100], both[100:])
    both[150, 3] = 0.01
    assert kernel_distance(both[:100], both[100:]) == pytest.approx(distance, abs=0.05)


def test_identical_real_images_give_a_finite_distance() -> None:
    assert kernel_distance(torch.ones(5, 3), torch.ones(5, 3)) == 0.0
    assert kernel_distance(torch.ones(5, 3), torch.zeros(5, 3)) > 1.0


def test_diversity_by_hand() -> None:
    """The standardisation cancels, so the diversity is the ratio of the deviations."""
    real, fake = torch.tensor([[1.0], [3.0]]), torch.tensor([[10.0], [10.5]])
    assert diversity(real, fake) == pytest.approx(0.25)
    assert diversity(real, torch.tensor([[7.0], [7.0]])) == 0.0


def test_diversity_within_classes_detects_one_repeated_image_per_class() -> None:
    real = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
    fake, labels = torch.tensor([[1.0], [1.0], [11.0], [11.0]]), torch.tensor([0, 0, 1, 1])
    assert diversity(real, fake) == pytest.approx((25 / 26) ** 0.5)
    assert diversity(real, fake, labels) == 0.0
    assert diversity(real, real, labels) == pytest.approx(1.0)


def test_diversity_of_pictures(features: RandomFeatures, real: Tensor) -> None:
    """Equal diversity; few distinct images; one image with a few others; one image."""
    assert diversity(real, features(blobs(100, seed=1))) == pytest.approx(1.0, abs=0.15)
    few = features(np.concatenate([blobs(10, seed=1)] * 9 + [blobs(1, seed=2)] * 10))
    assert diversity(real, few) == pytest.approx(1.0, abs=0.4)  # not distinguished from variety
    alike = np.concatenate([blobs(97, seed=1)[:1].repeat(97, 0), blobs(3, seed=3)])
    assert diversity(real, features(alike)) < 0.3
    assert diversity(real, features(blobs(1, seed=5).repeat(100, 0))) < 1e-3


def test_a_learned_metric_is_evaluates_distance() -> None:
    """The same features, raw, and the same kernel; diversity stays with the random features."""
    real, fake = blobs(8, seed=0, channels=3), blobs(8, seed=1, shift=0.5, channels=3)
    lite = efficientnet_lite0(feature_weights.read())
    metric = TickMetric(real, lite)
    found = metric.measure(fake, None)
    assert found["kernel_distance"] == distances.kernel_distance(lite(real), lite(fake))
    plain = TickMetric(real)
    random = RandomFeatures(3)
    assert plain.measure(fake, None)["kernel_distance"] == kernel_distance(random(real), random(fake))
    assert found["diversity"] == plain.measure(fake, None)["diversity"]
    assert metric.protocol.startswith("squared MMD, cubic kernel, efficientnet-lite0 (")
    assert plain.protocol == (
        "squared MMD, cubic kernel, 384 features of a random convolutional network (seed 0); 8 real and as many fake"
    )
    assert metric.measure(real, None)["kernel_distance"] < 0.1 * found["kernel_distance"]
