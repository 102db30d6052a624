"""Unit saliency by guided backpropagation: the pixels that activate a discriminator's unit.

N images of H x W pixels and C channels, U units of the last convolution layer.

Source: Springenberg et al. 2014, arXiv:1412.6806; used on DCGANs by Radford et al. 2015, fig. 5.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcgan.exploration.discriminator_features import convolution_blocks
from dcgan.families.networks import Discriminator

_BATCH = 128


@dataclass(frozen=True, slots=True)
class Saliency:
    """The guided gradient of one unit's strongest response in each image."""

    gradient_NHWC: np.ndarray  # float32; 0 outside the unit's receptive field
    # The first row and column of the receptive field. It may reach into the padding: below 0, or beyond the image.
    top_N: np.ndarray
    left_N: np.ndarray


class UnitSaliency:
    """The units of a discriminator's last convolution layer, and their saliency.

    `receptive_field` is the side of the square of pixels on which a unit depends.
    """

    def __init__(self, discriminator: Discriminator) -> None:
        """Raises: FeaturesError for a network without convolutions."""
        layers = [layer for block in convolution_blocks(discriminator) for layer in block]
        self.receptive_field, self._stride, self._start = _geometry(layers)
        self._layers = nn.Sequential(*(_Rectifier(one) if isinstance(one, nn.LeakyReLU) else one for one in layers))

    @torch.no_grad()
    def responses(self, images_NHWC: np.ndarray) -> np.ndarray:
        """response_NU, float32: each unit's activation at the position of its maximum."""
        maxima = [
            self._layers(_prepared(images_NHWC[start : start + _BATCH])).amax((2, 3)).numpy()
            for start in range(0, len(images_NHWC), _BATCH)
        ]
        response_NU: np.ndarray = np.concatenate(maxima)
        return response_NU

    def saliency(self, images_NHWC: np.ndarray, unit: int) -> Saliency:
        """The gradient of a unit's response with respect to the pixels, by guided backpropagation."""
        images_NCHW = _prepared(images_NHWC).requires_grad_()
        map_NHW = self._layers(images_NCHW)[:, unit]
        response_N, position_N = map_NHW.flatten(1).max(1)
        (gradient_NCHW,) = torch.autograd.grad(response_N.sum(), images_NCHW)
        row_N, column_N = np.divmod(position_N.numpy(), map_NHW.shape[2])
        gradient_NHWC = gradient_NCHW.permute(0, 2, 3, 1).contiguous().numpy()
        return Saliency(gradient_NHWC, self._start + row_N * self._stride, self._start + column_N * self._stride)


class _Guided(torch.autograd.Function):
    """LeakyReLU. Its backward pass keeps only positive gradients of units that were active.

    The backward pass ignores the slope below zero. With it, negative evidence would re-enter the gradient.
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
    """The receptive field of a unit of the last layer, the stride between two units, and the first field's start.

    All three are in pixels along one axis.
    """
    field, stride, start = 1, 1, 0
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            assert isinstance(layer.padding, tuple)
            start -= layer.padding[0] * stride
            field += (layer.kernel_size[0] - 1) * stride
            stride *= layer.stride[0]
    return field, stride, start


def _prepared(images_NHWC: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
