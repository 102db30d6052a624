"""Rejection sampling on a problem with a known solution: samples of one Gaussian from samples of another."""

import numpy as np
import pytest

from dcgan.evaluation import rejection
from dcgan.sampling import latents
from tests.gaussians import FAKE, REAL, draw, log_ratio


def test_accepted_fake_samples_are_distributed_like_real_ones() -> None:
    """With gamma 0 the probability is that of exact rejection sampling."""
    x_N = draw(FAKE, 400_000, 1)
    found = rejection.acceptance(log_ratio(x_N), 50.0)
    log_odds_N = np.log(found.probability_N / (1 - found.probability_N)) + found.gamma
    assert np.allclose(log_odds_N, paper_odds(x_N, found.bound), atol=1e-3)
    probability_N = 1 / (1 + np.exp(-log_odds_N))
    assert np.allclose(probability_N, np.exp(log_ratio(x_N) - found.bound), atol=1e-3)
    accepted_N = x_N[rejection.uniform(0, len(x_N), 0) < probability_N]
    assert accepted_N.mean() == pytest.approx(REAL[0], abs=0.01)
    assert accepted_N.std() == pytest.approx(REAL[1], abs=0.01)


def paper_odds(x_N: np.ndarray, bound: float) -> np.ndarray:
    """The paper's F at gamma 0, written out."""
    gap_N = log_ratio(x_N) - bound
    odds_N: np.ndarray = gap_N - np.log(1 - np.exp(gap_N - rejection.EPSILON))
    return odds_N


@pytest.mark.parametrize("percentile", [0.0, 50.0, 80.0, 100.0])
def test_gamma_is_a_percentile_of_the_odds(percentile: float) -> None:
    logit_N = log_ratio(draw(FAKE, 10_001, 2))
    found = rejection.acceptance(logit_N, percentile)
    assert found.bound == logit_N.max()
    assert (found.probability_N > 0.5).mean() == pytest.approx(1 - percentile / 100, abs=1e-3)
    order_N = np.argsort(logit_N)
    assert np.all(np.diff(found.probability_N[order_N]) >= 0)
    assert np.all((found.probability_N >= 0) & (found.probability_N <= 1))


def test_equal_logits_have_equal_probabilities_and_extreme_logits_finite_ones() -> None:
    same = rejection.acceptance(np.full(10, 3.0), 80.0)
    assert np.allclose(same.probability_N, 0.5)
    wide = rejection.acceptance(np.array([-1e6, 0.0, 1e6]), 50.0)
    assert np.all(np.isfinite(wide.probability_N))


def test_a_draw_is_a_function_of_seed_and_index_alone() -> None:
    whole_N = rejection.uniform(0, 1000, 7)
    for first, count in ((0, 1), (1, 1), (999, 1), (250, 500)):
        assert np.array_equal(rejection.uniform(first, count, 7), whole_N[first : first + count])
    assert not np.any(rejection.uniform(0, 1000, 8) == whole_N)
    far = rejection.uniform(10**12 - 1, 1, 2**63 - 1)
    assert 0 <= far[0] < 1


def test_draws_are_uniform_and_independent_of_latents() -> None:
    u_N = np.sort(rejection.uniform(0, 100_000, 0))
    assert np.abs(u_N - np.arange(len(u_N)) / len(u_N)).max() < 1.63 / np.sqrt(len(u_N))  # Kolmogorov-Smirnov, 1 %
    u_N, z_NZ = rejection.uniform(0, 10_000, 0), latents.normal(0, 10_000, 4)
    assert np.abs(np.corrcoef(u_N, z_NZ, rowvar=False)[0, 1:]).max() < 0.04
