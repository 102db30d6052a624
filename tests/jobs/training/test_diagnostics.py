"""What goes wrong with a GAN, in words: from ticks that are made up, and from one training that does go wrong."""

from typing import Any

import numpy as np
import pytest
import torch

from dcgan.arithmetic import Arithmetic
from dcgan.evaluation.tick_metric import RandomFeatures, diversity
from dcgan.training.configuration import MethodConfig
from dcgan.training.step import Training
from jobs.training.diagnostics import ALIKE, PATIENCE, STRONG, warnings
from tests.families import configure

HEALTHY = {"loss_d": 0.9, "loss_g": 1.2, "real_accuracy": 0.8, "fake_accuracy": 0.85, "diversity": 0.9}
STRONG_D = {"real_accuracy": STRONG, "fake_accuracy": 1.0}
ALIKE_G = {"diversity": ALIKE - 0.01}


def ticks(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    """A tick each 20,000 images; the losses move by themselves."""
    return [
        {"images": 20_000 * (n + 1), **HEALTHY, "loss_d": 0.9 + 0.01 * n, "loss_g": 1.2 - 0.01 * n, **change}
        for n, change in enumerate(changes)
    ]


def topics(lines: list[str]) -> list[str]:
    return [line.split(":")[0] for line in lines]


@pytest.mark.parametrize("loss", ["log", "hinge", "wgan", "wgan-gp"])
def test_a_healthy_run_has_none(loss: str) -> None:
    for count in (0, 1, PATIENCE, 20):
        assert warnings(ticks(*[{}] * count), loss) == []


def test_a_discriminator_that_is_too_strong() -> None:
    assert warnings(ticks({}, *[STRONG_D] * 3), "log") == [
        "the discriminator is too strong: from 40,000 to 80,000 images it recognised at least 98% of the real and of "
        "the fake images, which leaves the generator a weak gradient; in a new --run try a lower --discriminator-lr, "
        "--label-smoothing 0.1, --augment color,translation,cutout for a small dataset, or --loss wgan-gp "
        "where the network allows it"
    ]
    for one_side in ({"real_accuracy": 1.0}, {"fake_accuracy": 1.0}, {**STRONG_D, "real_accuracy": STRONG - 0.001}):
        assert warnings(ticks(*[one_side] * 5), "log") == []


def test_a_critic_cannot_be_too_strong() -> None:
    assert topics(warnings(ticks(*[STRONG_D] * 5), "hinge")) == ["the discriminator is too strong"]
    for loss in ("wgan", "wgan-gp"):
        assert warnings(ticks(*[STRONG_D] * 5), loss) == []


def test_samples_that_are_alike() -> None:
    assert warnings(ticks(*[ALIKE_G] * 3), "wgan") == [
        "the samples are alike (mode collapse): from 20,000 to 60,000 images their diversity was below 0.3 of the real "
        "images'; look at grids/; in a new --run try lower rates, --loss hinge or wgan-gp, or a larger --batch-size"
    ]


@pytest.mark.parametrize("values", [(1.386294, 0.693147), (2.0, 0.0), (-1e-12, 1e-12)])
def test_losses_that_stand_still(values: tuple[float, float]) -> None:
    still = {"loss_d": values[0], "loss_g": values[1]}
    nearly = {name: value * 1.00001 for name, value in still.items()}
    assert topics(warnings(ticks(still, nearly, still), "log")) == ["both losses stand still"]
    assert warnings(ticks(*[{"loss_d": values[0]}] * 3), "log") == []  # the other one moves
    assert warnings(ticks(*[{"loss_g": values[1]}] * 3), "log") == []


@pytest.mark.parametrize("change", [STRONG_D, ALIKE_G, {"loss_d": 1.0, "loss_g": 1.0}])
def test_only_ticks_in_a_row_count(change: dict[str, Any]) -> None:
    few = [change] * (PATIENCE - 1)
    assert warnings(ticks(*few), "log") == []
    assert warnings(ticks(*few, {}, *few, {}), "log") == []
    assert len(warnings(ticks({}, *few, change, {}, {}), "log")) == 1


def test_a_line_stays_as_it_is_while_ticks_are_added() -> None:
    """By its text the driver knows that it was told."""
    everything = {**STRONG_D, **ALIKE_G, "loss_d": 0.0, "loss_g": 9.0}
    first = warnings(ticks({}, *[everything] * 3), "log")
    assert len(first) == 3
    assert all("\n" not in line and "from 40,000 to 80,000 images" in line for line in first)
    for later in ([everything] * 5, [{}] * 5):
        assert warnings(ticks({}, *[everything] * 3, *later), "log") == first


def test_what_showed_first_is_told_first() -> None:
    told = ["the samples are alike (mode collapse)", "the discriminator is too strong"]
    assert topics(warnings(ticks(ALIKE_G, {**ALIKE_G, **STRONG_D}, {**ALIKE_G, **STRONG_D}, STRONG_D), "log")) == told


def test_a_generator_that_does_not_learn_is_seen(one_thread: None) -> None:
    """A real training of a few steps: noise is told from stripes at once, and all noise looks alike."""
    network = configure("dcgan", image_size=28, channels=1, width=4, z_dim=6)
    method = MethodConfig(generator_lr=1e-9, discriminator_lr=2e-3)
    training = Training(network, method, Arithmetic("cpu", "float32"), seed=0)
    features = RandomFeatures(1)
    ticks: list[dict[str, Any]] = []
    for tick in range(6):
        results = []
        for step in range(10):
            seen = (10 * tick + step) * 16
            results.append(training.step(stripes(16, seen), np.zeros(16, np.int64), seen))
        with torch.no_grad():
            fake_BCHW = training.generator(torch.randn(200, 6, generator=torch.Generator().manual_seed(0)))
        fake_NHWC = ((fake_BCHW + 1) * 127.5).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        scalars = {name: float(np.mean([float(result[name]) for result in results])) for name in results[0]}
        scalars["diversity"] = diversity(features(stripes(200, 0)), features(fake_NHWC))
        ticks.append({"images": 160 * (tick + 1), **scalars})
    assert topics(warnings(ticks, "log")) == [
        "the samples are alike (mode collapse)",  # from the first tick on
        "the discriminator is too strong",
    ], ticks


def stripes(count: int, seed: int) -> np.ndarray:
    """Pictures of stripes of some width, brightness and place."""
    rng = np.random.default_rng(seed)
    width, place, light = rng.uniform(3, 12, count), rng.uniform(0, 12, count), rng.uniform(80, 255, count)
    waves = np.sin(2 * np.pi * (np.arange(28) - place[:, None]) / width[:, None]) > 0
    return (waves * light[:, None]).astype(np.uint8)[:, None, :, None].repeat(28, 1)
