"""Discriminator rejection sampling: accept a synthetic image with a probability that follows from its calibrated logit.

The logit of an ideal discriminator is log p_data / p_g. Accepting x with probability p_data(x) / (M p_g(x)) then gives
samples of the data distribution. Trained discriminators are overconfident, so the logits are calibrated first, on
images that the discriminator was not trained on. M is so large that almost no image would be accepted; gamma shifts the
odds.

Source: Azadi et al. 2018, "Discriminator Rejection Sampling", arXiv:1810.06758, sec. 3. N samples.
"""

from dataclasses import dataclass

import numpy as np

FEWEST = 100  # of real and of synthetic images each: half are fitted, half measure the fit
EPSILON = 1e-6  # keeps the odds of the best sample finite
_BINS = 10
_KEY = 0x6375726174650A  # differs from the latents' key: draws are independent of latents
_WORDS_PER_BLOCK = 4


class CalibrationError(ValueError):
    """The logits cannot be calibrated. The message is one line."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How well sigmoid(logit) predicts that an image is real, for as many real as synthetic images."""

    brier: float  # mean squared error of the probability; 0.25 for a constant 0.5
    error: float  # expected calibration error: |mean probability - share of reals|, weighted mean over 10 bins


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibrated logit = slope * logit + intercept. Held-out logits measure the fit before and after."""

    slope: float
    intercept: float
    fitted: int  # logits of real and of synthetic images each
    measured: int  # likewise
    before: Fit
    after: Fit
    auc: float  # the probability that a real image's logit exceeds a synthetic image's; 0.5 without discrimination

    def __call__(self, logit_N: np.ndarray) -> np.ndarray:
        """calibrated_N, float64."""
        calibrated_N: np.ndarray = self.slope * logit_N.astype(np.float64) + self.intercept
        return calibrated_N


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The acceptance probability of each sample, and the numbers that decide it."""

    probability_N: np.ndarray
    bound: float  # log M: the largest calibrated logit
    gamma: float


def calibrate(real_N: np.ndarray, fake_M: np.ndarray, seed: int) -> Calibration:
    """Fit a logistic regression of real against synthetic on equally many logits of each.

    The seed draws the half of the logits that is fitted. The other half measures the fit.

    Raises: CalibrationError for logits that are too few, all equal, not finite, or higher for synthetic images.
    """
    from sklearn.linear_model import LogisticRegression  # scikit-learn takes a second to import
    from sklearn.metrics import roc_auc_score

    count = min(len(real_N), len(fake_M))
    if count < FEWEST:
        raise CalibrationError(f"{count} logits of real or synthetic images; at least {FEWEST} of each are needed")
    rng = np.random.default_rng(seed)
    pairs_C2 = np.stack([rng.permutation(one)[:count] for one in (real_N, fake_M)], axis=1).astype(np.float64)
    if not np.all(np.isfinite(pairs_C2)) or np.ptp(pairs_C2[: count // 2]) == 0.0:
        raise CalibrationError("the discriminator's logits are all equal, or not finite")
    fit_N, rest_N = pairs_C2[: count // 2].ravel(), pairs_C2[count // 2 :].ravel()
    mean, scale = fit_N.mean(), fit_N.std()
    # The solver is Newton's method. The default L2 penalty hardly changes the slope. Without it the slope would be
    # infinite for logits that do not overlap.
    model = LogisticRegression(solver="newton-cholesky", tol=1e-10)
    model.fit(((fit_N - mean) / scale)[:, None], np.tile([1, 0], len(fit_N) // 2))
    slope = float(model.coef_[0, 0] / scale)
    if slope <= 0.0:
        raise CalibrationError(
            f"the discriminator gives synthetic images higher logits than real ones (slope {slope:.3g}): "
            "its scores are useless for these images"
        )
    intercept = float(model.intercept_[0] - slope * mean)
    real_R = np.tile([1.0, 0.0], len(rest_N) // 2)
    return Calibration(
        slope,
        intercept,
        len(fit_N) // 2,
        len(rest_N) // 2,
        _measure_fit(rest_N, real_R),
        _measure_fit(slope * rest_N + intercept, real_R),
        float(roc_auc_score(real_R, rest_N)),
    )


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


def _measure_fit(logit_N: np.ndarray, real_N: np.ndarray) -> Fit:
    probability_N = np.exp(-np.logaddexp(0.0, -logit_N))
    bin_N = np.minimum((probability_N * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bin_N, probability_N - real_N, _BINS)
    return Fit(float(np.mean((probability_N - real_N) ** 2)), float(np.abs(gaps).sum() / len(real_N)))
