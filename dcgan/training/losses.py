"""The losses of both networks as functions of logits, and the gradient penalty.

Shapes: B images, C channels, H x W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, relu


@dataclass(frozen=True, slots=True)
class Loss:
    """Two functions of logits, discriminator(real_B, fake_B, smoothing) and generator(fake_B), and their properties."""

    discriminator: Callable[[Tensor, Tensor, float], Tensor]
    generator: Callable[[Tensor], Tensor]
    critic: bool = False
    """The loss depends on differences of logits only: it has no target to smooth, and 0 does not separate the sets."""
    clipped: bool = False
    """Each weight of the discriminator is clipped after every step."""
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
    """The deviation of the gradient's norm from 1, at a random point between each real image and a fake one.

    It is computed in float32 even under autocast: the second derivative of squares of small gradients exceeds the
    precision of bfloat16. torch's global random state decides the points. Batch norms use the statistics of the points
    and do not add them to their running statistics.

    Args:    real_BCHW, fake_BCHW: images with the same labels, without gradients.
    Returns: mean over B of (|gradient| - 1)^2, a scalar that is differentiable by the discriminator's weights.
    Source:  Gulrajani et al. 2017, arXiv:1704.00028, sec. 4.
    """
    share_B111 = torch.rand(len(real_BCHW), 1, 1, 1, device=real_BCHW.device)
    between_BCHW = torch.lerp(fake_BCHW.float(), real_BCHW.float(), share_B111).requires_grad_()
    norms = [module for module in discriminator.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False  # the running statistics are exported
    with torch.autocast(real_BCHW.device.type, enabled=False):  # the gradient too: its formulas would be autocast
        logit_B = discriminator(between_BCHW, label_B)
        (gradient_BCHW,) = torch.autograd.grad(logit_B.sum(), between_BCHW, create_graph=True)
    for norm in norms:
        norm.track_running_stats = True
    penalty: Tensor = (gradient_BCHW.flatten(1).norm(dim=1) - 1.0).square().mean()
    return penalty


LOSSES = {
    # Goodfellow et al. 2014, sec. 3 (non-saturating); Salimans et al. 2016, sec. 3.4 (one-sided smoothing)
    "log": Loss(_log_discriminator, _log_generator),
    # Lim & Ye 2017; Miyato et al. 2018
    "hinge": Loss(_hinge_discriminator, _mean_generator),
    # Arjovsky et al. 2017, arXiv:1701.07875
    "wgan": Loss(_wasserstein_discriminator, _mean_generator, critic=True, clipped=True),
    # Gulrajani et al. 2017, arXiv:1704.00028
    "wgan-gp": Loss(_wasserstein_discriminator, _mean_generator, critic=True, penalised=True),
}
