"""The losses agree with values computed by hand and with their definitions."""

import math

import pytest
import torch
from torch import Tensor, nn

from dcgan.families.family import FamilyConfig
from dcgan.families.registry import build
from dcgan.training.losses import LOSSES, gradient_penalty
from tests.families import configure

LOG, HINGE = LOSSES["log"], LOSSES["hinge"]


def logits(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_the_log_loss_of_logits_of_0() -> None:
    zeros = logits(0.0, 0.0)
    assert LOG.discriminator(zeros, zeros, 0.0).item() == pytest.approx(2 * math.log(2))
    assert LOG.generator(zeros).item() == pytest.approx(math.log(2))


def test_the_log_loss_by_hand() -> None:
    real, fake = logits(2.0, -1.0), logits(-3.0, 0.5)
    by_hand = (softplus(-2) + softplus(1)) / 2 + (softplus(-3) + softplus(0.5)) / 2
    assert LOG.discriminator(real, fake, 0.0).item() == pytest.approx(by_hand)
    assert LOG.generator(fake).item() == pytest.approx((softplus(3) + softplus(-0.5)) / 2)


def test_smoothing_changes_the_target_of_real_images_only() -> None:
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
def test_the_discriminator_separates_the_logits_and_the_generator_raises_fake_ones(name: str, smoothing: float) -> None:
    real, fake = logits(-0.5, 0.3).requires_grad_(), logits(0.5, -0.3).requires_grad_()
    LOSSES[name].discriminator(real, fake, smoothing).backward()
    assert (real.grad < 0).all()
    assert (fake.grad > 0).all()
    judged = logits(-0.5, 0.3).requires_grad_()
    LOSSES[name].generator(judged).backward()
    assert (judged.grad < 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_better_logits_lower_the_discriminators_loss_and_raise_the_generators(name: str) -> None:
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


@pytest.mark.parametrize("name", ["wgan", "wgan-gp"])
def test_the_wasserstein_losses_are_differences_of_means(name: str) -> None:
    real, fake = logits(2.0, -1.0, 5.0), logits(-3.0, 0.5)
    for smoothing in (0.0, 0.1):
        assert LOSSES[name].discriminator(real, fake, smoothing).item() == pytest.approx(-1.25 - 2.0)
        assert LOSSES[name].discriminator(real + 7, fake + 7, smoothing).item() == pytest.approx(-1.25 - 2.0)
    assert LOSSES[name].generator(fake).item() == pytest.approx(1.25)
    assert LOSSES[name].critic


class Linear(nn.Module):
    """A discriminator whose logit is a power of the product of image and weight."""

    def __init__(self, weight_CHW: Tensor, power: int = 1) -> None:
        super().__init__()
        self.weight_CHW, self.power = nn.Parameter(weight_CHW), power

    def forward(self, image_BCHW: Tensor, label_B: Tensor | None) -> Tensor:
        return (image_BCHW * self.weight_CHW).sum((1, 2, 3)) ** self.power


def pictures(seed: int, count: int = 5, channels: int = 2, size: int = 4) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [0.25, 1.0, 3.0])
def test_the_penalty_of_a_linear_discriminator_depends_on_the_norm_of_its_weight(length: float) -> None:
    weight = pictures(0, 1)[0]
    discriminator = Linear(weight * length / weight.norm())
    penalty = gradient_penalty(discriminator, pictures(1), pictures(2), None)
    assert penalty.item() == pytest.approx((length - 1) ** 2, abs=1e-6)
    penalty.backward()  # 2 (|w| - 1) w / |w|
    expected = 2 * (length - 1) * discriminator.weight_CHW / length
    assert torch.allclose(discriminator.weight_CHW.grad, expected, atol=1e-5)


def test_the_penalty_is_computed_between_real_and_fake_images_at_points_that_the_seed_decides() -> None:
    """The gradient of (w.x)^2 at x has the norm 2 |w.x| |w|, which depends on the position of x on the line."""
    discriminator = Linear(pictures(0, 1)[0], power=2)
    real, fake = pictures(1), pictures(2)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(gradient_penalty(discriminator, real, fake, None).item())
    assert found[0] == found[1] != found[2]
    torch.manual_seed(1)
    share = torch.rand(5, 1, 1, 1)
    between = share * real + (1 - share) * fake
    weight = discriminator.weight_CHW.detach()
    slopes = 2 * (between * weight).sum((1, 2, 3)).abs() * weight.norm()
    assert found[0] == pytest.approx(((slopes - 1) ** 2).mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        configure("dcgan", image_size=28, channels=1, width=4, z_dim=6, num_classes=3),
        configure("dcgan", image_size=32, channels=3, width=2, z_dim=6),
        configure("keras", image_size=28, channels=1, z_dim=6),  # has dropout
    ],
    ids=["dcgan with classes", "dcgan", "keras"],
)
def test_the_penalty_can_be_differentiated_by_the_weights_of_each_network(config: FamilyConfig) -> None:
    """The derivative agrees with finite differences of the penalty along its gradient."""
    torch.manual_seed(0)
    _, discriminator = build(config)
    shape = (8, config.channels, config.image_size)
    real, fake = pictures(1, *shape), pictures(2, *shape)
    label_B = torch.arange(8) % config.num_classes if config.num_classes else None
    for number, layer in enumerate(discriminator.layers):
        if isinstance(layer, nn.LeakyReLU):  # its derivative has a jump, and so has the penalty
            discriminator.layers[number] = nn.Softplus()

    def penalty() -> Tensor:
        torch.manual_seed(4)
        return gradient_penalty(discriminator, real, fake, label_B)

    here = penalty()
    here.backward()
    weights = [weight for weight in discriminator.parameters() if weight.grad is not None]
    slope = sum(float(weight.grad.square().sum()) for weight in weights)
    step = 1e-2 * here.item() / slope
    moved = []
    for sign in (1, -2):
        with torch.no_grad():
            for weight in weights:
                weight.add_(weight.grad, alpha=sign * step)
        moved.append(penalty().item())
    assert (moved[0] - moved[1]) / (2 * step) == pytest.approx(slope, rel=0.02)


def test_the_penalty_is_in_float32_under_autocast_and_keeps_no_batch_statistics() -> None:
    torch.manual_seed(0)
    _, discriminator = build(configure("dcgan", image_size=28, channels=1, width=4, z_dim=6))
    real, fake = pictures(1, 8, 1, 28), pictures(2, 8, 1, 28)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    found = []
    for enabled in (False, True):
        torch.manual_seed(4)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(gradient_penalty(discriminator, real, fake, None))
    assert found[1].dtype == torch.float32
    assert torch.equal(found[0], found[1])
    after = discriminator.state_dict()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
    discriminator(real)
    assert not torch.equal(before["layers.3.running_mean"], discriminator.state_dict()["layers.3.running_mean"])
