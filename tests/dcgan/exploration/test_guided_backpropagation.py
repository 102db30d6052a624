"""Guided backpropagation by hand, and the square of pixels that a unit sees."""

import numpy as np
import pytest
import torch
from torch import nn

from dcgan.exploration.discriminator_features import untrained
from dcgan.exploration.guided_backpropagation import Gaze
from dcgan.families.family import Discriminator, FamilyConfig
from tests.families import configure


def tiny(first: list[float], second: list[float]) -> Discriminator:
    """One pixel -> two hidden units -> one unit, all of it 1x1 convolutions."""
    discriminator = untrained(configure("dcgan", image_size=28, channels=1, width=1), 0)
    layers = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False)
    with torch.no_grad():
        layers[0].weight.copy_(torch.tensor(first).view(2, 1, 1, 1))
        layers[1].weight.copy_(torch.tensor(second).view(1, 2, 1, 1))
    discriminator.layers = nn.Sequential(layers[0], nn.LeakyReLU(0.2), layers[1], nn.LeakyReLU(0.2))
    return discriminator


@pytest.mark.parametrize(
    ("first", "second", "answer", "gradient"),
    [
        ([2.0, 1.0], [3.0, 1.0], 7.0, 7.0),  # all active, all for it: the plain gradient, 2*3 + 1*1
        ([2.0, -1.0], [3.0, 1.0], 5.8, 6.0),  # h = 2, -1: what is not active passes nothing (plain: 5.8)
        ([2.0, 1.0], [3.0, -1.0], 5.0, 6.0),  # h = 2, 1: what speaks against it is left out (plain: 5)
        ([-2.0, -1.0], [-3.0, -1.0], 1.4, 0.0),  # nothing active (plain: 1.4)
    ],
)
def test_by_hand(first: list[float], second: list[float], answer: float, gradient: float) -> None:
    image_1HWC = np.full((1, 1, 1, 1), 255, np.uint8)  # 1.0 to the network
    gaze = Gaze(tiny(first, second))
    np.testing.assert_allclose(gaze.responses(image_1HWC), [[answer]], rtol=1e-6)
    np.testing.assert_allclose(gaze.regard(image_1HWC, 0).gradient_NHWC, [[[[gradient]]]], rtol=1e-6)


def test_the_unit_is_looked_back_from_where_it_answers_most() -> None:
    image_HWC = np.zeros((4, 5, 1), np.uint8)
    image_HWC[2, 3] = 255
    regard = Gaze(tiny([2.0, 1.0], [3.0, 1.0])).regard(image_HWC[None], 0)
    assert (regard.top_N[0], regard.left_N[0]) == (2, 3)
    assert np.argwhere(regard.gradient_NHWC[0]).tolist() == [[2, 3, 0]]


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (configure("dcgan", image_size=28, channels=1, width=8), 10),
        (configure("cdcgan", image_size=28, channels=1, width=8, num_classes=3), 10),
        (configure("dcgan", image_size=64, channels=3, width=4), 46),
        (configure("keras", image_size=28, channels=1), 31),
    ],
)
def test_a_units_field_is_where_its_gradient_is(config: FamilyConfig, field: int) -> None:
    size = config.image_size
    images_NHWC = np.random.default_rng(0).integers(0, 256, (40, size, size, config.channels), np.uint8)
    gaze = Gaze(untrained(config, 0))
    assert gaze.field == field
    unit = int(gaze.responses(images_NHWC).min(0).argmax())
    regard = gaze.regard(images_NHWC, unit)
    reached = np.zeros((field, field), bool)
    for gradient_HWC, top, left in zip(regard.gradient_NHWC, regard.top_N, regard.left_N, strict=True):
        seen = np.argwhere(np.abs(gradient_HWC).sum(2)) - [top, left]
        assert len(seen)
        assert seen.min() >= 0
        assert seen.max() < field
        reached[tuple(seen.T)] = True
    if field < size // 2:  # else the padding hides a part of it
        assert reached.all()
