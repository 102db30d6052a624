"""`dcgan`: the networks of Radford et al. 2015, arXiv:1511.06434, sec. 3, at any image size.

The generator projects the latent to the smallest map, then doubles its extent with fractionally-strided 4x4
convolutions. Every layer has batch norm and ReLU, except the output, which has tanh. The discriminator mirrors it with
strided 4x4 convolutions and LeakyReLU 0.2; its first layer has no batch norm. With classes it is a projection
discriminator.
"""

import itertools
import math
from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from dcgan.configuration import STRICT
from dcgan.families.family import PLAIN, Convolutions, Family, FamilyConfig
from dcgan.families.layers import LayeredDiscriminator, LayeredGenerator, Projection


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


class Generator(LayeredGenerator):
    def __init__(self, config: DcganConfig, convolutions: Convolutions = PLAIN) -> None:
        widths = config.widths
        project = Projection(config.z_dim, config.num_classes, config.base, widths[0])
        layers: list[nn.Module] = [nn.BatchNorm2d(widths[0]), nn.ReLU()]
        for wide, narrow in itertools.pairwise(widths):
            layers += [convolutions.transposed(wide, narrow, 4, 2, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()]
        layers += [convolutions.transposed(widths[-1], config.channels, 4, 2, 1)]
        super().__init__(config, project, layers)


class Discriminator(LayeredDiscriminator):
    def __init__(self, config: DcganConfig, convolutions: Convolutions = PLAIN) -> None:
        widths = [config.channels, *reversed(config.widths)]
        layers: list[nn.Module] = []
        for i, (narrow, wide) in enumerate(itertools.pairwise(widths)):
            layers += [convolutions.conv(narrow, wide, 4, 2, 1, bias=i == 0)]
            layers += [nn.BatchNorm2d(wide)] if i else []
            layers += [nn.LeakyReLU(0.2)]
        super().__init__(config, layers, widths[-1] * config.base**2, config.num_classes)


class Dcgan(Family):
    config = DcganConfig
    generator = Generator
    discriminator = Discriminator
