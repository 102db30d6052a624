"""The networks of `keras`."""

import itertools

from torch import nn

from dcgan.families.keras_dcgan.family import KerasDcganConfig
from dcgan.families.layers import LayeredDiscriminator, LayeredGenerator, Projection
from dcgan.families.networks import PLAIN, Convolutions


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
