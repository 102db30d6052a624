"""The interface of a family of networks. The rest of ganmill uses nothing else. This module knows no family.

A family is one module with a configuration, a generator, a discriminator, and overrides of the defaults here.
`registry.py` lists the families.

Shapes: B images, Z latent size, C channels, H = W pixels. Images are in [-1, 1].
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from dcgan.configuration import STRICT
from dcgan.sampling import latents

ImageSize = Literal[28, 32, 64, 128]
IMAGE_SIZES: tuple[int, ...] = get_args(ImageSize)


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class FamilyConfig:
    """The settings that all families share. They determine the shapes of both networks, and every model stores them.

    Raises: pydantic.ValidationError, a ValueError, for a value that is not allowed. `configuration.reason` gives its
            text in one line.
    """

    family: ClassVar[str]
    """The family's name in settings, identities and models."""
    image_size: ImageSize = Field(28, description="28, 32, 64 or 128; must be the dataset's")
    """Height and width in pixels."""
    channels: Literal[1, 3] = Field(1, description="1 or 3; must be the dataset's")
    """1 (grey) or 3 (RGB)."""
    z_dim: int = Field(100, ge=1, le=4096, description="size of the latent vector")
    """Size of the latent vector."""
    num_classes: int = Field(0, ge=0, le=10_000, description="classes of the dataset; 0 for none")
    """Number of classes on which both networks are conditioned; 0 for none. The dataset decides it, not a flag."""


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


class Family(ABC):
    """One family of networks: its parts, and hooks. Most families keep the hooks' defaults."""

    config: type[FamilyConfig]
    generator: type[Generator]
    discriminator: type[Discriminator]
    least_images: int = 1
    """The smallest number of images per worker in a step."""

    @property
    def name(self) -> str:
        return self.config.family

    def build(self, config: FamilyConfig, convolutions: Convolutions = PLAIN) -> tuple[Generator, Discriminator]:
        """Both networks, channels_last, initialised from torch's global random state."""
        generator = self.generator(config, convolutions)  # type: ignore[call-arg]  # a family's own constructor
        discriminator = self.discriminator(config, convolutions)  # type: ignore[call-arg]
        return generator.to(memory_format=torch.channels_last), discriminator.to(memory_format=torch.channels_last)

    def check_loss(self, loss: str, critic: bool) -> None:  # noqa: B027  # an optional hook
        """Raises ValueError for a loss with which these networks cannot learn. The default allows every loss.

        Args: critic: whether the loss depends on differences of logits only.
        """

    def latents(
        self, seed_start: int, count: int, z_dim: int, stream: int = latents.GENERATION, run: int = 0
    ) -> np.ndarray:
        """z_NZ of consecutive seeds, float32: a pure function of its arguments. The default is standard normal."""
        return latents.normal(seed_start, count, z_dim, stream, run)


class _Labelled(nn.Module):
    """A generator that receives the same labels with every batch of latents."""

    def __init__(self, generator: Generator, label_B: Tensor | None) -> None:
        super().__init__()
        self.generator, self._label_B = generator, label_B

    def forward(self, z_BZ: Tensor) -> Tensor:
        image_BCHW: Tensor = self.generator(z_BZ, self._label_B)
        return image_BCHW
