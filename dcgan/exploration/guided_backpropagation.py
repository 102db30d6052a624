"""What a discriminator's features look at: the pixels that speak for a unit. N images, U units of the last layer.

Source: Springenberg et al. 2014, arXiv:1412.6806; used on DCGANs by Radford et al. 2015, fig. 5.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcgan.exploration.discriminator_features import convolution_blocks
from dcgan.families.family import Discriminator

_BATCH = 128


@dataclass(frozen=True, slots=True)
class Regard:
    """For each image, what one unit saw in it at the place where it answered most."""

    gradient_NHWC: np.ndarray  # float32; 0 outside the unit's field
    top_N: np.ndarray  # where the field begins; below 0, or past the end with its size, in the padding
    left_N: np.ndarray


class Gaze:
    """A discriminator's last convolution layer, looked back from.

    `field` is the extent of the square of pixels that a unit sees.
    """

    def __init__(self, discriminator: Discriminator) -> None:
        """Raises: FeaturesError for a network without convolutions."""
        layers = [layer for block in convolution_blocks(discriminator) for layer in block]
        self.field, self._jump, self._start = _geometry(layers)
        self._layers = nn.Sequential(*(_Rectifier(one) if isinstance(one, nn.LeakyReLU) else one for one in layers))

    @torch.no_grad()
    def responses(self, images_NHWC: np.ndarray) -> np.ndarray:
        """response_NU: how strongly each unit answers, at the place where it does most."""
        found = [
            self._layers(_prepared(images_NHWC[start : start + _BATCH])).amax((2, 3)).numpy()
            for start in range(0, len(images_NHWC), _BATCH)
        ]
        response_NU: np.ndarray = np.concatenate(found)
        return response_NU

    def regard(self, images_NHWC: np.ndarray, unit: int) -> Regard:
        """The gradient of a unit's answer by the pixels, by guided backpropagation."""
        images_NCHW = _prepared(images_NHWC).requires_grad_()
        map_NHW = self._layers(images_NCHW)[:, unit]
        answer_N, place_N = map_NHW.flatten(1).max(1)
        (gradient_NCHW,) = torch.autograd.grad(answer_N.sum(), images_NCHW)
        row_N, column_N = np.divmod(place_N.numpy(), map_NHW.shape[2])
        gradient_NHWC = gradient_NCHW.permute(0, 2, 3, 1).contiguous().numpy()
        return Regard(gradient_NHWC, self._start + row_N * self._jump, self._start + column_N * self._jump)


class _Guided(torch.autograd.Function):
    """LeakyReLU forward. Backward only what speaks for the unit, through what was itself active.

    The slope below zero is left out there: with it, what speaks against would come back in.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(x > 0)
        return nn.functional.leaky_relu(x, slope)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (active,) = ctx.saved_tensors
        return gradient.clamp_min(0.0) * active, None


class _Rectifier(nn.Module):
    def __init__(self, layer: nn.LeakyReLU) -> None:
        super().__init__()
        self.slope = layer.negative_slope

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _Guided.apply(x, self.slope)
        return result


def _geometry(layers: list[nn.Module]) -> tuple[int, int, int]:
    """Of the last layer's units: how many pixels one sees, how far apart two are, and where the first one's begin."""
    field, jump, start = 1, 1, 0
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            assert isinstance(layer.padding, tuple)
            start -= layer.padding[0] * jump
            field += (layer.kernel_size[0] - 1) * jump
            jump *= layer.stride[0]
    return field, jump, start


def _prepared(images_NHWC: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
