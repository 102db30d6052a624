"""A two-sample problem with a known log ratio of densities, for calibration and rejection sampling."""

import numpy as np

REAL, FAKE = (0.5, 0.8), (0.0, 1.0)  # mean, standard deviation; the fake one is wider, so M is finite


def draw(which: tuple[float, float], count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(*which, count)


def log_ratio(x_N: np.ndarray) -> np.ndarray:
    """log p_real / p_fake: the logit of the ideal discriminator."""

    def log_density(which: tuple[float, float]) -> np.ndarray:
        density_N: np.ndarray = -(((x_N - which[0]) / which[1]) ** 2) / 2 - np.log(which[1])
        return density_N

    return log_density(REAL) - log_density(FAKE)
