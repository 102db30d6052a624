"""Two processes with DistributedDataParallel over gloo: with every loss, ranks keep equal weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from dcgan import model_files
from dcgan.numerics import Arithmetic
from dcgan.training.configuration import MethodConfig
from dcgan.training.step import Training
from tests.families import configure

NETWORK = configure("dcgan", image_size=28, channels=1, width=4, z_dim=6, num_classes=2)
SHARE, BATCH, STEPS = 4, 8, 3
METHODS: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "log": ({}, torch.float32),
    "wgan": ({"loss": "wgan", "clip": 0.02}, torch.float32),
    "wgan-gp": ({"loss": "wgan-gp"}, torch.float32),
    "wgan-gp bfloat16 augmented": ({"loss": "wgan-gp", "augment": "color,translation,cutout"}, torch.bfloat16),
}


def rank_main(rank: int, folder: str) -> None:
    """One rank: a few steps on images of its own with each method; leaves its weights and gradients' lengths."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for name, (method, dtype) in METHODS.items():
        training = Training(NETWORK, MethodConfig(**method), Arithmetic("cpu", dtype), seed=3, world=2)
        rng = np.random.default_rng(rank)
        lengths = []
        for step in range(STEPS):
            images_BHWC = rng.integers(0, 256, (SHARE, 28, 28, 1), np.uint8)
            result = training.step(images_BHWC, rng.integers(0, 2, SHARE), step * BATCH, rank * SHARE, BATCH)
            lengths.append([result["gradient_d"].item(), result["gradient_g"].item()])
        Path(folder, f"{name} {rank}.safetensors").write_bytes(model_files.to_bytes(training.state()))
        Path(folder, f"{name} {rank}.json").write_text(json.dumps(lengths))
    distributed.barrier()  # a rank whose peer is gone before it leaves was seen to abort
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.start_processes(rank_main, (str(folder),), nprocs=2, start_method="spawn")
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_ranks_that_see_different_images_keep_equal_weights(name: str, ranks: Path) -> None:
    first, second = (model_files.from_bytes((ranks / f"{name} {n}.safetensors").read_bytes()) for n in (0, 1))
    # each rank has its own batch statistics, and these show that they saw different images
    statistics = {key for key in first if "running" in key and not key.startswith("average")}
    assert [key for key in first if key not in statistics and not torch.equal(first[key], second[key])] == []
    assert not any(torch.equal(first[key], second[key]) for key in statistics)
    assert (ranks / f"{name} 0.json").read_text() == (ranks / f"{name} 1.json").read_text()
    start = Training(NETWORK, MethodConfig(), Arithmetic("cpu", torch.float32), seed=3).state()
    unmoved = {key for key in start if not key.startswith("average") and torch.equal(start[key], first[key])}
    assert unmoved <= {"discriminator.head.bias"}  # which a difference of means does not feel


def test_the_penalty_moves_the_ranks_weights(ranks: Path) -> None:
    """What is shared holds the penalty: the first gradient of wgan-gp is not that of the same loss without it."""
    clipped, penalised = (json.loads((ranks / f"{name} 0.json").read_text()) for name in ("wgan", "wgan-gp"))
    assert penalised[0][0] != pytest.approx(clipped[0][0], rel=0.1)
