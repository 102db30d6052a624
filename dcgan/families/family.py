"""The interface of a family of networks: all that the rest of ganmill asks of one. This module knows no family.

A family is one module: a configuration, a generator, a discriminator, and whatever it does differently from the
defaults here. `registry.py` lists the families.

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
    """The settings of every family: they determine both networks' shapes, and every model stores them.

    Raises: pydantic.ValidationError, a ValueError, for a value that is not allowed; `configuration.reason` puts it in a
            line.
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
    """Classes that both networks are conditioned on; 0 for none. The dataset decides it, not a flag."""


class Convolutions(NamedTuple):
    """The 4x4 convolutions of stride 2 and padding 1 that a network is built of.

    torch's own, or those that a CPU trains faster (`cpu_kernels`).
    """

    conv: type[nn.Conv2d]
    transposed: type[nn.ConvTranspose2d]


PLAIN = Convolutions(nn.Conv2d, nn.ConvTranspose2d)


class InferenceGenerator(nn.Module, ABC):
    """A generator as it runs outside training: eval mode, folded, with the sampler's dtype and device."""

    @abstractmethod
    def forward(self, z_BZ: Tensor, label_B: Tensor | None) -> Tensor:
        """The values before the final activation, [B, C', H', W']; `place` says where each of them belongs."""

    def activate(self, values: Tensor) -> Tensor:
        """The final activation, in float32 and in place. The default is tanh."""
        return values.tanh_()

    def place(self, values_BHWC: Tensor) -> Tensor:
        """The image, [B, H, W, C], from the values of a forward pass. The default: they are the image."""
        return values_BHWC


class InferenceDiscriminator(nn.Module, ABC):
    """A discriminator as it runs outside training: eval mode, folded, with the sampler's dtype and device."""

    @abstractmethod
    def forward(self, image_BCHW: Tensor, label_B: Tensor | None) -> Tensor:
        """logit_B, float32."""


class Generator(nn.Module, ABC):
    """Latents (and labels) to images."""

    config: Any  # of its own family: a family's networks know their own fields

    def __init__(self, config: FamilyConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, z_BZ: Tensor, label_B: Tensor | None = None) -> Tensor:
        """image_BCHW in [-1, 1]."""

    @abstractmethod
    def inference(self) -> InferenceGenerator:
        """This generator's inference form; weights are copied, never shared."""

    def settle(self, latents: Iterable[Tensor], label_B: Tensor | None) -> None:
        """Make a generator of averaged weights ready for export.

        The default takes its batch statistics anew, as the plain mean over these batches: the running statistics of
        training belong to the weights of each step.
        """
        update_bn(latents, _Labelled(self, label_B))


class Discriminator(nn.Module, ABC):
    """Images (and labels) to logits: above 0 for an image that looks real."""

    config: Any
    layers: nn.Module  # up to the features; their weights name the features of an exploration

    def __init__(self, config: FamilyConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, image_BCHW: Tensor, label_B: Tensor | None = None) -> Tensor:
        """logit_B."""

    @abstractmethod
    def inference(self) -> InferenceDiscriminator:
        """This discriminator's inference form; weights are copied, never shared."""

    def convolution_blocks(self) -> list[nn.Sequential]:
        """Its convolutions, each with the norm and the rectifier behind it, to study its features. Default: none.

        Where a class is joined to a block's input, the block runs without a label.
        """
        return []


class Family(ABC):
    """One family of networks: its parts, and the hooks whose defaults most families take."""

    config: type[FamilyConfig]
    generator: type[Generator]
    discriminator: type[Discriminator]
    least_images: int = 1
    """The fewest images of a step on each worker."""

    @property
    def name(self) -> str:
        return self.config.family

    def build(self, config: FamilyConfig, convolutions: Convolutions = PLAIN) -> tuple[Generator, Discriminator]:
        """Both networks, channels_last, initialised from torch's global random state."""
        generator = self.generator(config, convolutions)  # type: ignore[call-arg]  # a family's own constructor
        discriminator = self.discriminator(config, convolutions)  # type: ignore[call-arg]
        return generator.to(memory_format=torch.channels_last), discriminator.to(memory_format=torch.channels_last)

    def check_loss(self, loss: str, critic: bool) -> None:  # noqa: B027  # a hook that most families leave as it is
        """Raises ValueError for a loss by which these networks cannot learn. The default allows all.

        Args: critic: only differences of logits mean something to this loss.
        """

    def latents(
        self, seed_start: int, count: int, z_dim: int, stream: int = latents.GENERATION, run: int = 0
    ) -> np.ndarray:
        """z_NZ of consecutive seeds, float32: a pure function of its arguments. The default is standard normal."""
        return latents.normal(seed_start, count, z_dim, stream, run)


class _Labelled(nn.Module):
    """A generator that gets the same labels with every batch of latents."""

    def __init__(self, generator: Generator, label_B: Tensor | None) -> None:
        super().__init__()
        self.generator, self._label_B = generator, label_B

    def forward(self, z_BZ: Tensor) -> Tensor:
        image_BCHW: Tensor = self.generator(z_BZ, self._label_B)
        return image_BCHW
