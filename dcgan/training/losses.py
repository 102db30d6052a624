"""What the discriminator and the generator minimise, as functions of logits; and the penalty that some of them need.

Shapes: B images, C channels, H x W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, relu


@dataclass(frozen=True, slots=True)
class Loss:
    """discriminator(real_B, fake_B, smoothing) and generator(fake_B), all logits."""

    discriminator: Callable[[Tensor, Tensor, float], Tensor]
    generator: Callable[[Tensor], Tensor]
    critic: bool = False
    """Logits mean something by their differences alone: there is no target to smooth, and 0 is no border."""
    clipped: bool = False
    """Each weight of the discriminator is held within a bound after every step."""
    penalised: bool = False
    """The discriminator also minimises `gradient_penalty`."""


def _log_discriminator(real_B: Tensor, fake_B: Tensor, smoothing: float) -> Tensor:
    real = binary_cross_entropy_with_logits(real_B, torch.full_like(real_B, 1.0 - smoothing))
    return real + binary_cross_entropy_with_logits(fake_B, torch.zeros_like(fake_B))


def _log_generator(fake_B: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(fake_B, torch.ones_like(fake_B))


def _hinge_discriminator(real_B: Tensor, fake_B: Tensor, smoothing: float) -> Tensor:
    return relu(1.0 - smoothing - real_B).mean() + relu(1.0 + fake_B).mean()


def _mean_generator(fake_B: Tensor) -> Tensor:
    return -fake_B.mean()


def _wasserstein_discriminator(real_B: Tensor, fake_B: Tensor, smoothing: float) -> Tensor:
    return fake_B.mean() - real_B.mean()


def gradient_penalty(discriminator: nn.Module, real_BCHW: Tensor, fake_BCHW: Tensor, label_B: Tensor | None) -> Tensor:
    """How far the logit's slope is from 1 at one point on the line between each real image and a fake one.

    In float32, whatever autocast says: squares of small gradients, differentiated once more, do not fit bfloat16. The
    points come from torch's global random state. Batch norms use the points' own statistics and keep none of them.

    Args:    real_BCHW, fake_BCHW: of equal labels, without gradients.
    Returns: mean over B of (|gradient| - 1)^2, a scalar that can be differentiated by the discriminator's weights.
    Source:  Gulrajani et al. 2017, arXiv:1704.00028, sec. 4.
    """
    share_B111 = torch.rand(len(real_BCHW), 1, 1, 1, device=real_BCHW.device)
    between_BCHW = torch.lerp(fake_BCHW.float(), real_BCHW.float(), share_B111).requires_grad_()
    norms = [module for module in discriminator.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False  # they would enter what is exported
    with torch.autocast(real_BCHW.device.type, enabled=False):  # the slope too: its formulas would be autocast
        logit_B = discriminator(between_BCHW, label_B)
        (slope_BCHW,) = torch.autograd.grad(logit_B.sum(), between_BCHW, create_graph=True)
    for norm in norms:
        norm.track_running_stats = True
    penalty: Tensor = (slope_BCHW.flatten(1).norm(dim=1) - 1.0).square().mean()
    return penalty


LOSSES = {
    # Goodfellow et al. 2014, sec. 3 (non-saturating); one-sided smoothing: Salimans et al. 2016, sec. 3.4
    "log": Loss(_log_discriminator, _log_generator),
    # Lim & Ye 2017; Miyato et al. 2018
    "hinge": Loss(_hinge_discriminator, _mean_generator),
    # Arjovsky et al. 2017, arXiv:1701.07875: the difference of means, weights clipped
    "wgan": Loss(_wasserstein_discriminator, _mean_generator, critic=True, clipped=True),
    # Gulrajani et al. 2017, arXiv:1704.00028
    "wgan-gp": Loss(_wasserstein_discriminator, _mean_generator, critic=True, penalised=True),
}
