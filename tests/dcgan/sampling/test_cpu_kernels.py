"""The CPU kernels agree with torch's layers in outputs, gradients and second derivatives."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from dcgan.families.registry import build
from dcgan.sampling import cpu_kernels
from dcgan.sampling.cpu_kernels import CpuConv2d, CpuConvTranspose2d
from dcgan.training.step import CPU_KERNELS
from tests.families import configure


def test_a_layer_of_another_shape_is_refused() -> None:
    for kind in (CpuConv2d, CpuConvTranspose2d):
        with pytest.raises(AssertionError, match="kernel, stride and padding"):
            kind(3, 5, 3, 2, 1)


LAYERS = [
    *itertools.product([nn.Conv2d, nn.ConvTranspose2d], [(3, 5), (1, 4), (6, 8), (5, 3)], (4, 8, 12), (False, True)),
]


def pair(kind: type[nn.Conv2d | nn.ConvTranspose2d], shape: tuple[int, int], bias: bool) -> tuple[nn.Module, nn.Module]:
    """torch's layer and the CPU layer with equal weights."""
    torch.manual_seed(0)
    channels = shape if kind is nn.Conv2d else shape[::-1]
    plain = kind(*channels, 4, 2, 1, bias=bias).to(memory_format=torch.channels_last)
    ours = CpuConv2d if kind is nn.Conv2d else CpuConvTranspose2d
    swapped = ours(*channels, 4, 2, 1, bias=bias).to(memory_format=torch.channels_last)
    swapped.load_state_dict(plain.state_dict())
    return plain, swapped


def maps(layer: nn.Module, extent: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    extent = extent if isinstance(layer, nn.Conv2d) else extent // 2
    drawn = torch.randn(3, layer.in_channels, extent, extent, generator=generator)
    return drawn.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


def derivatives(layer: nn.Module, given: Tensor, bf16: bool = False) -> list[Tensor]:
    """The output, and the gradients by input and parameters of a sum with a random weight per output."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        made = layer(given)
    weights = torch.randn(made.shape, generator=torch.Generator().manual_seed(2))
    return [made, *torch.autograd.grad((made * weights).sum(), [given, *layer.parameters()])]


@pytest.mark.parametrize(("kind", "shape", "extent", "bias"), LAYERS, ids=str)
def test_outputs_and_gradients_agree_with_torchs_layer(
    kind: type[nn.Conv2d], shape: tuple[int, int], extent: int, bias: bool
) -> None:
    plain, swapped = pair(kind, shape, bias)
    assert isinstance(swapped, CpuConv2d | CpuConvTranspose2d)
    for ours, theirs in zip(*(derivatives(layer, maps(plain, extent)) for layer in (swapped, plain)), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "shape", "extent", "bias"), LAYERS, ids=str)
def test_the_error_in_bfloat16_is_at_most_twice_that_of_torchs_layer(
    kind: type[nn.Conv2d], shape: tuple[int, int], extent: int, bias: bool
) -> None:
    plain, swapped = pair(kind, shape, bias)
    exact = derivatives(plain, maps(plain, extent))
    theirs, ours = (derivatives(layer, maps(plain, extent), bf16=True) for layer in (plain, swapped))
    assert [value.dtype for value in ours] == [value.dtype for value in theirs]
    for expected, library, own in zip(exact, theirs, ours, strict=True):
        scale = expected.abs().max()
        assert (own - expected).abs().max() / scale < max(0.02, 2 * (library - expected).abs().max() / scale)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (6, 8)], ids=str)
def test_second_derivatives_agree_with_torchs_layer(kind: type[nn.Conv2d], shape: tuple[int, int]) -> None:
    found = []
    for layer in pair(kind, shape, bias=False):
        given = maps(layer, 8, torch.float64)
        layer = layer.double()
        (slope,) = torch.autograd.grad(layer(given).square().sum(), given, create_graph=True)
        penalty = (slope.square().sum((1, 2, 3)).sqrt() - 1).square().mean()
        found.append(torch.autograd.grad(penalty, [given, *layer.parameters()]))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("channels", [2, 5])
def test_the_three_operations_are_each_others_derivatives(channels: int) -> None:
    torch.manual_seed(0)
    x, y, w = (torch.randn(shape).double() for shape in ((2, channels, 6, 4), (2, 3, 3, 2), (3, channels, 4, 4)))
    operations = ((cpu_kernels._down, x, w), (cpu_kernels._up, y, w), (cpu_kernels._weights, x, y))
    for function, one, other in operations:
        inputs = (one.clone().requires_grad_(), other.clone().requires_grad_())
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("channels", [1, 5])
def test_sub_pixels_and_the_matrix_product_agree_with_the_library(channels: int) -> None:
    torch.manual_seed(0)
    x, y, w = (torch.randn(shape).double() for shape in ((2, channels, 6, 4), (2, 3, 3, 2), (3, channels, 4, 4)))
    torch.testing.assert_close(cpu_kernels._by_subpixels(y, w), nn.functional.conv_transpose2d(y, w, None, 2, 1))
    torch.testing.assert_close(cpu_kernels._by_product(x, y), cpu_kernels._weights(x, y))


def test_without_gradients_torchs_layer_runs() -> None:
    for kind in (nn.Conv2d, nn.ConvTranspose2d):
        plain, swapped = pair(kind, (3, 5), bias=True)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(swapped(maps(plain, 16)), plain(maps(plain, 16)))


def test_a_network_of_cpu_layers_has_the_same_parameters_names_and_layout() -> None:
    keras = configure("keras", image_size=28, channels=1)
    for config, swapped in ((configure("dcgan", image_size=64, channels=3, width=4), 8), (keras, 0)):
        torch.manual_seed(0)
        networks = build(config)
        before = [{name: (value, value.stride()) for name, value in each.state_dict().items()} for each in networks]
        torch.manual_seed(0)
        networks = build(config, CPU_KERNELS)
        after = [{name: (value, value.stride()) for name, value in each.state_dict().items()} for each in networks]
        assert [each.keys() for each in before] == [each.keys() for each in after]
        for old, new in zip(before, after, strict=True):
            assert all(old[name][1] == new[name][1] and torch.equal(old[name][0], new[name][0]) for name in old)
        kinds = [type(module) for network in networks for module in network.modules()]
        assert kinds.count(CpuConv2d) + kinds.count(CpuConvTranspose2d) == swapped
