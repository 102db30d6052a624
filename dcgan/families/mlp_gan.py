"""`gan`: the fully connected networks of the first GAN.

A vector is a 1x1 map, and a fully connected layer is a 1x1 convolution.

Source: Goodfellow et al. 2014, arXiv:1406.2661, and their code's mnist.yaml. There the output is a sigmoid, here tanh.
"""

import itertools
from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import nn

from dcgan.configuration import STRICT
from dcgan.families.dcgan import DcganConfig
from dcgan.families.family import PLAIN, Convolutions, Family
from dcgan.families.layers import LayeredDiscriminator, LayeredGenerator, Maxout, Projection

UNITS, MAXOUT_UNITS, PIECES = 1200, 240, 5  # as in the original for MNIST


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class MlpGanConfig(DcganConfig):
    """`width` has no effect: the original's units are fixed. It exists because older runs and models have it."""

    family: ClassVar[str] = "gan"


class Generator(LayeredGenerator):
    """Two layers of 1,200 rectified units, then the pixels."""

    def __init__(self, config: MlpGanConfig, _: Convolutions = PLAIN) -> None:
        project = Projection(config.z_dim, config.num_classes, 1, UNITS)
        layers: list[nn.Module] = [nn.ReLU(), nn.Conv2d(UNITS, UNITS, 1), nn.ReLU()]
        layers += [nn.Conv2d(UNITS, config.channels * config.image_size**2, 1), nn.PixelShuffle(config.image_size)]
        super().__init__(config, project, layers)


class Discriminator(LayeredDiscriminator):
    """Two layers of 240 maxout units with 5 pieces each. Dropout 0.5 follows both."""

    def __init__(self, config: MlpGanConfig, _: Convolutions = PLAIN) -> None:
        widths = [config.channels * config.image_size**2, MAXOUT_UNITS, MAXOUT_UNITS]
        layers: list[nn.Module] = [nn.PixelUnshuffle(config.image_size)]
        for narrow, wide in itertools.pairwise(widths):
            layers += [nn.Conv2d(narrow, wide * PIECES, 1), Maxout(PIECES), nn.Dropout(0.5)]
        super().__init__(config, layers, MAXOUT_UNITS, config.num_classes)

    def convolution_blocks(self) -> list[nn.Sequential]:
        return []  # its 1x1 convolutions are fully connected layers


class MlpGan(Family):
    config = MlpGanConfig
    generator = Generator
    discriminator = Discriminator
