"""Features are deterministic and independent of the batch. Their weights are checked."""

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.datasets import load_sample_image
from torchvision.models import inception_v3

from dcgan.evaluation import efficientnet, features
from dcgan.evaluation.efficientnet import EfficientNetLite0
from dcgan.evaluation.features import Features, FeaturesError
from jobs.command import feature_weights


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


@pytest.fixture(scope="module")
def lite_weights() -> bytes:
    return feature_weights.read()


@pytest.mark.parametrize(
    ("file", "classes"),
    [("flower.jpg", {985: "daisy"}), ("china.jpg", {442: "bell cote", 698: "palace"})],
)
def test_it_sees(lite_weights: bytes, file: str, classes: dict[int, str]) -> None:
    """Its first classes, of 1,000, are those that the pictures show."""
    image = torch.from_numpy(load_sample_image(file)[:, 100:527].copy()).permute(2, 0, 1)[None].float() / 255
    square = torch.nn.functional.interpolate(image, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.inference_mode():
        logits_K = efficientnet.pretrained(lite_weights)(square)[0]
    assert {*logits_K.topk(len(classes)).indices.tolist()} == {*classes}


def test_folding_the_norms_changes_nothing(lite_weights: bytes) -> None:
    """Against the network as it was trained, whose statistics are not the identity."""
    folded = efficientnet.pretrained(lite_weights)
    plain = EfficientNetLite0().eval()
    found = [value for _, value in sorted(load(lite_weights).items())]
    plain.load_state_dict(dict(zip(plain.state_dict(), found, strict=True)))
    assert sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in plain.modules()) == 49
    assert sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in folded.modules()) == 0
    images_BCHW = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = plain.features(images_BCHW)
        assert torch.allclose(folded.features(images_BCHW), expected, rtol=1e-3, atol=1e-4)
    assert expected.std(1).min() > 0.1


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (64, 3)])
def test_learned_features_do_not_depend_on_neighbours(lite_weights: bytes, size: int, channels: int) -> None:
    lite = features.make("efficientnet-lite0", (size, size, channels), lite_weights)
    assert (lite.size, len(lite.digest)) == (1280, 64)
    assert "FID" in lite.protocol
    assert "bicubic, antialiased" in lite.protocol
    images = pictures(11, size, channels)
    found = lite(images)
    assert (found.shape, found.dtype) == ((11, 1280), np.float32)
    assert np.allclose(lite(images[9:10])[0], found[9], rtol=1e-3, atol=1e-4)


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
        ("efficientnet-lite0", None, "no weights; vgg16-random needs none"),
        ("efficientnet-lite0", b"x", "features efficientnet-lite0: other weights (Error while deserializing"),
        ("efficientnet-lite0", save({"x": torch.ones(1)}), "other weights (1 tensors, where the network has 296)"),
        (
            "vgg19",
            None,
            "features 'vgg19': unknown; use one of efficientnet-lite0, pixels, vgg16-random, classifier, inception",
        ),
    ],
)
def test_the_error_is_one_line_with_the_reason(name: str, weights: bytes | None, message: str) -> None:
    with pytest.raises(FeaturesError) as error:
        features.make(name, (28, 28, 1), weights)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
