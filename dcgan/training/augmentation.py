"""Differentiable augmentation: what the discriminator sees of every image, real or fake, in both networks' steps.

Each image gets random numbers of its own from torch's global random state, and the generator's gradient passes through.
A discriminator that never sees the same picture twice cannot learn a small dataset by heart; what is done to fakes too
does not leak into them.

Source: Zhao et al. 2020, arXiv:2006.10738 (DiffAugment); its strengths.

Shapes: B images, C channels, H x W pixels, in [-1, 1].
"""

from collections.abc import Callable

import torch
from torch import Tensor

SHIFT = 1 / 8  # of the extent, at most, each way
HOLE = 1 / 2  # of the extent: the side of the square that is cut out


def check(policy: str) -> None:
    """Raises ValueError unless `policy` names policies, each once, joined by commas; `""` is none."""
    names = policy.split(",") if policy else []
    if not {*names} <= {*POLICIES} or len({*names}) < len(names):
        raise ValueError(f"augment is {policy!r}; it must be some of {','.join(POLICIES)}, joined by commas")


def augment(images_BCHW: Tensor, policy: str) -> Tensor:
    """The images as the discriminator is to see them: each policy that is named, in that order."""
    for name in policy.split(",") if policy else []:
        images_BCHW = POLICIES[name](images_BCHW)
    return images_BCHW


def color(images_BCHW: Tensor) -> Tensor:
    """Brightness by up to 0.5 either way, then saturation by a factor of 0 to 2, then contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = torch.rand(3, len(images_BCHW), 1, 1, 1, device=images_BCHW.device)
    images_BCHW = images_BCHW + (brightness - 0.5)
    if images_BCHW.shape[1] > 1:
        images_BCHW = torch.lerp(images_BCHW.mean(1, keepdim=True), images_BCHW, 2.0 * saturation)
    return torch.lerp(images_BCHW.mean((1, 2, 3), keepdim=True), images_BCHW, contrast + 0.5)


def translation(images_BCHW: Tensor) -> Tensor:
    """Moved by whole pixels, up to an eighth of the extent each way; 0 (grey) comes in from outside.

    Two products with matrices that have one 1 a row: exact, and unlike a gather fast and deterministic backwards.
    """
    rows_BHH = _moved(len(images_BCHW), images_BCHW.shape[2], images_BCHW.device)
    columns_BWW = _moved(len(images_BCHW), images_BCHW.shape[3], images_BCHW.device)
    with torch.autocast(images_BCHW.device.type, enabled=False):
        return torch.einsum("bhi,bciw,bvw->bchv", rows_BHH, images_BCHW.float(), columns_BWW)


def cutout(images_BCHW: Tensor) -> Tensor:
    """A square of half the extent set to 0 (grey); it may reach over the edge."""
    count, _, height, width = images_BCHW.shape
    outside_BHW = ~(
        _hole(count, height, images_BCHW.device)[:, :, None] & _hole(count, width, images_BCHW.device)[:, None]
    )
    return images_BCHW * outside_BHW[:, None]


POLICIES: dict[str, Callable[[Tensor], Tensor]] = {"color": color, "translation": translation, "cutout": cutout}


def _moved(count: int, extent: int, device: torch.device) -> Tensor:
    """A matrix an image, that moves a line of pixels by a random number of them."""
    most = int(extent * SHIFT + 0.5)
    shift_B = torch.randint(-most, most + 1, (count,), device=device)
    places = torch.arange(extent, device=device)
    return (places[:, None] - shift_B[:, None, None] == places).float()


def _hole(count: int, extent: int, device: torch.device) -> Tensor:
    """An interval an image, as a mask: half the extent around a random centre."""
    size = int(extent * HOLE + 0.5)
    start_B = torch.randint(0, extent + (1 - size % 2), (count,), device=device) - size // 2
    places = torch.arange(extent, device=device)
    return (places >= start_B[:, None]) & (places < start_B[:, None] + size)
