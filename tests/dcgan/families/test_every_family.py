"""Tests that run over every registered family, each at its smallest size. A new entry in FAMILIES is tested too."""

import copy
import functools
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dcgan import model_files
from dcgan.arithmetic import Arithmetic
from dcgan.configuration import fields, identity
from dcgan.families import registry
from dcgan.families.family import FamilyConfig
from dcgan.families.registry import FAMILIES
from dcgan.model_files import Model
from dcgan.sampling import latents
from dcgan.sampling.sampler import BATCH_MULTIPLE, Sampler
from dcgan.training.configuration import MethodConfig
from dcgan.training.losses import LOSSES
from dcgan.training.state import check_state
from dcgan.training.step import EXPORT_BATCH_SIZE, EXPORT_BATCHES, Training
from tests import two_ranks

FLOAT = Arithmetic("cpu", "float32")
BATCH, CLASSES = 8, 3


def smallest(family: str, classes: int = CLASSES) -> FamilyConfig:
    """A family's configuration with few pixels, channels and units."""
    small = {"z_dim": 6, "width": 4, "num_classes": classes}
    return registry.configure(family, {name: small[name] for name in fields(FAMILIES[family].config) if name in small})


def batch(config: FamilyConfig, number: int, count: int = BATCH) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([7, number])
    shape = (count, config.image_size, config.image_size, config.channels)
    return rng.integers(0, 256, shape, np.uint8), rng.integers(0, max(1, config.num_classes), count)


def train(training: Training, first: int, steps: int) -> Training:
    for number in range(first, first + steps):
        training.step(*batch(training.network, number), number * BATCH)
    return training


@functools.cache
def trained(config: FamilyConfig) -> Model:
    """A model of two steps. Not to be changed."""
    training = train(Training(config, MethodConfig(), FLOAT, seed=3), 0, 2)
    return Model(*training.export(), [f"class {n}" for n in range(config.num_classes)] or None, {})


def labels(config: FamilyConfig, count: int) -> np.ndarray | None:
    return np.arange(count) % config.num_classes if config.num_classes else None


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=[0, CLASSES], ids=["no classes", "classes"])
def model(request: pytest.FixtureRequest, family: str) -> Model:
    return trained(smallest(family, request.param))


def test_images_are_in_range_and_each_gets_a_logit(model: Model) -> None:
    made = Sampler(model, FLOAT, BATCH_MULTIPLE).sample(range(5), labels(model.config, 5))
    size, channels = model.config.image_size, model.config.channels
    assert made.images_NHWC.shape == (5, size, size, channels)
    assert made.images_NHWC.dtype == np.uint8
    assert made.images_NHWC.std() > 0
    assert made.logits_N.shape == (5,)
    assert made.logits_N.std() > 0


def test_an_image_and_its_logit_depend_on_seed_and_label_alone(model: Model) -> None:
    sampler = Sampler(model, FLOAT, BATCH_MULTIPLE)
    together = sampler.sample(range(BATCH_MULTIPLE + 5), labels(model.config, BATCH_MULTIPLE + 5))
    for seed in (0, 3, BATCH_MULTIPLE + 4):
        label = labels(model.config, BATCH_MULTIPLE + 5)
        alone = sampler.sample(range(seed, seed + 1), None if label is None else label[seed : seed + 1])
        assert np.array_equal(alone.images_NHWC[0], together.images_NHWC[seed])
        assert alone.logits_N[0] == together.logits_N[seed]
        label_1 = None if label is None else label[seed : seed + 1]
        assert sampler.score(together.images_NHWC[seed : seed + 1], label_1)[0] == together.logits_N[seed]


def test_the_inference_form_agrees_with_the_training_networks(model: Model) -> None:
    z_NZ = FAMILIES[model.config.family].latents(0, 5, model.config.z_dim)
    label_N = labels(model.config, 5)
    label = None if label_N is None else torch.from_numpy(label_N)
    made = Sampler(model, FLOAT, BATCH_MULTIPLE).decode(z_NZ, label_N)
    with torch.no_grad():
        image_NCHW = model.generator(torch.from_numpy(z_NZ), label)
        levels = (image_NCHW * 127.5 + 127.5).permute(0, 2, 3, 1).numpy()
        stored = torch.from_numpy(made.images_NHWC).permute(0, 3, 1, 2).float() / 127.5 - 1
        logit_N = model.discriminator(stored, label).numpy()
    assert np.abs(levels - made.images_NHWC).max() <= 0.51
    assert np.allclose(logit_N, made.logits_N, rtol=1e-3, atol=1e-4)


def test_a_model_survives_the_round_trip_through_files(model: Model) -> None:
    files = model_files.pack(model)
    again = model_files.unpack(lambda name, limit: files[name])
    assert again.config == model.config
    assert model_files.pack(again) == files
    label_N = labels(model.config, 4)
    one, two = (Sampler(each, FLOAT, BATCH_MULTIPLE).sample(range(4), label_N) for each in (model, again))
    assert np.array_equal(one.images_NHWC, two.images_NHWC)
    assert np.array_equal(one.logits_N, two.logits_N)


def test_a_run_resumed_from_a_checkpoint_equals_an_uninterrupted_run(family: str) -> None:
    config = smallest(family)
    whole = train(Training(config, MethodConfig(), FLOAT, seed=3), 0, 4)
    first = train(Training(config, MethodConfig(), FLOAT, seed=3), 0, 2)
    saved = model_files.from_bytes(model_files.to_bytes(first.state()))
    check_state(saved, config)
    second = Training(config, MethodConfig(), FLOAT, seed=99)
    second.load_state(saved)
    second.seed = 3
    assert train(second, 2, 2).digest() == whole.digest()


def test_an_exported_generators_batch_statistics_are_those_of_its_own_weights(family: str) -> None:
    """The plain means over the fixed latents, taken here from the inputs of each norm."""
    training = train(Training(smallest(family), MethodConfig(), FLOAT, seed=3), 0, 2)
    exported, _ = training.export()
    averaged = copy.deepcopy(training.average).train()
    seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for name, norm in averaged.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            seen[name] = []
            norm.register_forward_pre_hook(
                lambda _, inputs, name=name: seen[name].append((inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))))
            )
    label_N = labels(training.network, EXPORT_BATCH_SIZE)
    label_B = None if label_N is None else torch.from_numpy(label_N)
    with torch.no_grad():
        for number in range(EXPORT_BATCHES):
            start = number * EXPORT_BATCH_SIZE
            z_BZ = FAMILIES[family].latents(start, EXPORT_BATCH_SIZE, training.network.z_dim, latents.TRAINING, 3)
            averaged(torch.from_numpy(z_BZ), label_B)
    for name, statistics in seen.items():
        norm = exported.get_submodule(name)
        means, variances = (torch.stack(values).mean(0) for values in zip(*statistics, strict=True))
        assert torch.allclose(norm.running_mean, means, rtol=1e-4, atol=1e-6)
        assert torch.allclose(norm.running_var, variances, rtol=1e-4, atol=1e-6)
        assert norm.num_batches_tracked == EXPORT_BATCHES


def test_another_familys_checkpoint_is_refused(family: str) -> None:
    state = train(Training(smallest(family), MethodConfig(), FLOAT, seed=3), 0, 1).state()
    for other in FAMILIES.keys() - {family}:
        with pytest.raises(ValueError, match="another network's"):
            check_state(state, smallest(other))


def test_every_loss_trains_the_networks_or_is_refused(family: str) -> None:
    refusals = []
    for loss in LOSSES:
        try:
            training = Training(smallest(family), MethodConfig(loss=loss), FLOAT, seed=3)
        except ValueError as error:
            refusals.append((loss, str(error)))
            continue
        before = copy.deepcopy(training.state())
        after = train(training, 0, 1).state()
        assert not any(torch.equal(before[name], after[name]) for name in before if name.endswith("linear.weight"))
    assert len(refusals) < len(LOSSES)
    assert all(line.startswith(f"loss is {loss}; ") for loss, line in refusals)


def test_the_identity_of_a_configuration_has_every_original_field(family: str) -> None:
    assert identity(smallest(family)) == {
        "image_size": 28, "channels": 1, "z_dim": 6, "num_classes": CLASSES, "width": 4,
    }  # fmt: skip  # a family with further fields needs its own test


def test_families_have_unique_names_and_frozen_configurations() -> None:
    assert [each.name for each in FAMILIES.values()] == [*FAMILIES]
    assert all(one.config is not other.config for one, other in pairwise(FAMILIES.values()))
    config = smallest(registry.DEFAULT)
    with pytest.raises(AttributeError):
        config.z_dim = 7  # type: ignore[misc]
    assert replace(config, z_dim=7).z_dim == 7


def rank_main(rank: int, folder: str) -> None:
    for family in FAMILIES:
        config = smallest(family)
        training = Training(config, MethodConfig(), FLOAT, seed=3, world=2)
        for number in range(2):
            share = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
            images, label = batch(config, number)
            training.step(images[share], label[share], number * BATCH, share.start, BATCH)
        weights: dict[str, Any] = dict(training.generator.named_parameters())
        Path(folder, f"{family} {rank}.json").write_text(
            json.dumps({name: weight.double().sum().item() for name, weight in weights.items()})
        )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    two_ranks.run(rank_main, folder)
    return folder


def test_two_ranks_keep_equal_weights(family: str, ranks: Path) -> None:
    one, two = ((ranks / f"{family} {rank}.json").read_text() for rank in (0, 1))
    assert one == two
    start = Training(smallest(family), MethodConfig(), FLOAT, seed=3).generator
    assert json.loads(one) != {name: weight.double().sum().item() for name, weight in start.named_parameters()}
