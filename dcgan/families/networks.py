"""The interface of networks: what a family's generator and discriminator provide. This module knows no family.

Shapes: B images, Z latent size, C channels, H = W pixels. Images are in [-1, 1].
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from dcgan.families.family import FamilyConfig


class Convolutions(NamedTuple):
    """The classes of the 4x4 convolutions with stride 2 and padding 1 from which a network is built.

    They are torch's own, or those of `cpu_kernels`, which train faster on a CPU.
    """

    conv: type[nn.Conv2d]
    transposed: type[nn.ConvTranspose2d]


PLAIN = Convolutions(nn.Conv2d, nn.ConvTranspose2d)


class InferenceGenerator(nn.Module, ABC):
    """The form of a generator that runs outside training: folded, in eval mode, cast to the sampler's dtype."""

    @abstractmethod
    def forward(self, z_BZ: Tensor, label_B: Tensor | None) -> Tensor:
        """The values before the final activation, [B, C', H', W']. `place` arranges them as an image."""

    def activate(self, values: Tensor) -> Tensor:
        """Apply the final activation in place to float32 values. The default is tanh."""
        return values.tanh_()

    def place(self, values_BHWC: Tensor) -> Tensor:
        """Arrange the values of a forward pass as images, [B, H, W, C]. By default they already are."""
        return values_BHWC


class InferenceDiscriminator(nn.Module, ABC):
    """The form of a discriminator that runs outside training: folded, in eval mode, cast to the sampler's dtype."""

    @abstractmethod
    def forward(self, image_BCHW: Tensor, label_B: Tensor | None) -> Tensor:
        """logit_B, float32."""


class Generator(nn.Module, ABC):
    """Maps latents, and labels if there are classes, to images."""

    config: Any  # the family's own class: its networks use fields that FamilyConfig lacks

    def __init__(self, config: FamilyConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, z_BZ: Tensor, label_B: Tensor | None = None) -> Tensor:
        """image_BCHW in [-1, 1]."""

    @abstractmethod
    def inference(self) -> InferenceGenerator:
        """The inference form of this generator. It may share weights with it; the sampler copies what it runs."""

    def prepare_for_export(self, latents: Iterable[Tensor], label_B: Tensor | None) -> None:
        """Prepare a generator with averaged weights for export.

        By default this computes new batch statistics, as the plain mean over the given batches. The running statistics
        of training belong to the weights of single steps, not to their average.

        Args: latents: batches of latents, z_BZ. label_B: the labels of each batch.
        """
        update_bn(latents, _Labelled(self, label_B))


class Discriminator(nn.Module, ABC):
    """Maps images, and labels if there are classes, to logits. A logit above 0 means that the image looks real."""

    config: Any
    layers: nn.Module  # all layers before the head; the digest of a discriminator's features is that of their weights

    def __init__(self, config: FamilyConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, image_BCHW: Tensor, label_B: Tensor | None = None) -> Tensor:
        """logit_B."""

    @abstractmethod
    def inference(self) -> InferenceDiscriminator:
        """The inference form of this discriminator. It may share weights with it; the sampler copies what it runs."""

    def convolution_blocks(self) -> list[nn.Sequential]:
        """The convolutions for the study of features, each with the norm and the rectifier after it. Default: none.

        A block whose input is joined with the class runs without a label.
        """
        return []


class _Labelled(nn.Module):
    """A generator that receives the same labels with every batch of latents."""

    def __init__(self, generator: Generator, label_B: Tensor | None) -> None:
        super().__init__()
        self.generator, self._label_B = generator, label_B

    def forward(self, z_BZ: Tensor) -> Tensor:
        image_BCHW: Tensor = self.generator(z_BZ, self._label_B)
        return image_BCHW
