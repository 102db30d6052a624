"""The networks: DCGAN's generator and discriminator at any size, their variant with the class at every layer, the
widely copied Keras variant for MNIST, and the fully connected GAN that came before them all.

Shapes: B images, Z latent size, K classes, C channels, H = W pixels. Images are in [-1, 1].
Convolutions run channels_last; the latent's projection is a Linear layer whose output is laid out H, W, C, so that it
needs no copy (as a transposed convolution of a 1x1 input it is 6 to 60 times slower on a CPU).
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

IMAGE_SIZES = (28, 32, 64, 128)
NETWORKS = ("dcgan", "cdcgan", "keras", "gan")
GAN_UNITS, GAN_MAXOUT, GAN_PIECES = 1200, 240, 5  # of Goodfellow et al.'s networks for MNIST


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """What determines both networks' shapes. Stored in every model.

    Raises: ValueError naming the field, its value and what is allowed.
    """

    network: str = "dcgan"
    """`dcgan`: Radford et al. 2015. `cdcgan`: the same as they ran it on MNIST, with fully connected layers and the
    class at every layer. `keras`: the Keras MNIST variant, 28x28 only. `gan`: Goodfellow et al. 2014."""
    image_size: int = 64
    """Height and width in pixels."""
    channels: int = 3
    """1 (grey) or 3 (RGB)."""
    width: int = 128
    """Channels of the generator's last and the discriminator's first hidden layer (dcgan, cdcgan)."""
    z_dim: int = 100
    """Size of the latent vector."""
    num_classes: int = 0
    """Classes that both networks are conditioned on; 0 for none."""

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f"network is {self.network!r}; it must be one of {', '.join(NETWORKS)}")
        if self.image_size not in IMAGE_SIZES:
            raise ValueError(f"image_size is {self.image_size}; it must be one of {', '.join(map(str, IMAGE_SIZES))}")
        if self.network == "keras" and self.image_size != 28:
            raise ValueError(f"image_size is {self.image_size}; the keras network makes 28x28 only")
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}; it must be 1 or 3")
        for name, high in (("width", 512), ("z_dim", 4096)):
            if not 1 <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 to {high}")
        if not 0 <= self.num_classes <= 10_000:
            raise ValueError(f"num_classes is {self.num_classes}; it must be 0 to 10000")

    @property
    def base(self) -> int:
        """Extent of the smallest feature map: 7 where the image size is 7 * 2^n, else 4."""
        return 7 if self.image_size % 7 == 0 else 4

    @property
    def widths(self) -> list[int]:
        """Channels at every extent from `base` up to half the image: at 64x64 and width 128, 1024, 512, 256, 128."""
        doublings = int(math.log2(self.image_size // self.base))
        return [self.width * 2**i for i in reversed(range(doublings))]

    @property
    def units(self) -> int:
        """Of cdcgan's fully connected layers; at width 64 half of the paper's 1,024: as good, a third faster."""
        return 8 * self.width


class Projection(nn.Module):
    """The latent, or a map, joined with the class as one-hot, to a map that all of it went into."""

    def __init__(self, inputs: int, num_classes: int, extent: int, channels: int) -> None:
        super().__init__()
        self.shape = (extent, extent, channels)
        self.num_classes = num_classes
        self.linear = nn.Linear(inputs + num_classes, math.prod(self.shape))

    def forward(self, x: Tensor, label_B: Tensor | None = None) -> Tensor:
        if x.dim() == 4:
            x = x.permute(0, 2, 3, 1).flatten(1)  # as it lies in memory
        if self.num_classes:
            assert label_B is not None, "a network with classes, and no labels"
            x = torch.cat([x, nn.functional.one_hot(label_B, self.num_classes).to(x.dtype)], 1)
        map_BHWC: Tensor = self.linear(x).view(-1, *self.shape)
        return map_BHWC.permute(0, 3, 1, 2)  # a channels_last view


class JoinClass(nn.Module):
    """The class as one-hot channels behind a map's own, each the same at every place; all 0 where no label is given."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, x: Tensor, label_B: Tensor | None = None) -> Tensor:
        batch, _, height, width = x.shape
        class_BK = x.new_zeros(batch, self.num_classes)
        if label_B is not None:
            class_BK = nn.functional.one_hot(label_B, self.num_classes).to(x.dtype)
        class_BHWK = class_BK[:, None, None].expand(batch, height, width, -1)
        return torch.cat([x.permute(0, 2, 3, 1), class_BHWK], 3).permute(0, 3, 1, 2)  # channels_last, as it came


class Layers(nn.Sequential):
    """One layer after the other; those that look at the class are given it."""

    def forward(self, x: Tensor, label_B: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer(x, label_B) if isinstance(layer, Projection | JoinClass) else layer(x)
        return x


class Maxout(nn.Module):
    """The largest of every few channels. Source: Goodfellow et al. 2013, arXiv:1302.4389."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, *extents = x.shape
        return x.reshape(batch, channels // self.pieces, self.pieces, *extents).amax(2)


class Generator(nn.Module):
    """Latents (and labels) to images.

    dcgan: project, then fractionally-strided 4x4 convolutions, batch norm and ReLU everywhere but at the tanh output.
    cdcgan: one fully connected layer more before that, and the class joined to what goes into every layer.
    keras: project to 7x7x128, twice (nearest upsampling, 3x3 convolution, batch norm, ReLU), a 3x3 convolution, tanh.
    gan: two layers of 1,200 rectified units, then the pixels; tanh where the original has a sigmoid over 0 to 1.

    Source: Radford et al. 2015, arXiv:1511.06434, sec. 3; for `cdcgan`, their code's mnist/train_cond_dcgan.py (5x5
    kernels, 1,024 units, pixels from 0 to 1); for `keras`, Keras-GAN's dcgan.py (E. Linder-Noren); for `gan`,
    Goodfellow et al. 2014, arXiv:1406.2661, and its code's mnist.yaml.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        classes = config.num_classes
        if config.network in ("dcgan", "cdcgan"):
            widths = config.widths
            joined = classes if config.network == "cdcgan" else 0
            if config.network == "cdcgan":
                self.project = Projection(config.z_dim, classes, 1, config.units)
                layers += [nn.BatchNorm2d(config.units), nn.ReLU()]
                layers += [Projection(config.units, classes, config.base, widths[0])]
            else:
                self.project = Projection(config.z_dim, classes, config.base, widths[0])
            layers += [nn.BatchNorm2d(widths[0]), nn.ReLU()]
            for wide, narrow in itertools.pairwise(widths):
                layers += _join(joined)
                layers += [nn.ConvTranspose2d(wide + joined, narrow, 4, 2, 1, bias=False)]
                layers += [nn.BatchNorm2d(narrow), nn.ReLU()]
            layers += [*_join(joined), nn.ConvTranspose2d(widths[-1] + joined, config.channels, 4, 2, 1)]
        elif config.network == "keras":
            self.project = Projection(config.z_dim, classes, config.base, 128)
            layers += [nn.ReLU()]
            for wide, narrow in ((128, 128), (128, 64)):
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(wide, narrow, 3, padding=1)]
                layers += [
                    nn.BatchNorm2d(narrow, momentum=0.2),
                    nn.ReLU(),
                ]  # Keras' momentum 0.8 keeps what torch's 0.2 adds
            layers += [nn.Conv2d(64, config.channels, 3, padding=1)]
        else:  # a 1x1 map is a vector, and a 1x1 convolution of it a fully connected layer
            self.project = Projection(config.z_dim, classes, 1, GAN_UNITS)
            pixels = config.channels * config.image_size**2
            layers += [nn.ReLU(), nn.Conv2d(GAN_UNITS, GAN_UNITS, 1), nn.ReLU(), nn.Conv2d(GAN_UNITS, pixels, 1)]
            layers += [nn.PixelShuffle(config.image_size)]
        self.layers = Layers(*layers, nn.Tanh())
        _initialise(self)

    def forward(self, z_BZ: Tensor, label_B: Tensor | None = None) -> Tensor:
        image_BCHW: Tensor = self.layers(self.project(z_BZ, label_B), label_B)
        return image_BCHW


class Discriminator(nn.Module):
    """Images (and labels) to logits: above 0 for what looks real.

    dcgan: the generator mirrored, strided 4x4 convolutions, LeakyReLU 0.2, no batch norm at the input.
    keras: four 3x3 convolutions (32, 64, 128, 256), the first three strided, with dropout 0.25.
    gan: two layers of 240 maxout units of 5 pieces, dropout 0.5 after both.
    cdcgan: dcgan's, then one fully connected layer, and the class joined to what goes into every layer.
    With classes the logit of all others is joined by the label's product with the features.

    Source: as the generator; for that product Miyato & Koyama 2018, arXiv:1802.05637 (projection discriminator).
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        joined = config.num_classes if config.network == "cdcgan" else 0
        if config.network in ("dcgan", "cdcgan"):
            widths = [config.channels, *reversed(config.widths)]
            for i, (narrow, wide) in enumerate(itertools.pairwise(widths)):
                layers += [*_join(joined), nn.Conv2d(narrow + joined, wide, 4, 2, 1, bias=i == 0)]
                layers += [nn.BatchNorm2d(wide)] if i else []
                layers += [nn.LeakyReLU(0.2)]
            features = widths[-1] * config.base**2
            if config.network == "cdcgan":
                layers += [Projection(features, joined, 1, config.units), nn.BatchNorm2d(config.units)]
                layers += [nn.LeakyReLU(0.2), *_join(joined)]
                features = config.units + joined
        elif config.network == "keras":
            widths = [config.channels, 32, 64, 128, 256]
            for i, (narrow, wide) in enumerate(itertools.pairwise(widths)):
                layers += [nn.Conv2d(narrow, wide, 3, 2 if i < 3 else 1, 1)]
                layers += [nn.BatchNorm2d(wide, momentum=0.2)] if i else []
                layers += [nn.LeakyReLU(0.2), nn.Dropout(0.25)]
            features = widths[-1] * 4 * 4
        else:
            widths = [config.channels * config.image_size**2, GAN_MAXOUT, GAN_MAXOUT]
            layers += [nn.PixelUnshuffle(config.image_size)]
            for narrow, wide in itertools.pairwise(widths):
                layers += [nn.Conv2d(narrow, wide * GAN_PIECES, 1), Maxout(GAN_PIECES), nn.Dropout(0.5)]
            features = GAN_MAXOUT
        self.layers = Layers(*layers)
        self.head = nn.Linear(features, 1)
        self.classes = nn.Embedding(config.num_classes, features) if config.num_classes > joined else None
        _initialise(self)

    def forward(self, image_BCHW: Tensor, label_B: Tensor | None = None) -> Tensor:
        features_BF = self.layers(image_BCHW, label_B).permute(0, 2, 3, 1).flatten(1)
        logit_B: Tensor = self.head(features_BF).squeeze(1)
        if self.classes is not None:
            logit_B = logit_B + (self.classes(label_B).to(features_BF.dtype) * features_BF).sum(1)
        return logit_B


def _join(num_classes: int) -> list[nn.Module]:
    return [JoinClass(num_classes)] if num_classes else []


def build(config: NetworkConfig) -> tuple[Generator, Discriminator]:
    """Both networks, freshly initialised from torch's global random state."""
    generator, discriminator = Generator(config), Discriminator(config)
    return generator.to(memory_format=torch.channels_last), discriminator.to(memory_format=torch.channels_last)


@torch.no_grad()
def _initialise(network: nn.Module) -> None:
    """Weights N(0, 0.02), batch norm scales N(1, 0.02), biases 0. Source: DCGAN paper, sec. 4, and its code."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            nn.init.zeros_(bias)
