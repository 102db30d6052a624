"""The training method's settings, and which networks they fit."""

from dataclasses import dataclass

from dcgan.families.networks import NetworkConfig
from dcgan.training import augmentation
from dcgan.training.losses import LOSSES


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodConfig:
    """The training method's own settings. Raises ValueError naming the field, its value and what is allowed."""

    loss: str = "log"
    """`log`: non-saturating log loss. `hinge`. `wgan`: Wasserstein, clipped. `wgan-gp`: Wasserstein, penalised."""
    label_smoothing: float = 0.0
    """How far the real images' target is below 1 (one-sided). 0 for Wasserstein losses, which have no target."""
    clip: float = 0.01
    """`wgan`: the bound of the discriminator's weights."""
    gradient_penalty: float = 10.0
    """`wgan-gp`: the weight of the penalty."""
    augment: str = ""
    """What is done to every image before the discriminator sees it, joined by commas: see `augment.POLICIES`."""
    generator_lr: float = 2e-4
    """Adam's rate for the generator."""
    discriminator_lr: float = 2e-4
    """Adam's rate for the discriminator."""
    beta1: float = 0.5
    """Adam's first moment decay; the second is 0.999."""
    ema: float = 0.999
    """Decay per step of the generator's exponential moving average, the weights that are exported."""
    sync_batch_norm: bool = False
    """Batch statistics over all ranks instead of each rank's own. On GPUs only."""
    compile: bool = False
    """Run both networks through torch.compile."""

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}; it must be one of {', '.join(LOSSES)}")
        for name, low, high in (("label_smoothing", 0.0, 0.5), ("beta1", 0.0, 0.999), ("ema", 0.0, 0.99999)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {low} to {high}")
        for name, most in (("generator_lr", 1), ("discriminator_lr", 1), ("clip", 1), ("gradient_penalty", 1000)):
            if not 0.0 < getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and at most {most}")
        if self.label_smoothing and LOSSES[self.loss].critic:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}; it must be 0 with loss {self.loss}, which has no target"
            )
        if self.compile and LOSSES[self.loss].penalised:
            raise ValueError(f"compile is set with loss {self.loss}; torch.compile has no gradients of gradients")
        if self.sync_batch_norm and LOSSES[self.loss].penalised:
            raise ValueError(
                f"sync_batch_norm is set with loss {self.loss}, whose penalty it would change: the points between real "
                "and fake images are normalised by each worker's own statistics; leave it out, or take another loss"
            )
        augmentation.check(self.augment)


def check_fit(network: NetworkConfig, method: MethodConfig) -> None:
    """Raises ValueError for networks that cannot learn by that method.

    The last thing before cdcgan's logits is a batch norm, which real and fake images pass in batches of their own: it
    takes away the difference of their means, which is all that a critic goes by.
    """
    if network.network == "cdcgan" and LOSSES[method.loss].critic:
        raise ValueError(
            f"loss is {method.loss}; with network cdcgan, whose last batch norm hides the difference of means that it "
            "goes by, it must be log or hinge; or take network dcgan"
        )
