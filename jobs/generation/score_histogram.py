"""The distribution of the scores of a dataset, shard by shard."""

from typing import Any

import numpy as np


class ScoreHistogram:
    """A histogram of the scores of all shards, and its quantiles."""

    BINS = 200

    def __init__(self) -> None:
        self.counts = np.zeros(self.BINS, np.int64)

    @classmethod
    def count(cls, scores_N: np.ndarray) -> list[int]:
        counts: list[int] = np.histogram(scores_N, cls.BINS, (0.0, 1.0))[0].tolist()
        return counts

    def add(self, result: dict[str, Any]) -> None:
        self.counts += np.array(result["scores"])

    def quantile(self, share: float) -> float:
        """The score below which `share` of the images lie, with precision 1 / BINS."""
        position = np.searchsorted(np.cumsum(self.counts), share * self.counts.sum())
        return float((position + 0.5) / self.BINS)
