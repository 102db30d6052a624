"""4x4 convolutions of stride 2 for training on a CPU, for shapes at which oneDNN is slow. A GPU does not need them.

`CpuConv2d` and `CpuConvTranspose2d` have the parameters and names of torch's layers. Their results are equal up to the
order of additions. A family builds its networks of them on request (`families.family.Convolutions`). Without gradients
they run torch's own kernels, so an exported model gives the same results as with torch's layers.

Measured on one Zen 4 core with AVX512-BF16 at batch 128: the weights' gradient of 256 -> 512 channels at 8x8 takes
46 ms (oneDNN: 76 to 88), and 3 <- 64 channels at 64x64 take 9 ms (oneDNN: 25). Larger maps stay with oneDNN, which runs
them at the rate of a matrix product.

Shapes: B images; x [B, C, 2H, 2W] is the large map, y [B, O, H, W] the small one, and w [O, C, 4, 4] the weights, in
the layout of both layers. One trilinear form of x, w and y defines the operation. Its derivatives by y, x and w are the
three functions here. The derivatives of each are the other two, so second derivatives, which a gradient penalty needs,
require no further code.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import conv2d, conv_transpose2d, pad

FEW_CHANNELS = 4
SMALL_EXTENT = 8


class CpuConv2d(nn.Conv2d):
    """The convolution from x to y. Requires kernel 4x4, stride 2, padding 1."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _check(self)

    def forward(self, x: Tensor) -> Tensor:
        # Of the first layer only the gradient with respect to the image is slow.
        if not (_is_slow(x, self.weight) and torch.is_grad_enabled()) or (
            _has_few_channels(self.weight) and not x.requires_grad
        ):
            return super().forward(x)
        return _add(_down(*_cast(x, self.weight)), self.bias)


class CpuConvTranspose2d(nn.ConvTranspose2d):
    """The transposed convolution from y to x. Requires kernel 4x4, stride 2, padding 1."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _check(self)

    def forward(self, y: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert output_size is None, "no network here sets it"
        if not (_is_slow(y, self.weight, scale=2) and torch.is_grad_enabled()):
            return super().forward(y)
        return _add(_up(*_cast(y, self.weight)), self.bias)


class _Down(Function):
    """The convolution: x, w -> y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return conv2d(x, w, None, 2, 1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        return (_up(dy, w) if ctx.needs_input_grad[0] else None, _weights(x, dy) if ctx.needs_input_grad[1] else None)


class _Up(Function):
    """The transposed convolution: y, w -> x."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(y, w)
        return _by_subpixels(y, w) if _has_few_channels(w) else conv_transpose2d(y, w, None, 2, 1)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, Tensor | None]:
        y, w = ctx.saved_tensors
        return (_down(dx, w) if ctx.needs_input_grad[0] else None, _weights(dx, y) if ctx.needs_input_grad[1] else None)


class _Weights(Function):
    """The gradient by the weights, the same for both layers: x, y -> w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        if _is_small(x):
            return _by_product(x, y)
        w = x.new_empty(y.shape[1], x.shape[1], 4, 4)  # only the shape is used
        gradients = torch.ops.aten.convolution_backward(
            y, x, w, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
        )
        gradient: Tensor = gradients[1]
        return gradient

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        return (_up(y, dw) if ctx.needs_input_grad[0] else None, _down(x, dw) if ctx.needs_input_grad[1] else None)


def _by_subpixels(y: Tensor, w: Tensor) -> Tensor:
    phases_BHWC = conv2d(y, subpixel_kernel(w), None, 1, 1).permute(0, 2, 3, 1)
    return assemble_subpixels(phases_BHWC).contiguous().permute(0, 3, 1, 2)


def subpixel_kernel(w: Tensor) -> Tensor:
    """The kernel, [4 C, O, 2, 2], of a convolution with padding 1 that computes the transposed convolution.

    Each of the four output phases is a 2x2 convolution. One convolution computes all four; its 4 C channels have the
    order phase row, phase column, channel. It has H + 1 by W + 1 outputs: between the pixels of y and around them.

    Source: Shi et al. 2016, arXiv:1609.07009.
    """
    # Row 2p - 1 of x is y[p - 1] w[2] + y[p] w[0]; row 2p is y[p - 1] w[3] + y[p] w[1].
    taps = torch.tensor([[2, 0], [3, 1]])
    phases = w[:, :, taps][..., taps].permute(2, 4, 1, 0, 3, 5)  # phase row, phase column, C, O, tap row, tap column
    return phases.reshape(4 * w.shape[1], -1, 2, 2).contiguous(memory_format=torch.channels_last)


def assemble_subpixels(phases_BHWC: Tensor) -> Tensor:
    """Arrange the outputs of `subpixel_kernel`, [B, H + 1, W + 1, 4 C], as [B, 2 H, 2 W, C], without the border."""
    batch, height, width, channels = phases_BHWC.shape
    phases = phases_BHWC.reshape(batch, height, width, 2, 2, channels // 4)
    image = phases.permute(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels // 4)
    return image[:, 1:-1, 1:-1]


def _by_product(x: Tensor, y: Tensor) -> Tensor:
    """The gradient by the weights: gather the 4x4 patch of every output, then one matrix product."""
    batch, out, height, width = y.shape
    padded = pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
    image, row, column, _ = padded.stride()
    # Four neighbouring pixels with their channels are contiguous in memory.
    patches = padded.as_strided((batch, height, width, 4, 4 * x.shape[1]), (image, 2 * row, 2 * column, row, 1))
    gradient = y.permute(0, 2, 3, 1).reshape(-1, out).t() @ patches.reshape(batch * height * width, -1)
    return gradient.view(out, 4, 4, -1).permute(0, 3, 1, 2)


def _down(x: Tensor, w: Tensor) -> Tensor:
    y: Tensor = _Down.apply(x, w)
    return y


def _up(y: Tensor, w: Tensor) -> Tensor:
    x: Tensor = _Up.apply(y, w)
    return x


def _weights(x: Tensor, y: Tensor) -> Tensor:
    w: Tensor = _Weights.apply(x, y)
    return w


def _check(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    shape = layer.kernel_size, layer.stride, layer.padding
    assert shape == ((4, 4), (2, 2), (1, 1)), f"kernel, stride and padding are {shape}"


def _has_few_channels(w: Tensor) -> bool:
    return w.shape[1] <= FEW_CHANNELS


def _is_small(x: Tensor) -> bool:
    # In float32 the matrix product is no faster than oneDNN: 111 ms against 95.
    return x.dtype == torch.bfloat16 and x.shape[-1] <= SMALL_EXTENT


def _is_slow(maps: Tensor, w: Tensor, scale: int = 1) -> bool:
    """Whether the forward or a backward pass of a layer with this input is faster with the kernels here."""
    bf16 = torch.bfloat16 in (maps.dtype, _autocast_dtype())
    return _has_few_channels(w) or (bf16 and maps.shape[-1] * scale <= SMALL_EXTENT)


def _autocast_dtype() -> torch.dtype | None:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


def _cast(*tensors: Tensor) -> list[Tensor]:
    """Cast as autocast does for a convolution."""
    dtype = _autocast_dtype()
    return [tensor.to(dtype or tensor.dtype) for tensor in tensors]


def _add(maps: Tensor, bias: Tensor | None) -> Tensor:
    return maps if bias is None else maps + bias.to(maps.dtype)[:, None, None]
