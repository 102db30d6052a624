"""EfficientNet-Lite0, a small network trained on ImageNet: its features compare images by what they show.

It is EfficientNet-B0 without squeeze-and-excitation and with ReLU6. The weights were trained in TensorFlow, hence the
padding and the epsilon of the batch norms.

Source: Tan & Le 2019, arXiv:1905.11946, table 1, for the stages; Lite is TensorFlow's variant of 2020. Our own code.

Shapes: B images of 224 x 224 pixels, 1,280 features F, 1,000 classes K.
"""

from safetensors.torch import load as load_safetensors
from torch import Tensor, channels_last, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SIZE = 224
FEATURES = 1280
_CLASSES = 1000
_STEM = 32
# expansion, channels, blocks, stride of the first block, kernel
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class EfficientNetLite0(nn.Module):
    """RGB images of 224 x 224 pixels in 0..1 to the logits of ImageNet's classes."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_Convolution(3, _STEM, 3, 2)]
        channels = _STEM
        for expansion, wide, blocks, stride, kernel in _STAGES:
            for block in range(blocks):
                layers.append(_Block(channels, wide, expansion, kernel, 1 if block else stride))
                channels = wide
        self.body = nn.Sequential(*layers, _Convolution(channels, FEATURES, 1))
        self.head = nn.Linear(FEATURES, _CLASSES)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """features_BF: the last convolution, averaged over the image."""
        pixels_BCHW = (images_BCHW * 255.0 - 127.0) / 128.0  # as in its training
        features_BF: Tensor = self.body(pixels_BCHW.contiguous(memory_format=channels_last)).mean((2, 3))
        return features_BF

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.features(images_BCHW))
        return logits_BK


def pretrained(weights: bytes) -> EfficientNetLite0:
    """The network in eval mode, its batch norms folded into the convolutions.

    Args:   weights: a safetensors file with the tensors of the published state dict, named 0000 and so on in its order.
            Ours has the same layers in the same order.
    Raises: safetensors.SafetensorError or RuntimeError for other weights.
    """
    network = EfficientNetLite0()
    own, found = network.state_dict(), [value for _, value in sorted(load_safetensors(weights).items())]
    if len(own) != len(found):
        raise RuntimeError(f"{len(found)} tensors, where the network has {len(own)}")
    network.load_state_dict(dict(zip(own, found, strict=True)))
    network.eval()
    for layer in network.modules():
        if isinstance(layer, _Convolution):
            layer.fold()
    return network


class _Convolution(nn.Module):
    """A convolution and its batch norm, then ReLU6 if it is `active`."""

    def __init__(
        self, channels: int, wide: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, active: bool = True
    ) -> None:
        super().__init__()
        # TensorFlow's "same" padding of an even size: with stride 2 the end gets one more pixel than the start.
        start, self.more = divmod(kernel - stride, 2)
        self.convolution = nn.Conv2d(channels, wide, kernel, stride, start, groups=groups, bias=False)
        self.norm: nn.BatchNorm2d | nn.Identity = nn.BatchNorm2d(wide, eps=1e-3)
        self.active = active

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.more:
            x_BCHW = nn.functional.pad(x_BCHW, (0, 1, 0, 1))
        x_BCHW = self.norm(self.convolution(x_BCHW))
        return nn.functional.relu6(x_BCHW, inplace=True) if self.active else x_BCHW

    def fold(self) -> None:
        """Fold the batch norm, in eval mode, into the convolution. Once."""
        assert isinstance(self.norm, nn.BatchNorm2d)
        self.convolution = fuse_conv_bn_eval(self.convolution, self.norm)
        self.norm = nn.Identity()


class _Block(nn.Module):
    """Widen, convolve each channel by itself, narrow; plus the input where it has the same shape."""

    def __init__(self, channels: int, wide: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = channels * expansion
        widen = [_Convolution(channels, inner)] if expansion > 1 else []
        self.layers = nn.Sequential(
            *widen, _Convolution(inner, inner, kernel, stride, inner), _Convolution(inner, wide, active=False)
        )
        self.adds = stride == 1 and channels == wide

    def forward(self, x_BCHW: Tensor) -> Tensor:
        found_BCHW: Tensor = self.layers(x_BCHW)
        return x_BCHW + found_BCHW if self.adds else found_BCHW
