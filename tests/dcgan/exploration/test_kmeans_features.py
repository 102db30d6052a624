"""The whitening of patches and the triangle encoding agree with their formulas."""

import numpy as np
import pytest
import torch

from dcgan.exploration import kmeans_features
from dcgan.exploration.kmeans_features import Dictionary, learn, triangle


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    smooth = np.random.default_rng(0).normal(size=(40, 9, 9, 3)).cumsum(1).cumsum(2)
    return (128 + 12 * smooth).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def dictionary(pictures: np.ndarray) -> Dictionary:
    return learn(pictures, 7, seed=3, patch=4, patches=3000)


def test_triangle_is_the_papers_formula() -> None:
    rng = np.random.default_rng(1)
    x_NPD, centroid_KD = rng.normal(size=(2, 5, 6)), rng.normal(size=(4, 6))
    found = triangle(torch.from_numpy(x_NPD), torch.from_numpy(centroid_KD)).numpy()
    for n in range(2):
        for p in range(5):
            z_K = [np.linalg.norm(x_NPD[n, p] - centroid) for centroid in centroid_KD]
            expected = [max(0.0, np.mean(z_K) - z) for z in z_K]
            np.testing.assert_allclose(found[n, p], expected, atol=1e-12)


def test_features_are_sums_over_quadrants(pictures: np.ndarray, dictionary: Dictionary) -> None:
    features = kmeans_features.kmeans_features(dictionary, (9, 9, 3))
    assert features.size == 28
    found_NF = features(pictures[:2])
    for n, image_HWC in enumerate(pictures[:2].astype(np.float64) / 255):
        sums = np.zeros((2, 2, 7))
        for y in range(6):
            for x in range(6):
                patch_D = image_HWC[y : y + 4, x : x + 4].transpose(2, 0, 1).ravel()
                centred = patch_D - patch_D.mean()
                contrast_D = centred / np.sqrt(centred @ centred / (48 - 1) + 10 / 255**2)
                white_D = (contrast_D - dictionary.mean_D.numpy()) @ dictionary.whiten_DD.numpy()
                z_K = np.linalg.norm(dictionary.centroid_KD.numpy() - white_D, axis=1)
                sums[y // 3, x // 3] += (z_K.mean() - z_K).clip(0)
        np.testing.assert_allclose(found_NF[n], sums.reshape(-1), rtol=1e-3, atol=1e-4)


def test_patches_are_whitened(pictures: np.ndarray, dictionary: Dictionary) -> None:
    rows = pictures.astype(np.float32)[:, :4, :4].transpose(0, 3, 1, 2).reshape(40, -1) / 255
    both = learn(pictures, 2, seed=3, patch=4, patches=3000)
    assert torch.equal(both.whiten_DD, dictionary.whiten_DD)  # the patches do not depend on the number of centroids
    prepared = dictionary.prepare(torch.from_numpy(rows))
    assert prepared.shape == (40, 48)
    # ZCA is symmetric, and whitens up to the constant 0.1 that is added to the eigenvalues.
    np.testing.assert_allclose(dictionary.whiten_DD, dictionary.whiten_DD.T, atol=1e-5)
    strength = torch.linalg.eigvalsh(dictionary.whiten_DD)
    assert strength.max() <= 0.1**-0.5 + 1e-3
    assert strength.min() > 0


def test_the_seed_decides_the_dictionary(pictures: np.ndarray, dictionary: Dictionary) -> None:
    again = learn(pictures, 7, seed=3, patch=4, patches=3000)
    other = learn(pictures, 7, seed=4, patch=4, patches=3000)
    assert torch.equal(again.centroid_KD, dictionary.centroid_KD)
    assert not torch.equal(other.centroid_KD, dictionary.centroid_KD)
