"""Layers that families share, and networks that are a sequence of layers.

Convolutions run in channels_last layout. The projection of the latent is a Linear layer whose output has the order
H, W, C, so it needs no copy. As a transposed convolution of a 1x1 input it is 6 to 60 times slower on a CPU.

Shapes: B images, Z latent size, K classes, C channels, H x W pixels, F features.
"""

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dcgan.families.family import FamilyConfig
from dcgan.families.networks import Discriminator, Generator, InferenceDiscriminator, InferenceGenerator
from dcgan.sampling.cpu_kernels import assemble_subpixels, subpixel_kernel


class Projection(nn.Module):
    """A fully connected layer from a vector or a map, joined with the one-hot class, to a map."""

    def __init__(self, inputs: int, num_classes: int, extent: int, channels: int) -> None:
        super().__init__()
        self.shape = (extent, extent, channels)
        self.num_classes = num_classes
        self.linear = nn.Linear(inputs + num_classes, math.prod(self.shape))

    def forward(self, x: Tensor, label_B: Tensor | None = None) -> Tensor:
        if x.dim() == 4:
            x = x.permute(0, 2, 3, 1).flatten(1)  # the order in memory
        if self.num_classes:
            assert label_B is not None, "a network with classes needs labels"
            x = torch.cat([x, nn.functional.one_hot(label_B, self.num_classes).to(x.dtype)], 1)
        map_BHWC: Tensor = self.linear(x).view(-1, *self.shape)
        return map_BHWC.permute(0, 3, 1, 2)  # a channels_last view


class JoinClass(nn.Module):
    """Appends the one-hot class to a map as channels, equal at every position; zeros without a label."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, x: Tensor, label_B: Tensor | None = None) -> Tensor:
        batch, _, height, width = x.shape
        class_BK = x.new_zeros(batch, self.num_classes)
        if label_B is not None:
            class_BK = nn.functional.one_hot(label_B, self.num_classes).to(x.dtype)
        class_BHWK = class_BK[:, None, None].expand(batch, height, width, -1)
        return torch.cat([x.permute(0, 2, 3, 1), class_BHWK], 3).permute(0, 3, 1, 2)  # channels_last, like the input


class Maxout(nn.Module):
    """The maximum over groups of `pieces` channels. Source: Goodfellow et al. 2013, arXiv:1302.4389."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, *extents = x.shape
        return x.reshape(batch, channels // self.pieces, self.pieces, *extents).amax(2)


class Layers(nn.Sequential):
    """A sequence of layers. Those that use the class receive the labels."""

    def forward(self, x: Tensor, label_B: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer(x, label_B) if isinstance(layer, Projection | JoinClass) else layer(x)
        return x


class LayeredGenerator(Generator):
    """A projection of the latent, then a sequence of layers, then tanh."""

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
    """A sequence of layers, then a linear head. With classes it is a projection discriminator.

    A projection discriminator adds the product of the features with the label's embedding to the logit of the head.

    Source: Miyato & Koyama 2018, arXiv:1802.05637.
    """

    layers: Layers

    def __init__(self, config: FamilyConfig, layers: Iterable[nn.Module], features: int, num_classes: int) -> None:
        """Args: features: size of the last layer's output. num_classes: classes of the embedding; 0 for none."""
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
        blocks: list[list[nn.Module]] = []
        after_join = False
        for layer in self.layers:
            if isinstance(layer, Projection):  # the layers from here on are fully connected
                break
            if isinstance(layer, JoinClass | nn.Conv2d) and not after_join:
                blocks.append([])
            after_join = isinstance(layer, JoinClass)
            if blocks:
                blocks[-1].append(layer)
        return [nn.Sequential(*layers) for layers in blocks]


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Draw weights from N(0, 0.02) and batch norm scales from N(1, 0.02); set biases to 0.

    Source: Radford et al. 2015, arXiv:1511.06434, sec. 4, and their code.
    """
    if all(weight.is_meta for weight in network.parameters()):
        return  # only the shapes are wanted; drawing would import torch's compiler, which takes two seconds
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            nn.init.zeros_(bias)


def fold(layers: Iterable[nn.Module]) -> Layers:
    """The layers for eval mode, without dropout and with every batch norm folded into a copy of the layer before it.

    The folding is computed in float32.
    """
    folded: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            before = folded.pop()
            if isinstance(before, Projection):
                folded.append(_fold_projection(before, layer))
                continue
            assert isinstance(before, nn.Conv2d | nn.ConvTranspose2d), "a batch norm must follow a layer with weights"
            folded.append(fuse_conv_bn_eval(before, layer, transpose=isinstance(before, nn.ConvTranspose2d)))
        elif not isinstance(layer, nn.Dropout):
            folded.append(layer)
    return Layers(*folded)


class _InferenceLayers(InferenceGenerator):
    """A LayeredGenerator's layers. A final transposed convolution runs as a sub-pixel convolution."""

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
        return assemble_subpixels(values_BHWC) if self._by_subpixels else values_BHWC


class _InferenceHead(InferenceDiscriminator):
    """A LayeredDiscriminator's layers, head and class embedding."""

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
    extent = project.shape[0] * project.shape[1]  # the outputs have the order H, W, C: channels repeat fastest
    folded = copy.deepcopy(project)
    folded.linear.weight.mul_(scale_C.repeat(extent)[:, None])
    folded.linear.bias.mul_(scale_C.repeat(extent)).add_(shift_C.repeat(extent))
    return folded


@torch.no_grad()
def _by_subpixels(layer: nn.Module) -> nn.Conv2d:
    """A transposed convolution (4x4, stride 2, padding 1) as a convolution whose output `assemble_subpixels` arranges.

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
