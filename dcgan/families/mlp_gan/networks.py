"""The networks of `gan`."""

import itertools

from torch import nn

from dcgan.families.layers import LayeredDiscriminator, LayeredGenerator, Maxout, Projection
from dcgan.families.mlp_gan.family import MlpGanConfig
from dcgan.families.networks import PLAIN, Convolutions

UNITS, MAXOUT_UNITS, PIECES = 1200, 240, 5  # as in the original for MNIST


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
