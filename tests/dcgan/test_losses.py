"""The losses, against values worked out by hand and against their definitions."""

import math

import pytest
import torch
from torch import Tensor

from dcgan.losses import LOSSES

LOG, HINGE = LOSSES["log"], LOSSES["hinge"]


def logits(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_the_log_loss_of_undecided_logits_is_two_coins() -> None:
    zeros = logits(0.0, 0.0)
    assert LOG.discriminator(zeros, zeros, 0.0).item() == pytest.approx(2 * math.log(2))
    assert LOG.generator(zeros).item() == pytest.approx(math.log(2))


def test_the_log_loss_by_hand() -> None:
    real, fake = logits(2.0, -1.0), logits(-3.0, 0.5)
    by_hand = (softplus(-2) + softplus(1)) / 2 + (softplus(-3) + softplus(0.5)) / 2
    assert LOG.discriminator(real, fake, 0.0).item() == pytest.approx(by_hand)
    assert LOG.generator(fake).item() == pytest.approx((softplus(3) + softplus(-0.5)) / 2)


def test_smoothing_is_on_the_real_side_alone() -> None:
    real, fake = logits(2.0, -1.0), logits(-3.0, 0.5)
    on_real = (0.9 * softplus(-2) + 0.1 * softplus(2) + 0.9 * softplus(1) + 0.1 * softplus(-1)) / 2
    on_fake = (softplus(-3) + softplus(0.5)) / 2
    assert LOG.discriminator(real, fake, 0.1).item() == pytest.approx(on_real + on_fake)


def test_the_hinge_loss_by_hand() -> None:
    real, fake = logits(2.0, 0.25, -1.0), logits(-3.0, -0.5, 1.0)
    assert HINGE.discriminator(real, fake, 0.0).item() == pytest.approx((0 + 0.75 + 2) / 3 + (0 + 0.5 + 2) / 3)
    assert HINGE.discriminator(real, fake, 0.25).item() == pytest.approx((0 + 0.5 + 1.75) / 3 + (0 + 0.5 + 2) / 3)
    assert HINGE.generator(fake).item() == pytest.approx(2.5 / 3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_push_real_logits_up_and_fake_ones_down_and_the_generator_up(name: str, smoothing: float) -> None:
    real, fake = logits(-0.5, 0.3).requires_grad_(), logits(0.5, -0.3).requires_grad_()
    LOSSES[name].discriminator(real, fake, smoothing).backward()
    assert (real.grad < 0).all()
    assert (fake.grad > 0).all()
    judged = logits(-0.5, 0.3).requires_grad_()
    LOSSES[name].generator(judged).backward()
    assert (judged.grad < 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_discriminator_that_is_right_loses_less_and_its_generator_more(name: str) -> None:
    losses = [LOSSES[name].discriminator(logits(x), logits(-x), 0.0).item() for x in (-2.0, -0.5, 0.0, 0.5)]
    assert losses == sorted(losses, reverse=True)
    losses = [LOSSES[name].generator(logits(-x)).item() for x in (-2.0, -0.5, 0.0, 0.5, 2.0)]
    assert losses == sorted(losses)


def test_the_generators_log_loss_does_not_saturate() -> None:
    fake = logits(-30.0).requires_grad_()
    LOG.generator(fake).backward()
    assert fake.grad.item() == pytest.approx(-1.0)


@pytest.mark.parametrize("name", LOSSES)
def test_huge_logits_give_finite_losses(name: str) -> None:
    for x in (-1e4, 1e4):
        assert math.isfinite(LOSSES[name].discriminator(logits(x), logits(-x), 0.1).item())
        assert math.isfinite(LOSSES[name].generator(logits(x)).item())
