"""A distance between two sets of images, cheap enough to be taken at every tick, by which the best model is kept.

It is the kernel distance (unbiased squared MMD with the cubic kernel of KID) in the features of a small convolutional
network with fixed random weights. It ranks the models of one run; it is not comparable with published KIDs, which are
taken in Inception's features.

Source: Binkowski et al. 2018, arXiv:1801.01401 (KID); random features: Naeem et al. 2020, arXiv:2002.09797, sec. 5.
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn

from dcgan.evaluation import distances

FEATURE_SEED = 0
MIN_SPREAD = 0.03  # of the features' mean spread
PROTOCOL = "squared MMD, cubic kernel, 384 features of a random convolutional network (seed 0)"


class RandomFeatures(nn.Module):
    """Images to 384 features: mean and spread of a random network's maps at three scales."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        state = torch.random.get_rng_state()
        torch.manual_seed(FEATURE_SEED)
        widths = [channels, 64, 64, 64]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in itertools.pairwise(widths))
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv2d)
            nn.init.kaiming_normal_(convolution.weight)
        torch.random.set_rng_state(state)

    @torch.inference_mode()
    def forward(self, images_NHWC: np.ndarray) -> Tensor:
        """features_NF, float32, of uint8 images."""
        features = []
        for start in range(0, len(images_NHWC), 256):
            maps = torch.from_numpy(images_NHWC[start : start + 256]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
            found = []
            for convolution in self.convolutions:
                maps = torch.relu(convolution(maps))
                found += [maps.mean((2, 3)), maps.std((2, 3))]
            features.append(torch.cat(found, 1))
        return torch.cat(features)


def kernel_distance(real_NF: Tensor, fake_MF: Tensor) -> float:
    """`distances.kernel_distance` of these features, scaled to the real ones' mean 0 and spread 1; 0 is equal."""
    real, fake = _scaled(real_NF, fake_MF)
    return distances.kernel_distance(real.numpy(), fake.numpy())


def diversity(real_NF: Tensor, fake_NF: Tensor, label_N: Tensor | None = None) -> float:
    """How varied the fakes are for how varied the reals are: 1 is as varied, 0 is one picture again and again.

    The root of the ratio of mean squared distances from the mean, in the features of `kernel_distance`. With labels
    (the same for both) distances are taken from the class's own mean: ten classes of one picture each are 0 too.
    The measure cannot distinguish a few repeated, dissimilar images from real variety.
    """
    real, fake = (_spread(features, label_N) for features in _scaled(real_NF, fake_NF))
    return math.sqrt(fake / max(real, 1e-12))


def _scaled(real_NF: Tensor, fake_MF: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, scaled to the real ones' mean 0 and spread 1."""
    mean_F, std_F = real_NF.double().mean(0), real_NF.double().std(0)
    # A feature that is dead on these real images would have a spread of 0 and, cubed, decide the distance alone.
    std_F = std_F.clamp_min(max(MIN_SPREAD * float(std_F.mean()), 1e-6))
    return (real_NF.double() - mean_F) / std_F, (fake_MF.double() - mean_F) / std_F


def _spread(features_NF: Tensor, label_N: Tensor | None) -> float:
    """The mean squared distance from the mean, or from the mean of one's class."""
    groups = [features_NF] if label_N is None else [features_NF[label_N == label] for label in {*label_N.tolist()}]
    squares = sum(float((group - group.mean(0)).square().sum()) for group in groups)
    return squares / len(features_NF)
