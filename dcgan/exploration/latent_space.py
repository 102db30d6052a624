"""Latent interpolation, traversal and arithmetic, and the image attributes that measure their effect.

N latents of size Z, T steps; N images of H x W pixels and C channels.

Source: White 2016, arXiv:1609.04468, for slerp and for directions as differences of means; Radford et al. 2015,
arXiv:1511.06434, sec. 6, for arithmetic with averages of three latents.
"""

from collections.abc import Callable

import numpy as np

Attribute = Callable[[np.ndarray], np.ndarray]  # images_NHWC to value_N


def slerp(a_Z: np.ndarray, b_Z: np.ndarray, t_T: np.ndarray) -> np.ndarray:
    """Spherical interpolation: z_TZ, float32, on the arc from a (t = 0) to b (t = 1).

    The direction follows the arc and the length changes linearly, so the points are as long as latents of training.
    Equal and opposite directions have no unique arc. For them the result is linear interpolation.
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
    """Linear interpolation: z_TZ, float32. Halfway between two random latents its length is 0.7 of theirs."""
    z_TZ: np.ndarray = ((1 - t_T[:, None]) * a_Z + t_T[:, None] * b_Z).astype(np.float32)
    return z_TZ


def direction(z_NZ: np.ndarray, value_N: np.ndarray, share: float = 0.1) -> np.ndarray:
    """direction_Z, from the mean latent of the lowest values to that of the highest.

    Args: share: the share of all latents in either mean, at least one.
    """
    order = np.argsort(value_N, kind="stable")
    ends = max(1, int(share * len(order)))
    direction_Z: np.ndarray = z_NZ[order[-ends:]].mean(0) - z_NZ[order[:ends]].mean(0)
    return direction_Z


def ranks(value_N: np.ndarray) -> np.ndarray:
    """rank_N: 0 for the lowest value, 1 for the highest."""
    rank_N: np.ndarray = np.argsort(np.argsort(value_N, kind="stable"), kind="stable") / max(1, len(value_N) - 1)
    return rank_N


def exemplars(first_N: np.ndarray, second_N: np.ndarray, count: int = 3) -> np.ndarray:
    """The positions of the `count` images with the highest minimum of two ranks: those that are high in both."""
    positions: np.ndarray = np.argsort(-np.minimum(first_N, second_N), kind="stable")[:count]
    return positions


def mean_level(images_NHWC: np.ndarray) -> np.ndarray:
    """value_N: the mean grey level, 0 to 255. For light strokes on black it measures their thickness."""
    value_N: np.ndarray = images_NHWC.astype(np.float64).mean((1, 2, 3))
    return value_N


def slant(images_NHWC: np.ndarray) -> np.ndarray:
    """value_N: the slant of a light figure on black, in pixels to the right per pixel upwards; 0 for a black image.

    It is the shear that removes the figure's mixed second moment, the usual method to deskew MNIST.
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
    """value_N: mean red level minus mean blue level."""
    mean_NC = images_NHWC.astype(np.float64).mean((1, 2))
    value_N: np.ndarray = mean_NC[:, 0] - mean_NC[:, 2]
    return value_N


def attributes(channels: int) -> dict[str, tuple[Attribute, str, str]]:
    """Two attributes by name, each with its function and words for a high and a low value."""
    if channels == 1:
        return {"slant": (slant, "leaning right", "leaning left"), "ink": (mean_level, "thick", "thin")}
    return {"warmth": (warmth, "warm", "cold"), "brightness": (mean_level, "bright", "dark")}
