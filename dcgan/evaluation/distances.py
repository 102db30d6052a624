"""Distances between two sets of images in a feature space. N and M images, F features.

The Fréchet distance, the kernel distance and the manifold metrics are computed in float64.

The values depend on the number of images: the Fréchet distance and nearest-neighbour distances fall as it grows. Only
values from equal counts and equal features can be compared.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

NEIGHBOURS = 5  # as in Naeem et al. 2020
_MAX_BLOCK = 1 << 24  # entries of an N x M matrix in memory at once: 134 MB


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums that give a mean and a covariance. Sums of parts, added in any order, are the sums of the whole."""

    count: int
    total_F: np.ndarray
    outer_FF: np.ndarray

    @classmethod
    def of(cls, features_NF: np.ndarray) -> "Sums":
        x = features_NF.astype(np.float64)
        return cls(len(x), x.sum(0), x.T @ x)

    @classmethod
    def none(cls, size: int) -> "Sums":
        return cls(0, np.zeros(size), np.zeros((size, size)))

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.count + other.count, self.total_F + other.total_F, self.outer_FF + other.outer_FF)

    def mean(self) -> np.ndarray:
        """mean_F"""
        mean_F: np.ndarray = self.total_F / self.count
        return mean_F

    def covariance(self) -> np.ndarray:
        """covariance_FF, unbiased (divided by n - 1), as in the published code for FID."""
        covariance_FF: np.ndarray = (self.outer_FF - np.outer(self.total_F, self.mean())) / (self.count - 1)
        return covariance_FF


@dataclass(frozen=True, slots=True)
class ManifoldMetrics:
    """Precision and density measure fidelity. Recall and coverage measure diversity."""

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True, slots=True)
class Answers:
    """The distance and the label of the nearest training image of each of M test images.

    The answers of parts of the training images, added up, are the answers of all training images.
    """

    distance_M: np.ndarray  # squared, float32; infinite before the first training image
    label_M: np.ndarray  # int64; -1 before the first training image

    @classmethod
    def none(cls, count: int) -> "Answers":
        return cls(np.full(count, np.inf, np.float32), np.full(count, -1, np.int64))

    def __add__(self, other: "Answers") -> "Answers":
        nearer_M = other.distance_M < self.distance_M  # on a tie the left operand wins
        return Answers(
            np.where(nearer_M, other.distance_M, self.distance_M), np.where(nearer_M, other.label_M, self.label_M)
        )


class NearestNeighbour:
    """1-nearest-neighbour classification of M test images. The training images come in parts.

    The arithmetic is in float32. The test images' mean is subtracted from both sides first: the differences between
    random features are small compared with their length, and would lose digits.

    Source: Radford et al. 2015, arXiv:1511.06434, table 3.
    """

    def __init__(self, test_MF: np.ndarray) -> None:
        self._mean_F = test_MF.mean(0, dtype=np.float64)
        self._test_MF = (test_MF - self._mean_F).astype(np.float32)
        self._square_M = np.square(self._test_MF).sum(1)

    @property
    def tests(self) -> int:
        return len(self._test_MF)

    def answers(self, train_NF: np.ndarray, label_N: np.ndarray) -> Answers:
        """The answers of these training images alone. Holds N x M numbers in memory."""
        x_NF = (train_NF - self._mean_F).astype(np.float32)
        distance_MN = self._test_MF @ (-2.0 * x_NF.T) + np.square(x_NF).sum(1)
        place_M = distance_MN.argmin(1)
        return Answers(distance_MN[np.arange(len(place_M)), place_M] + self._square_M, label_N[place_M])


def frechet_distance(real: Sums, fake: Sums) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)); 0 for equal sets, never negative.

    The trace of the root comes from the eigenvalues of R S2 R with R = S1^(1/2). They equal those of S1 S2, and are
    real because the matrix is symmetric.

    Source: Dowson & Landau 1982; Heusel et al. 2017, arXiv:1706.08500, eq. 6.
    """
    real_FF, fake_FF = real.covariance(), fake.covariance()
    value_F, vector_FF = np.linalg.eigh(real_FF)
    root_FF = vector_FF * np.sqrt(value_F.clip(0.0)) @ vector_FF.T
    cross_F = np.linalg.eigvalsh(root_FF @ fake_FF @ root_FF)
    traces = np.trace(real_FF) + np.trace(fake_FF) - 2.0 * np.sqrt(cross_F.clip(0.0)).sum()
    return max(0.0, float(np.square(real.mean() - fake.mean()).sum() + traces))


def kernel_distance(real_NF: np.ndarray, fake_MF: np.ndarray) -> float:
    """Unbiased squared MMD with the kernel k(x, y) = (x.y / F + 1)^3. For equal distributions its expectation is 0.

    It uses all pairs of images. The paper averages over subsets, which has the same expectation and more noise.

    Source: Binkowski et al. 2018, arXiv:1801.01401, sec. 4.
    """
    n, m = len(real_NF), len(fake_MF)
    within_real = (_kernel_sum(real_NF, real_NF) - _kernel_diagonal(real_NF)) / (n * (n - 1))
    within_fake = (_kernel_sum(fake_MF, fake_MF) - _kernel_diagonal(fake_MF)) / (m * (m - 1))
    return within_real + within_fake - 2.0 * _kernel_sum(real_NF, fake_MF) / (n * m)


def manifold_metrics(real_NF: np.ndarray, fake_MF: np.ndarray, neighbours: int = NEIGHBOURS) -> ManifoldMetrics:
    """Precision, recall, density and coverage by k-nearest-neighbour balls.

    The ball of an image reaches to its k-th neighbour in its own set. Precision is the share of fakes in any real ball,
    recall the share of reals in any fake ball. Density is the mean number of real balls around a fake, divided by k; it
    exceeds 1 where fakes are dense. Coverage is the share of real balls that contain a fake.

    Source: Kynkaanniemi et al. 2019, arXiv:1904.06991 (precision, recall); Naeem et al. 2020, arXiv:2002.09797.
    """
    real_radius_N, fake_radius_M = _radii(real_NF, neighbours), _radii(fake_MF, neighbours)
    in_real_balls_M = np.zeros(len(fake_MF), np.int64)
    recalled = covered = 0
    for start, distance_BM in _distances(real_NF, fake_MF):
        radius_B1 = real_radius_N[start : start + len(distance_BM), None]
        in_real_balls_M += (distance_BM <= radius_B1).sum(0)
        covered += int((distance_BM.min(1, keepdims=True) <= radius_B1).sum())
        recalled += int((distance_BM <= fake_radius_M).any(1).sum())
    return ManifoldMetrics(
        precision=float((in_real_balls_M > 0).mean()),
        recall=recalled / len(real_NF),
        density=float(in_real_balls_M.mean()) / neighbours,
        coverage=covered / len(real_NF),
    )


def nearest(
    train_NF: np.ndarray, query_MF: np.ndarray | None = None, own_M: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """distance_M and position_M of the training image nearest to each query.

    Without queries: of the nearest other training image, for each training image. With `own_M`, the position of each
    query among the training images: of the nearest other one.
    """
    found = NearestNeighbors(n_neighbors=1 if own_M is None else 2, algorithm="brute").fit(train_NF)
    distance_MK, position_MK = found.kneighbors(query_MF)
    if own_M is not None:
        first_M1 = (position_MK[:, :1] == own_M[:, None]).astype(np.int64)  # 1 where the query found itself
        distance_MK, position_MK = (np.take_along_axis(x, first_M1, 1) for x in (distance_MK, position_MK))
    return distance_MK[:, 0].astype(np.float64), position_MK[:, 0]


def _kernel_sum(x_NF: np.ndarray, y_MF: np.ndarray) -> float:
    y, size = y_MF.astype(np.float64), x_NF.shape[1]
    return float(sum(((x_BF @ y.T / size + 1.0) ** 3).sum() for _, x_BF in _blocks(x_NF, len(y))))


def _kernel_diagonal(x_NF: np.ndarray) -> float:
    return float(((np.square(x_NF.astype(np.float64)).sum(1) / x_NF.shape[1] + 1.0) ** 3).sum())


def _radii(features_NF: np.ndarray, neighbours: int) -> np.ndarray:
    """radius_N: each image's distance to its k-th neighbour in its own set, not counting itself."""
    blocks = [
        np.partition(distance_BN, neighbours, axis=1)[:, neighbours]
        for _, distance_BN in _distances(features_NF, features_NF)
    ]
    radius_N: np.ndarray = np.concatenate(blocks)
    return radius_N


def _distances(x_NF: np.ndarray, y_MF: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of the matrix of Euclidean distances: the first row of each block, and the block, [rows, M]."""
    y = y_MF.astype(np.float64)
    for start, x_BF in _blocks(x_NF, len(y)):
        yield start, pairwise_distances(x_BF, y)


def _blocks(x_NF: np.ndarray, columns: int) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of rows of x in float64, each with the position of its first row.

    A matrix of a block's rows and `columns` columns has at most _MAX_BLOCK entries.
    """
    rows = max(1, _MAX_BLOCK // columns)
    for start in range(0, len(x_NF), rows):
        yield start, x_NF[start : start + rows].astype(np.float64)
