"""Calibration on a problem with a known solution: the log ratio of two Gaussians."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcgan.evaluation import calibration
from dcgan.evaluation.calibration import CalibrationError
from tests.gaussians import FAKE, REAL, draw, log_ratio


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (4.0, -3.0), (0.2, 5.0)])
def test_calibration_inverts_a_linear_distortion_of_ideal_logits(slope: float, intercept: float) -> None:
    ideal_N = [log_ratio(draw(which, 20_000, 10 + n)) for n, which in enumerate((REAL, FAKE))]
    real_N, fake_N = (slope * one_N + intercept for one_N in ideal_N)
    found = calibration.calibrate(real_N, fake_N, 0)
    assert found.slope * slope == pytest.approx(1, abs=0.07)  # three standard errors
    assert np.abs(found(fake_N) - ideal_N[1]).mean() < 0.05
    assert (found.fitted, found.measured) == (10_000, 10_000)
    assert found.after.error < 0.02
    if slope != 1.0:
        assert found.before.error > 3 * found.after.error
        assert found.before.brier > found.after.brier
    assert found.auc == pytest.approx(0.66, abs=0.03)


def test_the_measures_of_a_fit_by_hand() -> None:
    """Probabilities of a half are a calibrated coin. 0 for a real and 1 for a fake image are each wrong by 1."""
    probability_N, real_N = np.full(8, 0.5), np.tile([1.0, 0.0], 4)
    fit = calibration.measure_fit(probability_N, real_N)
    assert (fit.brier, fit.error) == (0.25, 0.0)
    probability_N[:2] = 0.0, 1.0
    fit = calibration.measure_fit(probability_N, real_N)
    assert fit.brier == pytest.approx((6 * 0.25 + 2) / 8)
    assert fit.error == pytest.approx(2 / 8)
    bins = [(one.predicted, one.real, one.images) for one in calibration.reliability(probability_N, real_N)]
    assert bins == [(0.0, 1.0, 1), (0.5, 0.5, 6), (1.0, 0.0, 1)]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_a_reliability_diagram_loses_no_image(pairs: list[tuple[float, bool]]) -> None:
    probability_N, real_N = np.array([p for p, _ in pairs]), np.array([float(real) for _, real in pairs])
    bins = calibration.reliability(probability_N, real_N)
    assert sum(one.images for one in bins) == len(pairs)
    assert sum(one.images * one.predicted for one in bins) == pytest.approx(probability_N.sum())
    assert sum(one.images * one.real for one in bins) == pytest.approx(real_N.sum())
    assert [one.predicted for one in bins] == sorted(one.predicted for one in bins)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=20), st.lists(st.integers(-3, 3), min_size=1, max_size=20))
def test_the_area_is_the_share_of_pairs_in_order(real: list[int], fake: list[int]) -> None:
    """A tie counts half."""
    pairs = [(r > f) + (r == f) / 2 for r in real for f in fake]
    found = calibration.area(np.array(real, np.float32), np.array(fake, np.float32))
    assert found == pytest.approx(sum(pairs) / len(pairs))


@pytest.mark.parametrize(
    ("real_N", "fake_N", "message"),
    [
        (np.ones(99), np.zeros(500), "99 logits of real or synthetic images; at least 100 of each are needed"),
        (np.zeros(200), np.zeros(200), "the discriminator's logits are all equal, or not finite"),
        (np.full(200, np.nan), np.zeros(200), "the discriminator's logits are all equal, or not finite"),
        (draw(FAKE, 300, 0), draw(REAL, 300, 0) + 3, "the discriminator gives synthetic images higher logits"),
    ],
)
def test_unusable_logits_are_refused(real_N: np.ndarray, fake_N: np.ndarray, message: str) -> None:
    with pytest.raises(CalibrationError, match=f"^{message}"):
        calibration.calibrate(real_N, fake_N, 0)


def test_logits_that_do_not_overlap_are_calibrated() -> None:
    found = calibration.calibrate(draw((10, 1), 500, 0), draw((-10, 1), 500, 1), 0)
    assert np.isfinite(found.slope)
    assert found.auc == 1.0
