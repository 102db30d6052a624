"""`keras`: the widely copied Keras variant of DCGAN for MNIST, 28x28 only.

Source: Keras-GAN's dcgan.py (E. Linder-Noren). Keras's batch norm momentum of 0.8 is 0.2 in torch.
"""

import itertools
from typing import ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from dcgan.configuration import STRICT
from dcgan.families.dcgan import DcganConfig
from dcgan.families.family import PLAIN, Convolutions, Family
from dcgan.families.layers import LayeredDiscriminator, LayeredGenerator, Projection


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class KerasDcganConfig(DcganConfig):
    """`width` has no effect: the original's channels are fixed. It exists because older runs and models have it."""

    family: ClassVar[str] = "keras"
    image_size: Literal[28] = Field(28, description="28")


class Generator(LayeredGenerator):
    """Projection to 7x7x128; twice: upsampling, 3x3 convolution, batch norm, ReLU; a 3x3 convolution; tanh."""

    def __init__(self, config: KerasDcganConfig, _: Convolutions = PLAIN) -> None:
        project = Projection(config.z_dim, config.num_classes, config.base, 128)
        layers: list[nn.Module] = [nn.ReLU()]
        for wide, narrow in ((128, 128), (128, 64)):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(wide, narrow, 3, padding=1)]
            layers += [nn.BatchNorm2d(narrow, momentum=0.2), nn.ReLU()]
        super().__init__(config, project, [*layers, nn.Conv2d(64, config.channels, 3, padding=1)])


class Discriminator(LayeredDiscriminator):
    """Four 3x3 convolutions (32, 64, 128, 256 channels), each with dropout 0.25. The first three have stride 2."""

    def __init__(self, config: KerasDcganConfig, _: Convolutions = PLAIN) -> None:
        widths = [config.channels, 32, 64, 128, 256]
        layers: list[nn.Module] = []
        for i, (narrow, wide) in enumerate(itertools.pairwise(widths)):
            layers += [nn.Conv2d(narrow, wide, 3, 2 if i < 3 else 1, 1)]
            layers += [nn.BatchNorm2d(wide, momentum=0.2)] if i else []
            layers += [nn.LeakyReLU(0.2), nn.Dropout(0.25)]
        super().__init__(config, layers, widths[-1] * 4 * 4, config.num_classes)


class KerasDcgan(Family):
    config = KerasDcganConfig
    generator = Generator
    discriminator = Discriminator
