"""Two processes with DistributedDataParallel over gloo keep equal weights with every loss."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcgan import model_files
from dcgan.arithmetic import Arithmetic
from dcgan.training.configuration import MethodConfig
from dcgan.training.step import Training
from tests import two_ranks
from tests.families import configure

NETWORK = configure("dcgan", image_size=28, channels=1, width=4, z_dim=6, num_classes=2)
SHARE, BATCH, STEPS = 4, 8, 3
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "log": ({}, "float32"),
    "wgan": ({"loss": "wgan", "clip": 0.02}, "float32"),
    "wgan-gp": ({"loss": "wgan-gp"}, "float32"),
    "wgan-gp bfloat16 augmented": ({"loss": "wgan-gp", "augment": "color,translation,cutout"}, "bfloat16"),
}


def rank_main(rank: int, folder: str) -> None:
    """One rank: take a few steps with each method on its own images, and save weights and gradient norms."""
    for name, (method, dtype) in METHODS.items():
        training = Training(NETWORK, MethodConfig(**method), Arithmetic("cpu", dtype), seed=3, world=2)
        rng = np.random.default_rng(rank)
        norms = []
        for step in range(STEPS):
            images_BHWC = rng.integers(0, 256, (SHARE, 28, 28, 1), np.uint8)
            result = training.step(images_BHWC, rng.integers(0, 2, SHARE), step * BATCH, rank * SHARE, BATCH)
            norms.append([result["gradient_d"].item(), result["gradient_g"].item()])
        Path(folder, f"{name} {rank}.safetensors").write_bytes(model_files.to_bytes(training.state()))
        Path(folder, f"{name} {rank}.json").write_text(json.dumps(norms))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    two_ranks.run(rank_main, folder)
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_ranks_that_see_different_images_keep_equal_weights(name: str, ranks: Path) -> None:
    first, second = (model_files.from_bytes((ranks / f"{name} {n}.safetensors").read_bytes()) for n in (0, 1))
    # Each rank has its own batch statistics. They differ because the ranks saw different images.
    statistics = {key for key in first if "running" in key and not key.startswith("average")}
    assert [key for key in first if key not in statistics and not torch.equal(first[key], second[key])] == []
    assert not any(torch.equal(first[key], second[key]) for key in statistics)
    assert (ranks / f"{name} 0.json").read_text() == (ranks / f"{name} 1.json").read_text()
    start = Training(NETWORK, MethodConfig(), Arithmetic("cpu", "float32"), seed=3).state()
    unmoved = {key for key in start if not key.startswith("average") and torch.equal(start[key], first[key])}
    assert unmoved <= {"discriminator.head.bias"}  # which does not change a difference of means


def test_the_averaged_gradients_include_the_penalty(ranks: Path) -> None:
    """The first gradient of wgan-gp differs from that of the same loss without the penalty."""
    clipped, penalised = (json.loads((ranks / f"{name} 0.json").read_text()) for name in ("wgan", "wgan-gp"))
    assert penalised[0][0] != pytest.approx(clipped[0][0], rel=0.1)
