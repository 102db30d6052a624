"""What the discriminator and the generator minimise, as functions of logits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, relu


@dataclass(frozen=True, slots=True)
class Loss:
    """discriminator(real_B, fake_B, smoothing) and generator(fake_B), all logits."""

    discriminator: Callable[[Tensor, Tensor, float], Tensor]
    generator: Callable[[Tensor], Tensor]


def _log_discriminator(real_B: Tensor, fake_B: Tensor, smoothing: float) -> Tensor:
    real = binary_cross_entropy_with_logits(real_B, torch.full_like(real_B, 1.0 - smoothing))
    return real + binary_cross_entropy_with_logits(fake_B, torch.zeros_like(fake_B))


def _log_generator(fake_B: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(fake_B, torch.ones_like(fake_B))


def _hinge_discriminator(real_B: Tensor, fake_B: Tensor, smoothing: float) -> Tensor:
    return relu(1.0 - smoothing - real_B).mean() + relu(1.0 + fake_B).mean()


def _hinge_generator(fake_B: Tensor) -> Tensor:
    return -fake_B.mean()


LOSSES = {
    # Goodfellow et al. 2014, sec. 3 (non-saturating); one-sided smoothing: Salimans et al. 2016, sec. 3.4
    "log": Loss(_log_discriminator, _log_generator),
    # Lim & Ye 2017; Miyato et al. 2018
    "hinge": Loss(_hinge_discriminator, _hinge_generator),
}
