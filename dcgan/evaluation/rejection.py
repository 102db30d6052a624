"""Discriminator rejection sampling: take a synthetic image as often as its calibrated logit says that it is real.

An ideal discriminator's logit is log p_data / p_g. Taking x with probability p_data(x) / (M p_g(x)) would then give
samples of the data. Trained ones are overconfident, so the logits are calibrated first, on images that the
discriminator was not trained on; and M is so large that nearly nothing would be taken, so gamma shifts the odds.

Source: Azadi et al. 2018, "Discriminator Rejection Sampling", arXiv:1810.06758, sec. 3. N samples.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

FEWEST = 100  # of each kind: half fit two numbers, half measure them
EPSILON = 1e-6  # without it the best sample's odds are infinite
_BINS = 10
_KEY = 0x6375726174650A  # another than the latents': no choice goes with a latent
_WORDS_PER_BLOCK = 4


class CalibrationError(ValueError):
    """Logits that no calibration makes sense of: one line."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How well sigmoid(logit) is the probability of being real, where real and synthetic are equally frequent."""

    brier: float  # mean squared error; 0.25 for a coin
    error: float  # expected calibration error: |mean probability - share of reals|, over 10 bins, weighted


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibrated logit = slope * logit + intercept; and what that changed, on logits that it was not fitted to."""

    slope: float
    intercept: float
    fitted: int  # logits of each kind
    measured: int
    before: Fit
    after: Fit
    auc: float  # how often a real image's logit is above a synthetic one's: 0.5 if the discriminator cannot tell

    def __call__(self, logit_N: np.ndarray) -> np.ndarray:
        """calibrated_N, float64."""
        calibrated_N: np.ndarray = self.slope * logit_N.astype(np.float64) + self.intercept
        return calibrated_N


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The probability with which each sample is taken, and what it follows from."""

    probability_N: np.ndarray
    bound: float  # log M: the largest calibrated logit
    gamma: float


def calibrate(real_N: np.ndarray, fake_M: np.ndarray, seed: int) -> Calibration:
    """A logistic regression of real against synthetic on their logits, as many of each kind.

    Half of the logits, drawn by the seed, are fitted, the others measured.

    Raises: CalibrationError for logits that are too few, all equal or not finite, or higher for synthetic images.
    """
    count = min(len(real_N), len(fake_M))
    if count < FEWEST:
        raise CalibrationError(f"{count} logits of real or synthetic images; at least {FEWEST} of each are needed")
    rng = np.random.default_rng(seed)
    pairs_C2 = np.stack([rng.permutation(one)[:count] for one in (real_N, fake_M)], axis=1).astype(np.float64)
    if not np.all(np.isfinite(pairs_C2)) or np.ptp(pairs_C2[: count // 2]) == 0.0:
        raise CalibrationError("the discriminator's logits are all equal, or not finite")
    fit_N, rest_N = pairs_C2[: count // 2].ravel(), pairs_C2[count // 2 :].ravel()
    mean, scale = fit_N.mean(), fit_N.std()
    # Newton's steps, and weights that hardly hold the slope back: it would be infinite for logits that do not overlap.
    model = LogisticRegression(solver="newton-cholesky", tol=1e-10)
    model.fit(((fit_N - mean) / scale)[:, None], np.tile([1, 0], len(fit_N) // 2))
    slope = float(model.coef_[0, 0] / scale)
    if slope <= 0.0:
        raise CalibrationError(
            f"the discriminator gives synthetic images higher logits than real ones (slope {slope:.3g}): "
            "its scores say nothing about these images"
        )
    intercept = float(model.intercept_[0] - slope * mean)
    real_R = np.tile([1.0, 0.0], len(rest_N) // 2)
    return Calibration(
        slope,
        intercept,
        len(fit_N) // 2,
        len(rest_N) // 2,
        _fit(rest_N, real_R),
        _fit(slope * rest_N + intercept, real_R),
        float(roc_auc_score(real_R, rest_N)),
    )


def acceptance(calibrated_N: np.ndarray, percentile: float) -> Acceptance:
    """With which probability each sample is taken.

    Args: percentile: gamma is that of all samples' log odds, so that 100 - percentile in 100 of them are more likely
          taken than not. The paper's M comes from a burn-in; here all samples are known, and so is their maximum.
    """
    bound = float(calibrated_N.max())
    gap_N = calibrated_N - bound
    odds_N = gap_N - np.log(-np.expm1(gap_N - EPSILON))
    gamma = float(np.percentile(odds_N, percentile))
    return Acceptance(np.exp(-np.logaddexp(0.0, gamma - odds_N)), bound, gamma)


def uniform(first: int, count: int, seed: int) -> np.ndarray:
    """u_N in [0, 1), float64, of the indices [first, first + count): a function of seed and index alone (Philox)."""
    bits = np.random.Philox(key=np.array([_KEY, seed], np.uint64), counter=first)
    words = bits.random_raw(count * _WORDS_PER_BLOCK)[::_WORDS_PER_BLOCK]
    u_N: np.ndarray = (words >> np.uint64(11)) * 2.0**-53
    return u_N


def _fit(logit_N: np.ndarray, real_N: np.ndarray) -> Fit:
    probability_N = np.exp(-np.logaddexp(0.0, -logit_N))
    bin_N = np.minimum((probability_N * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bin_N, probability_N - real_N, _BINS)
    return Fit(float(np.mean((probability_N - real_N) ** 2)), float(np.abs(gaps).sum() / len(real_N)))
