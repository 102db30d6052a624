"""Layers that families share, and networks that are one layer after the other.

Convolutions run channels_last; the latent's projection is a Linear layer whose output is laid out H, W, C, so that it
needs no copy (as a transposed convolution of a 1x1 input it is 6 to 60 times slower on a CPU).

Shapes: B images, Z latent size, K classes, C channels, H x W pixels.
"""

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dcgan.families.family import (
    Discriminator,
    FamilyConfig,
    Generator,
    InferenceDiscriminator,
    InferenceGenerator,
)
from dcgan.sampling.cpu_kernels import assembled, subpixel_kernel


class Projection(nn.Module):
    """A fully connected layer: the latent, or a flattened map, joined with the class as one-hot, to a map."""

    def __init__(self, inputs: int, num_classes: int, extent: int, channels: int) -> None:
        super().__init__()
        self.shape = (extent, extent, channels)
        self.num_classes = num_classes
        self.linear = nn.Linear(inputs + num_classes, math.prod(self.shape))

    def forward(self, x: Tensor, label_B: Tensor | None = None) -> Tensor:
        if x.dim() == 4:
            x = x.permute(0, 2, 3, 1).flatten(1)  # as it lies in memory
        if self.num_classes:
            assert label_B is not None, "a network with classes, and no labels"
            x = torch.cat([x, nn.functional.one_hot(label_B, self.num_classes).to(x.dtype)], 1)
        map_BHWC: Tensor = self.linear(x).view(-1, *self.shape)
        return map_BHWC.permute(0, 3, 1, 2)  # a channels_last view


class JoinClass(nn.Module):
    """The class as one-hot channels behind a map's own, the same at every place; zeros where no label is given."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, x: Tensor, label_B: Tensor | None = None) -> Tensor:
        batch, _, height, width = x.shape
        class_BK = x.new_zeros(batch, self.num_classes)
        if label_B is not None:
            class_BK = nn.functional.one_hot(label_B, self.num_classes).to(x.dtype)
        class_BHWK = class_BK[:, None, None].expand(batch, height, width, -1)
        return torch.cat([x.permute(0, 2, 3, 1), class_BHWK], 3).permute(0, 3, 1, 2)  # channels_last, as it came


class Maxout(nn.Module):
    """The largest of every few channels. Source: Goodfellow et al. 2013, arXiv:1302.4389."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, *extents = x.shape
        return x.reshape(batch, channels // self.pieces, self.pieces, *extents).amax(2)


class Layers(nn.Sequential):
    """One layer after the other; the layers that use the class receive it."""

    def forward(self, x: Tensor, label_B: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer(x, label_B) if isinstance(layer, Projection | JoinClass) else layer(x)
        return x


class LayeredGenerator(Generator):
    """A projection of the latent, then one layer after the other, then tanh."""

    def __init__(self, config: FamilyConfig, project: Projection, layers: Iterable[nn.Module]) -> None:
        super().__init__(config)
        self.project = project
        self.layers = Layers(*layers, nn.Tanh())
        initialise(self)

    def forward(self, z_BZ: Tensor, label_B: Tensor | None = None) -> Tensor:
        image_BCHW: Tensor = self.layers(self.project(z_BZ, label_B), label_B)
        return image_BCHW

    def inference(self) -> InferenceGenerator:
        return _InferenceLayers(fold([self.project, *self.layers[:-1]]))


class LayeredDiscriminator(Discriminator):
    """One layer after the other, then a linear head; with an embedding of classes, a projection discriminator.

    Its logit is the head's, and with classes the product of the label's embedding with the features besides.

    Source: Miyato & Koyama 2018, arXiv:1802.05637.
    """

    layers: Layers

    def __init__(self, config: FamilyConfig, layers: Iterable[nn.Module], features: int, num_classes: int) -> None:
        """Args: features: numbers that the last layer gives an image. num_classes: of the embedding; 0 for none."""
        super().__init__(config)
        self.layers = Layers(*layers)
        self.head = nn.Linear(features, 1)
        self.classes = nn.Embedding(num_classes, features) if num_classes else None
        initialise(self)

    def forward(self, image_BCHW: Tensor, label_B: Tensor | None = None) -> Tensor:
        features_BF = self.layers(image_BCHW, label_B).permute(0, 2, 3, 1).flatten(1)
        logit_B: Tensor = self.head(features_BF).squeeze(1)
        if self.classes is not None:
            logit_B = logit_B + (self.classes(label_B).to(features_BF.dtype) * features_BF).sum(1)
        return logit_B

    def inference(self) -> InferenceDiscriminator:
        return _InferenceHead(fold(self.layers), self.head, self.classes)

    def convolution_blocks(self) -> list[nn.Sequential]:
        found: list[list[nn.Module]] = []
        begun = False
        for layer in self.layers:
            if isinstance(layer, Projection):  # fully connected from here on
                break
            if isinstance(layer, JoinClass | nn.Conv2d) and not begun:
                found.append([])
            begun = isinstance(layer, JoinClass)
            if found:
                found[-1].append(layer)
        return [nn.Sequential(*layers) for layers in found]


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Weights N(0, 0.02), batch norm scales N(1, 0.02), biases 0. Source: DCGAN paper, sec. 4, and its code."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            nn.init.zeros_(bias)


def fold(layers: Iterable[nn.Module]) -> Layers:
    """The layers without batch norms and dropout, for eval mode.

    Each norm is folded into a copy of the layer before it, in float32.
    """
    folded: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            before = folded.pop()
            if isinstance(before, Projection):
                folded.append(_fold_projection(before, layer))
                continue
            assert isinstance(before, nn.Conv2d | nn.ConvTranspose2d), "a norm that follows no layer with weights"
            folded.append(fuse_conv_bn_eval(before, layer, transpose=isinstance(before, nn.ConvTranspose2d)))
        elif not isinstance(layer, nn.Dropout):
            folded.append(layer)
    return Layers(*folded)


class _InferenceLayers(InferenceGenerator):
    """A LayeredGenerator's layers; a transposed convolution at the end runs by sub-pixels."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self._by_subpixels = isinstance(layers[-1], nn.ConvTranspose2d)
        if self._by_subpixels:
            layers[-1] = _by_subpixels(layers[-1])
        self._layers = layers

    def forward(self, z_BZ: Tensor, label_B: Tensor | None) -> Tensor:
        values: Tensor = self._layers(z_BZ, label_B)
        return values

    def place(self, values_BHWC: Tensor) -> Tensor:
        return assembled(values_BHWC) if self._by_subpixels else values_BHWC


class _InferenceHead(InferenceDiscriminator):
    """A LayeredDiscriminator's layers, head and classes."""

    def __init__(self, layers: Layers, head: nn.Linear, classes: nn.Embedding | None) -> None:
        super().__init__()
        self._layers, self._head, self._classes = layers, head, classes

    def forward(self, image_BCHW: Tensor, label_B: Tensor | None) -> Tensor:
        features_BF = self._layers(image_BCHW, label_B).permute(0, 2, 3, 1).flatten(1)
        logit_B: Tensor = self._head(features_BF).squeeze(1).float()
        if self._classes is not None:
            logit_B = logit_B + (self._classes(label_B) * features_BF).float().sum(1)
        return logit_B


@torch.no_grad()
def _fold_projection(project: Projection, norm: nn.BatchNorm2d) -> Projection:
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale_C = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift_C = norm.bias - norm.running_mean * scale_C
    extent = project.shape[0] * project.shape[1]  # outputs are laid out H, W, C: channels repeat fastest
    folded = copy.deepcopy(project)
    folded.linear.weight.mul_(scale_C.repeat(extent)[:, None])
    folded.linear.bias.mul_(scale_C.repeat(extent)).add_(shift_C.repeat(extent))
    return folded


@torch.no_grad()
def _by_subpixels(layer: nn.Module) -> nn.Conv2d:
    """A transposed convolution (4x4, stride 2, padding 1) as an ordinary one, whose output `assembled` puts in place.

    With few output channels a transposed convolution runs at a twentieth of a CPU's rate.
    """
    assert isinstance(layer, nn.ConvTranspose2d)
    assert (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))
    assert layer.bias is not None
    convolution = nn.Conv2d(layer.in_channels, 4 * layer.out_channels, 2, padding=1)
    convolution.weight.copy_(subpixel_kernel(layer.weight))
    assert convolution.bias is not None
    convolution.bias.copy_(layer.bias.repeat(4))
    return convolution
