"""`keras`: the widely copied Keras variant of DCGAN for MNIST, 28x28 only.

Source: Keras-GAN's dcgan.py (E. Linder-Noren). Keras's batch norm momentum of 0.8 is 0.2 in torch.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from dcgan.configuration import STRICT
from dcgan.families.dcgan.family import DcganConfig
from dcgan.families.family import Family

if TYPE_CHECKING:
    from dcgan.families.keras_dcgan.networks import Discriminator, Generator


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class KerasDcganConfig(DcganConfig):
    """`width` has no effect: the original's channels are fixed. It exists because older runs and models have it."""

    family: ClassVar[str] = "keras"
    image_size: Literal[28] = Field(28, description="28")


class KerasDcgan(Family):
    config = KerasDcganConfig

    def networks(self) -> tuple[type["Generator"], type["Discriminator"]]:
        from dcgan.families.keras_dcgan.networks import Discriminator, Generator

        return Generator, Discriminator
