"""The networks of `dcgan`."""

import itertools

from torch import nn

from dcgan.families.dcgan.family import DcganConfig
from dcgan.families.layers import LayeredDiscriminator, LayeredGenerator, Projection
from dcgan.families.networks import PLAIN, Convolutions


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
