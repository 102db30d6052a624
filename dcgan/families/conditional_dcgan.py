"""`cdcgan`: the authors' conditional DCGAN for MNIST, with fully connected layers and the class at every layer.

Source: Radford et al. 2015, arXiv:1511.06434, and their code's mnist/train_cond_dcgan.py. There the kernels are 5x5,
the units are 1,024, and pixels range from 0 to 1.
"""

import itertools
from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import nn

from dcgan.configuration import STRICT
from dcgan.families.dcgan import DcganConfig
from dcgan.families.family import PLAIN, Convolutions, Family
from dcgan.families.layers import JoinClass, LayeredDiscriminator, LayeredGenerator, Projection


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class ConditionalDcganConfig(DcganConfig):
    family: ClassVar[str] = "cdcgan"

    @property
    def units(self) -> int:
        """Units of the fully connected layers: at width 64 half of the paper's 1,024, as good and a third faster."""
        return 8 * self.width


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


class ConditionalDcgan(Family):
    config = ConditionalDcganConfig
    generator = Generator
    discriminator = Discriminator
    least_images = 2  # a batch norm of 1x1 maps has one value per image, and needs two

    def check_loss(self, loss: str, critic: bool) -> None:
        """Refuses critics.

        The last layer before the head is a batch norm, and real and fake images pass through it in separate batches. It
        removes the difference of their means, which is all that a critic uses.
        """
        if critic:
            raise ValueError(
                f"loss is {loss}; with network {self.name} it must be log or hinge, because the last batch norm "
                f"removes the difference of means that {loss} uses; or use network {DcganConfig.family}"
            )


def _join(num_classes: int) -> list[nn.Module]:
    return [JoinClass(num_classes)] if num_classes else []
