"""The feature spaces in which sets of images are compared. N images of H x W pixels and C channels, F features.

`efficientnet-lite0` has learned ImageNet's classes, so it compares what images show. `pixels` needs no network.
`vgg16-random` has fixed random weights, so it favours no kind of image. `classifier` separates the classes of its
training data. `inception` is torchvision's Inception v3 with weights that the user provides. Values from different
features, or from features with different digests, cannot be compared.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from dcgan.evaluation import classifier, efficientnet
from dcgan.evaluation.classifier import Classifier

LITE = "efficientnet-lite0"
NAMES = (LITE, "pixels", "vgg16-random", "classifier", "inception")
SEED = 0
VGG_FEATURES = 64
_SMALLEST_VGG = 32  # five poolings halve it to 1
_INCEPTION_SIZE = 299
_BATCH = 64
_LITE_BATCH = 8  # 64 images at once take 1.8 times as long: their maps leave the cache


class FeaturesError(ValueError):
    """The features are not available. The message is one line with the remedy."""


@dataclass(frozen=True, slots=True)
class Features:
    """A map from images to features, and the facts that must be reported with every value taken in them."""

    name: str
    protocol: str
    digest: str  # sha256 over the weights' names, shapes and bytes; "no weights" if there are none
    size: int
    compute: Callable[[Tensor], Tensor]  # images_NCHW in 0..1, float32, to features_NF
    batch: int = _BATCH
    device: str = "cpu"

    @torch.inference_mode()
    def __call__(self, images_NHWC: np.ndarray) -> np.ndarray:
        """features_NF, float32, of uint8 images."""
        batches = []
        for start in range(0, len(images_NHWC), self.batch):
            images_BHWC = torch.from_numpy(np.ascontiguousarray(images_NHWC[start : start + self.batch]))
            images_BCHW = images_BHWC.to(self.device).permute(0, 3, 1, 2).float() / 255.0
            batches.append(self.compute(images_BCHW).float().cpu().numpy())
        features_NF: np.ndarray = np.concatenate(batches)
        return features_NF


def make(name: str, image_shape: tuple[int, int, int], weights: bytes | None = None) -> Features:
    """The features with the given name.

    Args:   image_shape: height, width, channels. weights: the bytes of a safetensors file. For `inception` it holds the
            state dict of torchvision's inception_v3, for `classifier` that of a Classifier, for `efficientnet-lite0`
            what `efficientnet.pretrained` takes.
    Raises: FeaturesError if the name is unknown, or the weights are missing or belong to another network.
    """
    if name == "pixels":
        height, width, channels = image_shape
        return Features(name, "pixels in 0..1, flattened", "no weights", height * width * channels, _flatten)
    if name == "vgg16-random":
        return _vgg16_random()
    if name == "classifier":
        return _classifier(image_shape, weights)
    if name == "inception":
        return _inception(weights)
    if name == LITE:
        return efficientnet_lite0(weights)
    raise FeaturesError(f"features {name!r}: unknown; use one of {', '.join(NAMES)}")


def _flatten(images_NCHW: Tensor) -> Tensor:
    return images_NCHW.permute(0, 2, 3, 1).flatten(1)  # in the order H, W, C, as stored


def _vgg16_random() -> Features:
    """VGG-16 with random weights.

    fc2 has 64 outputs instead of 4,096: a covariance needs more images than features, even within one class. Images are
    not enlarged to 224 x 224, which would take 49 times as long as 32 x 32 and add no information.

    Source: Naeem et al. 2020, arXiv:2002.09797, for random VGG-16 features. The sizes are our own.
    """
    from torchvision.models import vgg16  # takes seconds to import; only this network needs it

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = vgg16(weights=None)
        head = nn.Linear(4096, VGG_FEATURES)
        nn.init.normal_(head.weight, 0.0, 0.01)  # as torchvision initialises its linear layers
        nn.init.zeros_(head.bias)
    network.classifier = nn.Sequential(network.classifier[0], nn.ReLU(), head)
    network.eval()

    def compute(images_NCHW: Tensor) -> Tensor:
        x = _three_channels(images_NCHW) * 2.0 - 1.0
        short = [max(0, _SMALLEST_VGG - size) for size in (x.shape[3], x.shape[2])]
        edges = [short[0] // 2, short[0] - short[0] // 2, short[1] // 2, short[1] - short[1] // 2]
        features_NF: Tensor = network(nn.functional.pad(x, edges, mode="replicate"))
        return features_NF

    protocol = (
        f"torchvision's vgg16, its own initialisation from seed {SEED}, fc2 with {VGG_FEATURES} outputs before its "
        f"ReLU; pixels in -1..1, grey repeated as RGB; no resizing, but edges repeated up to {_SMALLEST_VGG} pixels"
    )
    return Features("vgg16-random", protocol, _digest(network.state_dict()), VGG_FEATURES, compute)


def _classifier(image_shape: tuple[int, int, int], weights: bytes | None) -> Features:
    if weights is None:
        raise FeaturesError("features classifier: no weights; train the classifier first")
    state = load_safetensors(weights)
    network = Classifier(image_shape[0], image_shape[2], len(state["head.1.bias"]))
    network.load_state_dict(state)
    network.eval()

    def compute(images_NCHW: Tensor) -> Tensor:
        features_NF: Tensor = network.features(images_NCHW * 2.0 - 1.0)
        return features_NF

    protocol = f"last hidden layer of a classifier trained on the real dataset: {classifier.PROTOCOL}"
    return Features("classifier", protocol, _digest(network.state_dict()), classifier.FEATURES, compute)


def efficientnet_lite0(weights: bytes | None, device: str = "cpu") -> Features:
    """EfficientNet-Lite0's features. Raises FeaturesError for missing or other weights.

    Source: Kynkäänniemi et al. 2023, arXiv:2203.06026: what features of ImageNet's classes look at, and what not.
    """
    if weights is None:
        raise FeaturesError(f"features {LITE}: no weights; vgg16-random needs none")
    try:
        network = efficientnet.pretrained(weights).to(device)
    except (SafetensorError, RuntimeError) as error:
        raise FeaturesError(f"features {LITE}: other weights ({str(error).splitlines()[0][:120]})") from error

    def compute(images_NCHW: Tensor) -> Tensor:
        size = (efficientnet.SIZE, efficientnet.SIZE)
        x = nn.functional.interpolate(_three_channels(images_NCHW), size, mode="bicubic", antialias=True)
        return network.features(x.clamp(0.0, 1.0))

    protocol = (
        "EfficientNet-Lite0 trained on ImageNet, its last convolution averaged over the image; grey repeated as RGB; "
        f"resized to {efficientnet.SIZE} x {efficientnet.SIZE}, bicubic, antialiased, in float32; not an FID"
    )
    digest = _digest(load_safetensors(weights))
    return Features(LITE, protocol, digest, efficientnet.FEATURES, compute, _LITE_BATCH, device)


def _inception(weights: bytes | None) -> Features:
    """Inception v3 up to its last pooling layer.

    Source: Heusel et al. 2017, arXiv:1706.08500, for the layer. Their weights and their resizing differ.
    """
    if weights is None:
        raise FeaturesError(
            "features inception: no weights; give torchvision's inception_v3 as a safetensors file, "
            "or take vgg16-random, which needs none"
        )
    from torchvision.models import inception_v3  # takes seconds to import; only this network needs it

    network = inception_v3(weights=None, aux_logits=False, init_weights=False, transform_input=False)
    network.fc = nn.Identity()
    try:
        state = load_safetensors(weights)
        state = {name: value for name, value in state.items() if not name.startswith(("AuxLogits.", "fc."))}
        network.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise FeaturesError(
            "features inception: the weights are not torchvision's inception_v3 as safetensors "
            f"({str(error).splitlines()[0][:120]}); vgg16-random needs none"
        ) from error
    network.eval()

    def compute(images_NCHW: Tensor) -> Tensor:
        x = _three_channels(images_NCHW) * 2.0 - 1.0
        size = (_INCEPTION_SIZE, _INCEPTION_SIZE)
        features_NF: Tensor = network(nn.functional.interpolate(x, size, mode="bilinear", antialias=True))
        return features_NF

    protocol = (
        "torchvision's inception_v3, the user's weights, pool3; pixels in -1..1, grey repeated as RGB; resized to "
        f"{_INCEPTION_SIZE} x {_INCEPTION_SIZE}, bilinear, antialiased; published FIDs have other weights"
    )
    return Features("inception", protocol, _digest(network.state_dict()), 2048, compute)


def _three_channels(images_NCHW: Tensor) -> Tensor:
    return images_NCHW.expand(-1, 3, -1, -1)


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().numpy().data)  # without a copy: one layer of VGG-16 has 411 MB
    return digest.hexdigest()
