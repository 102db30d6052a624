"""The labels of a synthetic dataset: a function of the label policy and the index alone."""

import numpy as np

from pipelines.dataset.identity import Cycle, Weights


def labels_of(policy: Cycle | Weights | None, indices: range) -> np.ndarray | None:
    """The labels of some indices, int64; None without classes.

    A cycle repeats. Weights use a golden-ratio sequence, Weyl's frac(i * phi): in any range of indices each label has
    its share to within a few images. It is computed in 64-bit integers, so it is exact for every index.
    """
    if policy is None:
        return None
    index_N = np.arange(indices.start, indices.stop)
    if isinstance(policy, Cycle):
        return np.array(policy.cycle, np.int64)[index_N % len(policy.cycle)]
    labels, weights = zip(*policy.weights, strict=True)
    bounds_K = np.cumsum(weights) / np.sum(weights)
    fraction_N = (index_N.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) / 2.0**64
    chosen_N = np.searchsorted(bounds_K, fraction_N, side="right").clip(max=len(labels) - 1)
    label_N: np.ndarray = np.array(labels, np.int64)[chosen_N]
    return label_N
