"""Calibration: a logistic regression makes a logit the log odds that an image is real, and held-out logits measure it.

A discriminator that was trained beside its generator has no calibrated logit: it judged other weights than those that
are exported, and its batch norms saw each kind of image apart. A calibration is monotone. It changes what a score says,
not which image has the higher one.

Source: Platt 1999, "Probabilistic outputs for support vector machines". N samples.
"""

from dataclasses import dataclass

import numpy as np

FEWEST = 100  # of real and of synthetic images each: half are fitted, half measure the fit
_BINS = 10


class CalibrationError(ValueError):
    """The logits cannot be calibrated. The message is one line."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How well sigmoid(logit) predicts that an image is real, for as many real as synthetic images."""

    brier: float  # mean squared error of the probability; 0.25 for a constant 0.5
    error: float  # expected calibration error: |mean probability - share of reals|, weighted mean over 10 bins


@dataclass(frozen=True, slots=True)
class Bin:
    """A bar of a reliability diagram: images whose predicted probabilities lie in a tenth of [0, 1]."""

    predicted: float  # the mean of their probabilities
    real: float  # the share of them that is real
    images: int


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


def calibrate(real_N: np.ndarray, fake_M: np.ndarray, seed: int) -> Calibration:
    """Fit a logistic regression of real against synthetic on equally many logits of each.

    The seed draws the half of the logits that is fitted. The other half measures the fit.

    Raises: CalibrationError for logits that are too few, all equal, not finite, or higher for synthetic images.
    """
    from sklearn.linear_model import LogisticRegression  # scikit-learn takes a second to import

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
        measure_fit(probability(rest_N), real_R),
        measure_fit(probability(slope * rest_N + intercept), real_R),
        area(rest_N[real_R == 1], rest_N[real_R == 0]),
    )


def measure_fit(probability_N: np.ndarray, real_N: np.ndarray) -> Fit:
    """How well probabilities predict that an image is real. real_N: 1.0 for a real image, 0.0 for a synthetic one."""
    gap = sum(one.images * abs(one.predicted - one.real) for one in reliability(probability_N, real_N))
    return Fit(float(np.mean((probability_N - real_N) ** 2)), float(gap / len(real_N)))


def reliability(probability_N: np.ndarray, real_N: np.ndarray) -> list[Bin]:
    """The reliability diagram: the bins that hold an image, by ascending probability."""
    bin_N = np.minimum((probability_N * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(bin_N, minlength=_BINS)
    predicted, real = (np.bincount(bin_N, weights=one, minlength=_BINS) for one in (probability_N, real_N))
    found = [(predicted[n] / count, real[n] / count, count) for n, count in enumerate(counts) if count]
    return [Bin(float(mean), float(share), int(count)) for mean, share, count in found]


def area(real_N: np.ndarray, fake_M: np.ndarray) -> float:
    """The area under the ROC curve: how often a real image's logit exceeds a synthetic one's. A tie counts half."""
    from sklearn.metrics import roc_auc_score  # scikit-learn takes a second to import

    real = np.repeat([1, 0], [len(real_N), len(fake_M)])
    return float(roc_auc_score(real, np.concatenate([real_N, fake_M])))


def probability(logit_N: np.ndarray) -> np.ndarray:
    """The sigmoid, in float64, without an overflow."""
    p_N: np.ndarray = np.exp(-np.logaddexp(0.0, -logit_N.astype(np.float64)))
    return p_N
