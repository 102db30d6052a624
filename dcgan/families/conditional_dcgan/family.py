"""`cdcgan`: the authors' conditional DCGAN for MNIST, with fully connected layers and the class at every layer.

Source: Radford et al. 2015, arXiv:1511.06434, and their code's mnist/train_cond_dcgan.py. There the kernels are 5x5,
the units are 1,024, and pixels range from 0 to 1.
"""

from typing import TYPE_CHECKING, ClassVar

from pydantic.dataclasses import dataclass

from dcgan.configuration import STRICT
from dcgan.families.dcgan.family import DcganConfig
from dcgan.families.family import Family

if TYPE_CHECKING:
    from dcgan.families.conditional_dcgan.networks import Discriminator, Generator


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class ConditionalDcganConfig(DcganConfig):
    family: ClassVar[str] = "cdcgan"

    @property
    def units(self) -> int:
        """Units of the fully connected layers: at width 64 half of the paper's 1,024, as good and a third faster."""
        return 8 * self.width


class ConditionalDcgan(Family):
    config = ConditionalDcganConfig
    least_images = 2  # a batch norm of 1x1 maps has one value per image, and needs two

    def networks(self) -> tuple[type["Generator"], type["Discriminator"]]:
        from dcgan.families.conditional_dcgan.networks import Discriminator, Generator

        return Generator, Discriminator

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
