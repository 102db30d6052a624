"""Discriminator rejection sampling: accept a synthetic image with a probability that follows from its calibrated logit.

The logit of an ideal discriminator is log p_data / p_g. Accepting x with probability p_data(x) / (M p_g(x)) then gives
samples of the data distribution. Trained discriminators are overconfident, so the logits are calibrated first, on
images that the discriminator was not trained on. M is so large that almost no image would be accepted; gamma shifts the
odds.

Source: Azadi et al. 2018, "Discriminator Rejection Sampling", arXiv:1810.06758, sec. 3. N samples.
"""

from dataclasses import dataclass

import numpy as np

EPSILON = 1e-6  # keeps the odds of the best sample finite
_KEY = 0x6375726174650A  # differs from the latents' key: draws are independent of latents
_WORDS_PER_BLOCK = 4


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The acceptance probability of each sample, and the numbers that decide it."""

    probability_N: np.ndarray
    bound: float  # log M: the largest calibrated logit
    gamma: float


def acceptance(calibrated_N: np.ndarray, percentile: float) -> Acceptance:
    """The acceptance probability of each sample.

    The paper estimates M during a burn-in. Here all samples are known, and so is their maximum.

    Args: percentile: gamma is this percentile of the samples' log odds. So 100 - percentile in 100 samples have an
          acceptance probability above 0.5.
    """
    bound = float(calibrated_N.max())
    gap_N = calibrated_N - bound
    odds_N = gap_N - np.log(-np.expm1(gap_N - EPSILON))
    gamma = float(np.percentile(odds_N, percentile))
    return Acceptance(np.exp(-np.logaddexp(0.0, gamma - odds_N)), bound, gamma)


def uniform(first: int, count: int, seed: int) -> np.ndarray:
    """u_N, uniform in [0, 1), float64, for the indices [first, first + count).

    A value is a function of the seed and its index alone (Philox).
    """
    bits = np.random.Philox(key=np.array([_KEY, seed], np.uint64), counter=first)
    words = bits.random_raw(count * _WORDS_PER_BLOCK)[::_WORDS_PER_BLOCK]
    u_N: np.ndarray = (words >> np.uint64(11)) * 2.0**-53
    return u_N
