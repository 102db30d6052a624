"""A discriminator's features agree with a loop over hooks and bins. The seed decides an untrained discriminator."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcgan.evaluation.features import FeaturesError
from dcgan.exploration.discriminator_features import GRID, convolution_blocks, discriminator_features, untrained
from dcgan.families.family import FamilyConfig
from dcgan.families.layers import Projection
from dcgan.families.networks import Discriminator
from tests.families import configure

CONFIGS = {
    "dcgan28": configure("dcgan", image_size=28, channels=1, width=4, num_classes=3),
    "cdcgan28": configure("cdcgan", image_size=28, channels=1, width=4, num_classes=3),
    "dcgan64": configure("dcgan", image_size=64, channels=3, width=2),
    "keras": configure("keras", image_size=28, channels=1),
}


def naive(discriminator: Discriminator, images_NHWC: np.ndarray) -> np.ndarray:
    """The maxima of every rectifier's output. Bin i of 4 spans the rows from floor(i H / 4) to ceil((i + 1) H / 4)."""
    maps: list[np.ndarray] = []

    def keep(layer: nn.Module, given: tuple[Tensor, ...], map_NCHW: Tensor) -> None:
        maps.append(map_NCHW.numpy().copy())

    projections = [n for n, layer in enumerate(discriminator.layers) if isinstance(layer, Projection)]
    layers = discriminator.eval().layers[: (projections or [None])[0]]  # no convolutions follow it
    for layer in layers:
        if isinstance(layer, nn.LeakyReLU):
            layer.register_forward_hook(keep)
    with torch.no_grad():
        layers(torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float() / 127.5 - 1.0)
    features = []
    for map_NCHW in maps:
        extent = map_NCHW.shape[2]
        spans = [slice(i * extent // GRID, math.ceil((i + 1) * extent / GRID)) for i in range(GRID)]
        bins = [[map_NCHW[:, :, y, x].max((2, 3)) for x in spans] for y in spans]
        features.append(np.array(bins).transpose(2, 3, 0, 1).reshape(len(map_NCHW), -1))
    return np.concatenate(features, 1)


def noise(config: FamilyConfig, count: int) -> np.ndarray:
    size = config.image_size
    return np.random.default_rng(0).integers(0, 256, (count, size, size, config.channels), np.uint8)


@pytest.mark.parametrize("name", CONFIGS)
def test_features_are_the_maxima_of_every_layer(name: str) -> None:
    config = CONFIGS[name]
    discriminator = untrained(config, 1).train()  # dropout must have no effect
    features = discriminator_features(discriminator, "d", "this test's")
    assert ("without a class label" in features.protocol) == (name == "cdcgan28")
    images_NHWC = noise(config, 70)  # more than a batch
    found_NF = features(images_NHWC)
    assert found_NF.shape == (70, features.size)
    expected_NF = naive(discriminator, images_NHWC)
    np.testing.assert_allclose(found_NF, expected_NF, rtol=1e-4, atol=1e-5 * np.abs(expected_NF).max())
    assert found_NF.std(0).min() > 0


def test_the_digits28_recipe_has_3072_features() -> None:
    config = configure("cdcgan", image_size=28, channels=1, width=64, num_classes=10)
    assert discriminator_features(untrained(config, 0), "d", "").size == (64 + 128) * 16


def test_the_seed_decides_an_untrained_discriminator_and_the_global_random_state_stays() -> None:
    config = CONFIGS["dcgan28"]
    torch.manual_seed(5)
    undisturbed = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (discriminator_features(untrained(config, seed), "d", "") for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), undisturbed)
    assert first.digest == again.digest != other.digest
    images_NHWC = noise(config, 3)
    assert np.array_equal(first(images_NHWC), again(images_NHWC))
    assert not np.array_equal(first(images_NHWC), other(images_NHWC))


def test_a_network_without_convolutions_is_refused() -> None:
    discriminator = untrained(configure("gan", image_size=28, channels=1), 0)
    with pytest.raises(FeaturesError, match=r"^a gan network has no convolutions to explore$"):
        convolution_blocks(discriminator)
