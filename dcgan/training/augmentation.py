"""Differentiable augmentation of every image that the discriminator sees, real or fake, in both networks' steps.

Each image gets its own random numbers from torch's global random state, and the generator's gradient passes through. A
discriminator that never sees the same image twice cannot memorise a small dataset. Fakes are augmented as real images
are, so the generator does not learn the augmentation.

Source: Zhao et al. 2020, arXiv:2006.10738 (DiffAugment); its strengths.

Shapes: B images, C channels, H x W pixels, in [-1, 1].
"""

from collections.abc import Callable

import torch
from torch import Tensor

MAX_SHIFT = 1 / 8  # of the extent, in each direction
HOLE = 1 / 2  # side of the square that is cut out, as a share of the extent


def augment(images_BCHW: Tensor, policy: str) -> Tensor:
    """Apply the policies of a comma-separated list to the images, in the order of the list."""
    for name in policy.split(",") if policy else []:
        images_BCHW = _FUNCTIONS[name](images_BCHW)
    return images_BCHW


def color(images_BCHW: Tensor) -> Tensor:
    """Change brightness by -0.5 to 0.5, then saturation by a factor of 0 to 2, then contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = torch.rand(3, len(images_BCHW), 1, 1, 1, device=images_BCHW.device)
    images_BCHW = images_BCHW + (brightness - 0.5)
    if images_BCHW.shape[1] > 1:
        images_BCHW = torch.lerp(images_BCHW.mean(1, keepdim=True), images_BCHW, 2.0 * saturation)
    return torch.lerp(images_BCHW.mean((1, 2, 3), keepdim=True), images_BCHW, contrast + 0.5)


def translation(images_BCHW: Tensor) -> Tensor:
    """Shift by whole pixels, up to an eighth of the extent in each direction. The new pixels are 0 (grey).

    The shift is a product with two matrices that have at most one 1 per row. It is exact. Unlike that of a gather, its
    backward pass is fast and deterministic.
    """
    rows_BHH = _shift_matrices(len(images_BCHW), images_BCHW.shape[2], images_BCHW.device)
    columns_BWW = _shift_matrices(len(images_BCHW), images_BCHW.shape[3], images_BCHW.device)
    with torch.autocast(images_BCHW.device.type, enabled=False):
        return torch.einsum("bhi,bciw,bvw->bchv", rows_BHH, images_BCHW.float(), columns_BWW)


def cutout(images_BCHW: Tensor) -> Tensor:
    """Set a square with half the extent to 0 (grey). It may extend beyond the edge."""
    count, _, height, width = images_BCHW.shape
    rows_BH, columns_BW = (_random_intervals(count, extent, images_BCHW.device) for extent in (height, width))
    outside_BHW = ~(rows_BH[:, :, None] & columns_BW[:, None])
    return images_BCHW * outside_BHW[:, None]


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {one.__name__: one for one in (color, translation, cutout)}


def _shift_matrices(count: int, extent: int, device: torch.device) -> Tensor:
    """A matrix for each image that shifts a line of pixels by a random number of pixels, [count, extent, extent]."""
    most = int(extent * MAX_SHIFT + 0.5)
    shift_B = torch.randint(-most, most + 1, (count,), device=device)
    positions = torch.arange(extent, device=device)
    return (positions[:, None] - shift_B[:, None, None] == positions).float()


def _random_intervals(count: int, extent: int, device: torch.device) -> Tensor:
    """A mask for each image of an interval with half the extent around a random centre, [count, extent]."""
    size = int(extent * HOLE + 0.5)
    start_B = torch.randint(0, extent + (1 - size % 2), (count,), device=device) - size // 2
    positions = torch.arange(extent, device=device)
    return (positions >= start_B[:, None]) & (positions < start_B[:, None] + size)
