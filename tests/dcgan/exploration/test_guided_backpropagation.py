"""Guided backpropagation by hand, and the receptive field of a unit."""

import numpy as np
import pytest
import torch
from torch import nn

from dcgan.exploration.discriminator_features import untrained
from dcgan.exploration.guided_backpropagation import UnitSaliency
from dcgan.families.family import FamilyConfig
from dcgan.families.networks import Discriminator
from tests.families import configure


def tiny(first: list[float], second: list[float]) -> Discriminator:
    """A network of 1x1 convolutions: one pixel, two hidden units, one unit."""
    discriminator = untrained(configure("dcgan", image_size=28, channels=1, width=1), 0)
    layers = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False)
    with torch.no_grad():
        layers[0].weight.copy_(torch.tensor(first).view(2, 1, 1, 1))
        layers[1].weight.copy_(torch.tensor(second).view(1, 2, 1, 1))
    discriminator.layers = nn.Sequential(layers[0], nn.LeakyReLU(0.2), layers[1], nn.LeakyReLU(0.2))
    return discriminator


@pytest.mark.parametrize(
    ("first", "second", "response", "gradient"),
    [
        ([2.0, 1.0], [3.0, 1.0], 7.0, 7.0),  # all active and positive: the plain gradient, 2*3 + 1*1
        ([2.0, -1.0], [3.0, 1.0], 5.8, 6.0),  # h = 2, -1: an inactive unit passes no gradient (plain: 5.8)
        ([2.0, 1.0], [3.0, -1.0], 5.0, 6.0),  # h = 2, 1: the negative gradient is left out (plain: 5)
        ([-2.0, -1.0], [-3.0, -1.0], 1.4, 0.0),  # no unit is active (plain: 1.4)
    ],
)
def test_by_hand(first: list[float], second: list[float], response: float, gradient: float) -> None:
    image_1HWC = np.full((1, 1, 1, 1), 255, np.uint8)  # 1.0 as the network's input
    units = UnitSaliency(tiny(first, second))
    np.testing.assert_allclose(units.responses(image_1HWC), [[response]], rtol=1e-6)
    np.testing.assert_allclose(units.saliency(image_1HWC, 0).gradient_NHWC, [[[[gradient]]]], rtol=1e-6)


def test_the_gradient_starts_at_the_position_of_the_strongest_response() -> None:
    image_HWC = np.zeros((4, 5, 1), np.uint8)
    image_HWC[2, 3] = 255
    saliency = UnitSaliency(tiny([2.0, 1.0], [3.0, 1.0])).saliency(image_HWC[None], 0)
    assert (saliency.top_N[0], saliency.left_N[0]) == (2, 3)
    assert np.argwhere(saliency.gradient_NHWC[0]).tolist() == [[2, 3, 0]]


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (configure("dcgan", image_size=28, channels=1, width=8), 10),
        (configure("cdcgan", image_size=28, channels=1, width=8, num_classes=3), 10),
        (configure("dcgan", image_size=64, channels=3, width=4), 46),
        (configure("keras", image_size=28, channels=1), 31),
    ],
)
def test_the_gradient_of_a_unit_covers_its_receptive_field(config: FamilyConfig, field: int) -> None:
    size = config.image_size
    images_NHWC = np.random.default_rng(0).integers(0, 256, (40, size, size, config.channels), np.uint8)
    units = UnitSaliency(untrained(config, 0))
    assert units.receptive_field == field
    unit = int(units.responses(images_NHWC).min(0).argmax())
    saliency = units.saliency(images_NHWC, unit)
    reached = np.zeros((field, field), bool)
    for gradient_HWC, top, left in zip(saliency.gradient_NHWC, saliency.top_N, saliency.left_N, strict=True):
        inside = np.argwhere(np.abs(gradient_HWC).sum(2)) - [top, left]
        assert len(inside)
        assert inside.min() >= 0
        assert inside.max() < field
        reached[tuple(inside.T)] = True
    if field < size // 2:  # a larger field is partly in the padding
        assert reached.all()
