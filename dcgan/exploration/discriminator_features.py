"""A discriminator's activations as image features. N images of C channels, H x W pixels; F features.

Source: Radford et al. 2015, arXiv:1511.06434, sec. 5: all layers' activations, max-pooled to a 4x4 grid, in one vector.
"""

import hashlib

import torch
from torch import Tensor, nn

from dcgan.evaluation.features import Features, FeaturesError
from dcgan.families import registry
from dcgan.families.family import FamilyConfig
from dcgan.families.layers import JoinClass
from dcgan.families.networks import Discriminator

GRID = 4


def discriminator_features(discriminator: Discriminator, name: str, origin: str) -> Features:
    """The features of a discriminator: the max-pooled activations of all its convolution layers.

    Args:   origin: a description of the discriminator and its weights, for the protocol.
    Raises: FeaturesError for a network without convolutions.
    """
    blocks = convolution_blocks(discriminator)
    size = sum(_channels(block) for block in blocks) * GRID**2

    def compute(images_NCHW: Tensor) -> Tensor:
        x, pooled = images_NCHW * 2.0 - 1.0, []
        for block in blocks:
            x = block(x)
            pooled.append(nn.functional.adaptive_max_pool2d(x, GRID).flatten(1))
        return torch.cat(pooled, 1)

    conditional = any(isinstance(layer, JoinClass) for block in blocks for layer in block)
    protocol = (
        f"{origin}; activations of its {len(blocks)} convolution layers after norm and rectifier, in eval mode"
        f"{' and without a class label' * conditional}, each max-pooled to {GRID} x {GRID}, flattened and joined"
    )
    return Features(name, protocol, _digest(discriminator), size, compute)


def convolution_blocks(discriminator: Discriminator) -> list[nn.Sequential]:
    """A discriminator's convolutions in eval mode, each with the norm and the rectifier that follow it.

    Blocks whose input is joined with the class run without a label: all one-hot channels are 0.

    Raises: FeaturesError for a network without convolutions.
    """
    blocks = discriminator.eval().convolution_blocks()
    if not blocks:
        raise FeaturesError(f"a {discriminator.config.family} network has no convolutions to explore")
    return blocks


def untrained(config: FamilyConfig, seed: int) -> Discriminator:
    """A discriminator in its initial state. The seed decides its weights; torch's global random state is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, discriminator = registry.of(config).networks()
        return discriminator(config).eval()


def _channels(block: nn.Sequential) -> int:
    return next(layer.out_channels for layer in block if isinstance(layer, nn.Conv2d))


def _digest(discriminator: Discriminator) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(discriminator.layers.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().numpy())
    return digest.hexdigest()
