"""Walks between latents, and what can be measured of the images on the way. N latents of size Z, T steps.

Source: White 2016, arXiv:1609.04468, for slerp and for directions as differences of means; Radford et al. 2015,
arXiv:1511.06434, sec. 6, for arithmetic with averages of three.
"""

from collections.abc import Callable

import numpy as np

Attribute = Callable[[np.ndarray], np.ndarray]  # images_NHWC to one number each


def slerp(a_Z: np.ndarray, b_Z: np.ndarray, t_T: np.ndarray) -> np.ndarray:
    """z_TZ on the arc from a (t = 0) to b (t = 1): as long as the latents are that a generator has seen.

    The angle is of the directions; the length goes evenly from one to the other. Opposite directions have no arc
    between them: there, and for equal ones, it is the straight line.
    """
    lengths = np.linalg.norm(a_Z), np.linalg.norm(b_Z)
    a, b = a_Z / lengths[0], b_Z / lengths[1]
    angle = np.arccos(np.clip(a @ b, -1.0, 1.0))
    t = t_T[:, None]
    if np.sin(angle) < 1e-6:
        return lerp(a_Z, b_Z, t_T)
    arc = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    z_TZ: np.ndarray = (arc * ((1 - t) * lengths[0] + t * lengths[1])).astype(np.float32)
    return z_TZ


def lerp(a_Z: np.ndarray, b_Z: np.ndarray, t_T: np.ndarray) -> np.ndarray:
    """z_TZ on the straight line. Halfway between two random latents it is 0.7 as long as they are."""
    z_TZ: np.ndarray = ((1 - t_T[:, None]) * a_Z + t_T[:, None] * b_Z).astype(np.float32)
    return z_TZ


def direction(z_NZ: np.ndarray, value_N: np.ndarray, share: float = 0.1) -> np.ndarray:
    """direction_Z: from the mean latent of the lowest values to that of the highest, a share of all each."""
    order = np.argsort(value_N, kind="stable")
    ends = max(1, int(share * len(order)))
    direction_Z: np.ndarray = z_NZ[order[-ends:]].mean(0) - z_NZ[order[:ends]].mean(0)
    return direction_Z


def ranks(value_N: np.ndarray) -> np.ndarray:
    """rank_N: 0 for the lowest value, 1 for the highest."""
    rank_N: np.ndarray = np.argsort(np.argsort(value_N, kind="stable"), kind="stable") / max(1, len(value_N) - 1)
    return rank_N


def exemplars(first_N: np.ndarray, second_N: np.ndarray, count: int = 3) -> np.ndarray:
    """The positions of the `count` images that have both most of one rank and most of another."""
    positions: np.ndarray = np.argsort(-np.minimum(first_N, second_N), kind="stable")[:count]
    return positions


def ink(images_NHWC: np.ndarray) -> np.ndarray:
    """The mean grey level, 0 to 255: of light strokes on black, how thick they are."""
    value_N: np.ndarray = images_NHWC.astype(np.float64).mean((1, 2, 3))
    return value_N


def slant(images_NHWC: np.ndarray) -> np.ndarray:
    """By how many pixels a light figure on black leans to the right a pixel upwards; 0 for nothing but black.

    The shear that makes the figure's second moments upright, as MNIST is commonly deskewed.
    """
    weight_NHW = images_NHWC.astype(np.float64).mean(3)
    total_N = np.maximum(weight_NHW.sum((1, 2)), 1e-9)
    y_H, x_W = np.arange(weight_NHW.shape[1]), np.arange(weight_NHW.shape[2])
    y_NH = y_H - (weight_NHW.sum(2) @ y_H / total_N)[:, None]
    x_NW = x_W - (weight_NHW.sum(1) @ x_W / total_N)[:, None]
    both_N = np.einsum("nhw,nh,nw->n", weight_NHW, y_NH, x_NW)
    upright_N = np.einsum("nhw,nh->n", weight_NHW, np.square(y_NH))
    value_N: np.ndarray = -both_N / np.maximum(upright_N, 1e-9)
    return value_N


def warmth(images_NHWC: np.ndarray) -> np.ndarray:
    """Red less blue, in mean grey levels."""
    mean_NC = images_NHWC.astype(np.float64).mean((1, 2))
    value_N: np.ndarray = mean_NC[:, 0] - mean_NC[:, 2]
    return value_N


def attributes(channels: int) -> dict[str, tuple[Attribute, str, str]]:
    """Two things to measure of an image, with words for much and little of them."""
    if channels == 1:
        return {"slant": (slant, "leaning right", "leaning left"), "ink": (ink, "thick", "thin")}
    return {"warmth": (warmth, "warm", "cold"), "brightness": (ink, "bright", "dark")}
