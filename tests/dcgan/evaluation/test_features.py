"""Features are deterministic and independent of the batch. Their weights are checked."""

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torchvision.models import inception_v3

from dcgan.evaluation import features
from dcgan.evaluation.features import Features, FeaturesError


def pictures(count: int, size: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), np.uint8)


@pytest.fixture(scope="module")
def vgg() -> Features:
    return features.make("vgg16-random", (28, 28, 1))


def test_pixel_features_are_the_scaled_pixels() -> None:
    images = pictures(70, 5, 3)
    pixels = features.make("pixels", (5, 5, 3))
    assert (pixels.size, pixels.digest) == (75, "no weights")
    found = pixels(images)
    assert found.dtype == np.float32
    assert np.allclose(found, images.reshape(70, 75) / 255, atol=1e-7)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (64, 3)])
def test_random_features_do_not_depend_on_neighbours(vgg: Features, size: int, channels: int) -> None:
    images = pictures(5, size, channels)
    found = vgg(images)
    assert (found.shape, found.dtype) == ((5, features.VGG_FEATURES), np.float32)
    assert np.allclose(vgg(images[3:4])[0], found[3], rtol=1e-4, atol=1e-5)
    assert found.std(0).min() > 0


def test_the_seed_decides_random_features_and_the_global_random_state_stays(vgg: Features) -> None:
    torch.manual_seed(1)
    again = features.make("vgg16-random", (28, 28, 1))
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)
    assert again.digest == vgg.digest
    assert np.array_equal(again(pictures(2, 28, 1)), vgg(pictures(2, 28, 1)))
    assert "from seed 0" in vgg.protocol
    assert "no resizing" in vgg.protocol


def test_inception_takes_the_users_weights_with_and_without_heads() -> None:
    """The weights are random and have the right shapes. No test uses trained weights."""
    torch.manual_seed(0)
    network = inception_v3(weights=None, init_weights=False, aux_logits=True)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    whole = features.make("inception", (28, 28, 1), save(state))
    body = {name: value for name, value in state.items() if not name.startswith(("AuxLogits", "fc."))}
    assert features.make("inception", (28, 28, 1), save(body)).digest == whole.digest
    assert whole(pictures(2, 28, 1)).shape == (2, 2048)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("inception", None, "no weights; give torchvision's inception_v3 as a safetensors file, or take vgg16-random"),
        ("inception", b"no such file", "the weights are not torchvision's inception_v3 as safetensors"),
        ("inception", save({"x": torch.ones(1)}), "the weights are not torchvision's inception_v3 as safetensors"),
        ("vgg19", None, "features 'vgg19': unknown; use one of pixels, vgg16-random, classifier, inception"),
    ],
)
def test_the_error_is_one_line_with_the_reason(name: str, weights: bytes | None, message: str) -> None:
    with pytest.raises(FeaturesError) as error:
        features.make(name, (28, 28, 1), weights)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
