"""`gan`: the fully connected networks of the first GAN.

A vector is a 1x1 map, and a fully connected layer is a 1x1 convolution.

Source: Goodfellow et al. 2014, arXiv:1406.2661, and their code's mnist.yaml. There the output is a sigmoid, here tanh.
"""

from typing import TYPE_CHECKING, ClassVar

from pydantic.dataclasses import dataclass

from dcgan.configuration import STRICT
from dcgan.families.dcgan.family import DcganConfig
from dcgan.families.family import Family

if TYPE_CHECKING:
    from dcgan.families.mlp_gan.networks import Discriminator, Generator


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class MlpGanConfig(DcganConfig):
    """`width` has no effect: the original's units are fixed. It exists because older runs and models have it."""

    family: ClassVar[str] = "gan"


class MlpGan(Family):
    config = MlpGanConfig

    def networks(self) -> tuple[type["Generator"], type["Discriminator"]]:
        from dcgan.families.mlp_gan.networks import Discriminator, Generator

        return Generator, Discriminator
