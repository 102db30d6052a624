"""`dcgan`: the networks of Radford et al. 2015, arXiv:1511.06434, sec. 3, at any image size.

The generator projects the latent to the smallest map, then doubles its extent with fractionally-strided 4x4
convolutions. Every layer has batch norm and ReLU, except the output, which has tanh. The discriminator mirrors it with
strided 4x4 convolutions and LeakyReLU 0.2; its first layer has no batch norm. With classes it is a projection
discriminator.
"""

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from dcgan.configuration import STRICT
from dcgan.families.family import Family, FamilyConfig

if TYPE_CHECKING:
    from dcgan.families.dcgan.networks import Discriminator, Generator


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class DcganConfig(FamilyConfig):
    family: ClassVar[str] = "dcgan"
    width: int = Field(64, ge=1, le=512, description="channels of the outermost hidden layers")
    """Channels of the generator's last and the discriminator's first hidden layer."""

    @property
    def base(self) -> int:
        """Extent of the smallest map: 7 for image sizes 7 * 2^n, else 4."""
        return 7 if self.image_size % 7 == 0 else 4

    @property
    def widths(self) -> list[int]:
        """Channels at each extent from `base` to half the image: 1024, 512, 256, 128 at 64x64 and width 128."""
        doublings = int(math.log2(self.image_size // self.base))
        return [self.width * 2**i for i in reversed(range(doublings))]


class Dcgan(Family):
    config = DcganConfig

    def networks(self) -> tuple[type["Generator"], type["Discriminator"]]:
        from dcgan.families.dcgan.networks import Discriminator, Generator

        return Generator, Discriminator
