"""The metric of every tick of training. It chooses the best model of a run.

It is the kernel distance (unbiased squared MMD with the cubic kernel of KID): for colour images in the features of
EfficientNet-Lite0, as `evaluate` measures it; else in the features of a small convolutional network with fixed random
weights, which is cheap. It ranks the models of one run. It cannot be compared with published KIDs, which use Inception
features.

Source: Binkowski et al. 2018, arXiv:1801.01401 (KID); random features: Naeem et al. 2020, arXiv:2002.09797, sec. 5.
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn

from dcgan.evaluation import distances
from dcgan.evaluation.features import Features

FEATURE_SEED = 0
MIN_SPREAD = 0.03  # as a share of the mean standard deviation of all features
PROTOCOL = "squared MMD, cubic kernel, 384 features of a random convolutional network (seed 0)"


class TickMetric:
    """The metric of a run: its real images are looked at once.

    Args: real_NHWC: uint8. learned: the features to measure the distance in; None: the random ones.
    """

    def __init__(self, real_NHWC: np.ndarray, learned: Features | None = None) -> None:
        self._random, self._learned = RandomFeatures(real_NHWC.shape[3]), learned
        self._random_NF = self._random(real_NHWC)
        self._learned_NF = learned(real_NHWC) if learned else None
        what = f"squared MMD, cubic kernel, {learned.name} ({learned.digest[:12]})" if learned else PROTOCOL
        self.protocol = f"{what}; {len(real_NHWC)} real and as many fake"

    def measure(self, fake_NHWC: np.ndarray, label_N: np.ndarray | None) -> dict[str, float]:
        """`kernel_distance` and `diversity` of as many fakes, uint8; `label_N` are the labels of both sets."""
        random_NF = self._random(fake_NHWC)
        if self._learned and self._learned_NF is not None:
            distance = distances.kernel_distance(self._learned_NF, self._learned(fake_NHWC))
        else:
            distance = kernel_distance(self._random_NF, random_NF)
        labels = None if label_N is None else torch.from_numpy(label_N)
        return {"kernel_distance": distance, "diversity": diversity(self._random_NF, random_NF, labels)}


class RandomFeatures(nn.Module):
    """Maps images to 384 features: mean and standard deviation of a random network's maps at three scales."""

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
    """`distances.kernel_distance` of these features, standardised by the real images; 0 for equal distributions."""
    real, fake = _scaled(real_NF, fake_MF)
    return distances.kernel_distance(real.numpy(), fake.numpy())


def diversity(real_NF: Tensor, fake_NF: Tensor, label_N: Tensor | None = None) -> float:
    """The diversity of the fakes relative to the reals: 1 for equal diversity, 0 for one repeated image.

    It is the root of the ratio of mean squared distances from the mean, in the features of `kernel_distance`. With
    labels, which are the same for both sets, distances are from the mean of the class, so one repeated image in each
    class also gives 0. The measure cannot distinguish a few repeated, dissimilar images from real variety.
    """
    real, fake = (_spread(features, label_N) for features in _scaled(real_NF, fake_NF))
    return math.sqrt(fake / max(real, 1e-12))


def _scaled(real_NF: Tensor, fake_MF: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets in float64, standardised by the mean and the standard deviation of the real images."""
    mean_F, std_F = real_NF.double().mean(0), real_NF.double().std(0)
    # A feature that is constant on these real images has a deviation of 0. Without a lower bound it would decide the
    # distance alone, since the kernel is cubic.
    std_F = std_F.clamp_min(max(MIN_SPREAD * float(std_F.mean()), 1e-6))
    return (real_NF.double() - mean_F) / std_F, (fake_MF.double() - mean_F) / std_F


def _spread(features_NF: Tensor, label_N: Tensor | None) -> float:
    """The mean squared distance from the mean; with labels, from the mean of the class."""
    groups = [features_NF] if label_N is None else [features_NF[label_N == label] for label in {*label_N.tolist()}]
    squares = sum(float((group - group.mean(0)).square().sum()) for group in groups)
    return squares / len(features_NF)
