"""k-means features: a baseline for learnt features. It compares patches with a dictionary of centroids.

N images of H x W pixels and C channels, P patches of D = size * size * C numbers, K centroids; F = 4 K features. A
learnt feature must beat this baseline, which has one layer, uses no labels and takes a minute.

Source: Coates, Lee & Ng 2011, "An analysis of single-layer networks in unsupervised feature learning" (triangle
encoding, sums over quadrants); Coates & Ng 2012, "Learning feature representations with k-means" (preparation).
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from dcgan.evaluation.features import Features

PATCH = 6  # pixels, as in the paper
PATCHES = 100_000  # from which the dictionary is learnt
# Both come from the authors' code. The 10 is in squared grey levels of 255; it keeps flat patches flat.
_CONTRAST = 10.0 / 255.0**2
_WHITENING = 0.1


@dataclass(frozen=True, slots=True)
class Dictionary:
    """The whitening of patches, and the centroids with which patches are compared."""

    mean_D: Tensor
    whiten_DD: Tensor
    centroid_KD: Tensor
    patch: int

    def prepare(self, patch_PD: Tensor) -> Tensor:
        """Patches with pixels in 0..1, contrast-normalised and whitened."""
        return (normalise_contrast(patch_PD) - self.mean_D) @ self.whiten_DD


def learn(images_NHWC: np.ndarray, centroids: int, seed: int, patch: int = PATCH, patches: int = PATCHES) -> Dictionary:
    """Learn a dictionary from random patches of uint8 images by ZCA whitening and mini-batch k-means."""
    rng = np.random.default_rng([seed, 0])
    count, height, width, _ = images_NHWC.shape
    image_P = rng.integers(0, count, patches)
    top_P = rng.integers(0, height - patch + 1, patches)
    left_P = rng.integers(0, width - patch + 1, patches)
    patches_P = [
        images_NHWC[n, top : top + patch, left : left + patch].transpose(2, 0, 1).ravel()
        for n, top, left in zip(image_P, top_P, left_P, strict=True)
    ]
    x_PD = normalise_contrast(torch.from_numpy(np.stack(patches_P)).float() / 255.0)
    mean_D = x_PD.mean(0)
    value_D, vector_DD = torch.linalg.eigh(torch.cov(x_PD.T))
    whiten_DD = vector_DD * (value_D.clamp_min(0.0) + _WHITENING).rsqrt() @ vector_DD.T
    kmeans = MiniBatchKMeans(centroids, random_state=seed, batch_size=4096, n_init=1, max_iter=20)
    kmeans.fit(((x_PD - mean_D) @ whiten_DD).numpy())
    return Dictionary(mean_D, whiten_DD, torch.from_numpy(kmeans.cluster_centers_).float(), patch)


def kmeans_features(dictionary: Dictionary, image_shape: tuple[int, int, int]) -> Features:
    """The features of images of the given height, width and channels."""

    def compute(images_NCHW: Tensor) -> Tensor:
        columns_NDP = torch.nn.functional.unfold(images_NCHW, dictionary.patch)
        rows = images_NCHW.shape[2] - dictionary.patch + 1
        code_NPK = triangle(dictionary.prepare(columns_NDP.transpose(1, 2)), dictionary.centroid_KD)
        grid_NHWK = code_NPK.view(len(code_NPK), rows, -1, code_NPK.shape[2])
        halves = [half for column in grid_NHWK.tensor_split(2, 1) for half in column.tensor_split(2, 2)]
        return torch.cat([quadrant.sum((1, 2)) for quadrant in halves], 1)

    centroids, size = len(dictionary.centroid_KD), dictionary.patch
    protocol = (
        f"{centroids} centroids of {size} x {size} patches, contrast normalised and whitened, at every place; triangle "
        "encoding, summed over quadrants"
    )
    digest = hashlib.sha256()
    for part in (dictionary.mean_D, dictionary.whiten_DD, dictionary.centroid_KD):
        digest.update(part.contiguous().numpy().tobytes())
    return Features("k-means", protocol, digest.hexdigest(), 4 * centroids, compute)


def normalise_contrast(patch_PD: Tensor) -> Tensor:
    """Patches, pixels in 0..1, scaled to mean 0 and a variance of about 1."""
    centred = patch_PD - patch_PD.mean(-1, keepdim=True)
    return centred / (centred.var(-1, keepdim=True) + _CONTRAST).sqrt()


def triangle(x_NPD: Tensor, centroid_KD: Tensor) -> Tensor:
    """code_NPK, the triangle encoding: max(0, mean distance to all centroids - distance to centroid k)."""
    squares = x_NPD.square().sum(-1, keepdim=True) + centroid_KD.square().sum(-1)
    distance_NPK = squares.sub_(x_NPD @ centroid_KD.T, alpha=2.0).clamp_min_(0.0).sqrt_()
    return (distance_NPK.mean(-1, keepdim=True) - distance_NPK).clamp_min_(0.0)
