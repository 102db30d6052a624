"""A discriminator that is trained on, on images whose ratio of densities is known."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from dcgan import numerics
from dcgan.evaluation import calibration
from dcgan.families.networks import Discriminator
from dcgan.families.registry import FAMILIES, build
from dcgan.model_files import Model
from dcgan.sampling.sampler import Sampler
from dcgan.training import continued
from tests.families import configure

P_REAL, P_FAKE = np.array([0.8, 0.3]), np.array([0.4, 0.6])  # of a bright image, by class
BRIGHT, DARK = 200, 50
FP32 = numerics.choose("fp32", "cpu")


def images(p_B: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grey images with noise, bright with these probabilities."""
    level_B = np.where(rng.random(len(p_B)) < p_B, BRIGHT, DARK)
    return (level_B[:, None, None, None] + rng.integers(-20, 20, (len(p_B), 28, 28, 1))).astype(np.uint8)


def batches(seed: int = 0) -> Iterator[continued.Batch]:
    rng = np.random.default_rng(seed)
    while True:
        label_B = rng.integers(0, 2, continued.HALF)
        yield images(P_REAL[label_B], rng), images(P_FAKE[label_B], rng), label_B


def fresh(family: str = "dcgan", **shape: int) -> Model:
    """Untrained networks, the default ones small: a convolution and a layer of both classes."""
    torch.manual_seed(0)
    generator, discriminator = build(configure(family, image_size=28, channels=1, z_dim=3, num_classes=2, **shape))
    return Model(generator.eval(), discriminator.eval(), ["a", "b"], {})


def logits(discriminator: Discriminator, shown: np.ndarray, label: int) -> np.ndarray:
    model = fresh(width=4)
    scored = Sampler(Model(model.generator, discriminator, ["a", "b"], {}), FP32, 64)
    return scored.score(shown, np.full(len(shown), label, np.int64))


def test_it_learns_the_log_ratio_within_each_class() -> None:
    discriminator = continued.train_on(fresh(width=4).discriminator, batches(), 150, FP32)
    for label, (p_real, p_fake) in enumerate(zip(P_REAL, P_FAKE, strict=True)):
        for ratio, level in ((p_real / p_fake, 1.0), ((1 - p_real) / (1 - p_fake), 0.0)):
            shown = images(np.full(200, level), np.random.default_rng(1))
            assert logits(discriminator, shown, label).mean() == pytest.approx(np.log(ratio), abs=0.4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_in_the_form_in_which_it_scores(family: str) -> None:
    """Batch statistics and the discriminator that was given stay as they were; no dropout, no chance."""
    discriminator = fresh(family).discriminator
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    trained, again = (continued.train_on(discriminator, batches(), 3, FP32) for _ in range(2))
    changed = set()
    for name, value in before.items():
        assert torch.equal(discriminator.state_dict()[name], value)
        assert torch.equal(trained.state_dict()[name], again.state_dict()[name])
        changed |= {name} if not torch.equal(trained.state_dict()[name], value) else set()
    assert changed == {name for name, _ in discriminator.named_parameters()} & changed
    assert len(changed) > len(dict(discriminator.named_parameters())) // 2
    assert not any(module.training for module in trained.modules())


def test_sets_of_one_distribution_are_not_told_apart() -> None:
    same = ((real, real[::-1], label[::-1]) for real, _, label in batches())
    discriminator = continued.train_on(fresh(width=4).discriminator, same, 40, FP32)
    rng = np.random.default_rng(2)
    one, other = (logits(discriminator, images(np.full(1000, 0.5), rng), 0) for _ in range(2))
    assert calibration.area(one, other) == pytest.approx(0.5, abs=0.05)
