"""The interface of a family of networks. The rest of ganmill uses nothing else. This module knows no family.

A family is a folder with two modules: `family.py` with its configuration and its overrides of the defaults here, and
`networks.py` with a generator and a discriminator. Only the second needs torch, so that a command can offer the
settings of all families without it. `registry.py` lists the families.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from dcgan.configuration import STRICT
from dcgan.sampling import latents

if TYPE_CHECKING:
    from dcgan.families.networks import Discriminator, Generator

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


class Family(ABC):
    """One family of networks: its parts, and hooks. Most families keep the hooks' defaults."""

    config: type[FamilyConfig]
    least_images: int = 1
    """The smallest number of images per worker in a step."""

    @property
    def name(self) -> str:
        return self.config.family

    @abstractmethod
    def networks(self) -> tuple[type["Generator"], type["Discriminator"]]:
        """The classes of both networks. They are imported here, because torch takes seconds to import."""

    def check_loss(self, loss: str, critic: bool) -> None:  # noqa: B027  # an optional hook
        """Raises ValueError for a loss with which these networks cannot learn. The default allows every loss.

        Args: critic: whether the loss depends on differences of logits only.
        """

    def latents(
        self, seed_start: int, count: int, z_dim: int, stream: int = latents.GENERATION, run: int = 0
    ) -> np.ndarray:
        """z_NZ of consecutive seeds, float32: a pure function of its arguments. The default is standard normal."""
        return latents.normal(seed_start, count, z_dim, stream, run)
