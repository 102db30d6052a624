"""The networks of `cdcgan`."""

import itertools

from torch import nn

from dcgan.families.conditional_dcgan.family import ConditionalDcganConfig
from dcgan.families.layers import JoinClass, LayeredDiscriminator, LayeredGenerator, Projection
from dcgan.families.networks import PLAIN, Convolutions


class Generator(LayeredGenerator):
    """DCGAN's generator with one more fully connected layer. The class is joined to the input of every layer."""

    def __init__(self, config: ConditionalDcganConfig, convolutions: Convolutions = PLAIN) -> None:
        widths, classes, units = config.widths, config.num_classes, config.units
        project = Projection(config.z_dim, classes, 1, units)
        layers: list[nn.Module] = [nn.BatchNorm2d(units), nn.ReLU()]
        layers += [Projection(units, classes, config.base, widths[0]), nn.BatchNorm2d(widths[0]), nn.ReLU()]
        for wide, narrow in itertools.pairwise(widths):
            layers += _join(classes)
            layers += [convolutions.transposed(wide + classes, narrow, 4, 2, 1, bias=False)]
            layers += [nn.BatchNorm2d(narrow), nn.ReLU()]
        layers += [*_join(classes), convolutions.transposed(widths[-1] + classes, config.channels, 4, 2, 1)]
        super().__init__(config, project, layers)


class Discriminator(LayeredDiscriminator):
    """DCGAN's discriminator, then one fully connected layer. The class is joined to the input of every layer."""

    def __init__(self, config: ConditionalDcganConfig, convolutions: Convolutions = PLAIN) -> None:
        widths, classes, units = [config.channels, *reversed(config.widths)], config.num_classes, config.units
        layers: list[nn.Module] = []
        for i, (narrow, wide) in enumerate(itertools.pairwise(widths)):
            layers += [*_join(classes), convolutions.conv(narrow + classes, wide, 4, 2, 1, bias=i == 0)]
            layers += [nn.BatchNorm2d(wide)] if i else []
            layers += [nn.LeakyReLU(0.2)]
        layers += [Projection(widths[-1] * config.base**2, classes, 1, units), nn.BatchNorm2d(units)]
        layers += [nn.LeakyReLU(0.2), *_join(classes)]
        super().__init__(config, layers, units + classes, num_classes=0)


def _join(num_classes: int) -> list[nn.Module]:
    return [JoinClass(num_classes)] if num_classes else []
