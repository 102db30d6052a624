"""The settings of the training method, and the check that they fit the networks."""

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from dcgan.configuration import STRICT
from dcgan.families import registry
from dcgan.families.family import FamilyConfig

# The policies of `augmentation` and, below, the names of `losses`: those modules need torch, which takes seconds.
POLICIES = ("color", "translation", "cutout")


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class MethodConfig:
    """The settings of the training method.

    Raises: pydantic.ValidationError, a ValueError, for a value that is not allowed. `configuration.reason` gives its
            text in one line.
    """

    loss: Literal["log", "hinge", "wgan", "wgan-gp"] = Field(
        "log", description="log: non-saturating; hinge; wgan: Wasserstein, clipped; wgan-gp: Wasserstein, penalised"
    )
    label_smoothing: float = Field(
        0.0, ge=0, le=0.5, description="log, hinge: how far the target of real images is below 1 (one-sided)"
    )
    """Must be 0 for Wasserstein losses, which have no target."""
    clip: float = Field(0.01, gt=0, le=1, description="wgan: the bound of the discriminator's weights")
    gradient_penalty: float = Field(10.0, gt=0, le=1000, description="wgan-gp: the weight of the penalty")
    augment: str = Field(
        "",
        description="augmentations of every image that the discriminator sees: any of "
        f"{','.join(POLICIES)}, joined by commas; '': none",
    )
    generator_lr: float = Field(2e-4, gt=0, le=1, description="Adam's learning rate for the generator")
    discriminator_lr: float = Field(2e-4, gt=0, le=1, description="Adam's learning rate for the discriminator")
    beta1: float = Field(0.5, ge=0, le=0.999, description="Adam's first moment decay; the second is 0.999")
    ema: float = Field(
        0.999, ge=0, le=0.99999, description="decay per step of the generator's moving average, which is exported"
    )
    sync_batch_norm: bool = Field(False, description="GPUs only: batch statistics over all workers, not per worker")
    compile: bool = Field(False, description="run both networks through torch.compile (a minute at each start)")

    @model_validator(mode="after")
    def _check(self) -> Self:
        from dcgan.training.losses import LOSSES

        if self.label_smoothing and LOSSES[self.loss].critic:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}; it must be 0 with loss {self.loss}, which has no target"
            )
        if self.compile and LOSSES[self.loss].penalised:
            raise ValueError(f"compile is set with loss {self.loss}; torch.compile does not support second derivatives")
        if self.sync_batch_norm and LOSSES[self.loss].penalised:
            raise ValueError(
                f"sync_batch_norm is set with loss {self.loss}, whose penalty it would change: the penalty normalises "
                "its points by each worker's own batch statistics; leave sync_batch_norm out, or use another loss"
            )
        check_policy(self.augment)
        return self


def check_fit(network: FamilyConfig, method: MethodConfig) -> None:
    """Raises ValueError if the networks cannot learn with the method."""
    from dcgan.training.losses import LOSSES

    registry.of(network).check_loss(method.loss, LOSSES[method.loss].critic)


def check_policy(policy: str) -> None:
    """Raises ValueError unless `policy` is a comma-separated list of different POLICIES; `""` is the empty list."""
    names = policy.split(",") if policy else []
    if not {*names} <= {*POLICIES} or len({*names}) < len(names):
        raise ValueError(f"augment is {policy!r}; it must be some of {','.join(POLICIES)}, joined by commas")
