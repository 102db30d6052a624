"""The training step: seeds, ranks, losses, the average and the export."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dcgan import model_files
from dcgan.arithmetic import Arithmetic
from dcgan.sampling import latents
from dcgan.training.configuration import MethodConfig
from dcgan.training.losses import LOSSES
from dcgan.training.step import Training
from tests.training_runs import BATCH, BFLOAT, FLOAT, METHODS, NETWORKS, WITH_MEANS, batch, run, saved, start


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_seed_and_the_position_decide_a_step_and_other_draws_do_not(kind: str) -> None:
    results = []
    for draws, seed, position in ((0, 3, 0), (1000, 3, 0), (0, 4, 0), (0, 3, BATCH)):
        training = start(kind)
        training.seed = seed
        torch.rand(draws)
        result = training.step(*batch(training.network, 0), position)
        results.append((result["loss_d"].item(), result["loss_g"].item()))
    assert results[0] == results[1]
    assert len({*results}) == 3


def share_of_step(rank: int, shares: list[slice], meet: Path, out: Path) -> None:
    """One rank's step on its share of a batch; saves its gradients."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meet}", rank=rank, world_size=len(shares))
    training = Training(NETWORKS["dcgan"], MethodConfig(), FLOAT, 3, len(shares))
    images_BHWC, labels_B = batch(training.network, 0)
    share = shares[rank]
    training.step(images_BHWC[share], labels_B[share], 40, share.start, BATCH)
    torch.save([weight.grad for weight in training.discriminator.parameters()], out / f"{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_unequal_shares_give_each_image_the_same_weight(tmp_path: Path) -> None:
    shares = [slice(0, 3), slice(3, 8)]
    torch.multiprocessing.spawn(share_of_step, (shares, tmp_path / "meet", tmp_path), nprocs=2)  # type: ignore[no-untyped-call]
    first, second = (torch.load(tmp_path / f"{rank}") for rank in range(2))
    alone = []
    for share in shares:
        training = start()
        images_BHWC, labels_B = batch(training.network, 0)
        training.step(images_BHWC[share], labels_B[share], 40, share.start, share.stop - share.start)
        alone.append([weight.grad for weight in training.discriminator.parameters()])
    for mine, theirs, small, large in zip(first, second, *alone, strict=True):
        assert torch.equal(mine, theirs)
        torch.testing.assert_close(mine, (3 * small + 5 * large) / 8)


@pytest.mark.parametrize(
    "arithmetic", [FLOAT, pytest.param(BFLOAT, marks=pytest.mark.slow)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("kind", ["dcgan", "dcgan with classes"])
def test_an_export_is_deterministic_in_eval_mode_and_changes_nothing(kind: str, arithmetic: Arithmetic) -> None:
    watched, alone = start(kind, arithmetic), start(kind, arithmetic)
    run(watched, range(2))
    run(alone, range(2))
    before, exports = saved(watched), []
    for draws in (0, 17):
        torch.rand(draws)
        networks = watched.export()
        assert not any(module.training for network in networks for module in network.modules())
        exports.append([model_files.to_bytes(network.state_dict()) for network in networks])
    assert exports[0] == exports[1]
    assert saved(watched) == before
    assert watched.generator.training
    assert watched.discriminator.training
    assert run(watched, range(2, 4)) == run(alone, range(2, 4))
    assert saved(watched) == saved(alone)
    assert exports[0] == [model_files.to_bytes(network.state_dict()) for network in networks]  # copies


def test_the_exported_generator_has_the_averaged_weights_and_new_batch_statistics() -> None:
    training = start()
    run(training, range(3))
    generator, discriminator = training.export()
    for name, value in generator.named_parameters():
        assert torch.equal(value, dict(training.average.named_parameters())[name])
        assert not torch.equal(value, dict(training.generator.named_parameters())[name])
    for name, value in discriminator.state_dict().items():
        assert torch.equal(value, training.discriminator.state_dict()[name])
    means = {name: value for name, value in generator.named_buffers() if name.endswith("running_mean")}
    assert means
    for name, value in means.items():
        assert not torch.allclose(value, dict(training.generator.named_buffers())[name])
    with torch.no_grad():  # the means over many images are near the statistics
        maps = generator.project(torch.randn(4000, 6, generator=torch.Generator().manual_seed(0)), None)
    spread = maps.std((0, 2, 3))
    assert ((maps.mean((0, 2, 3)) - means["layers.0.running_mean"]).abs() < 0.1 * spread).all()


def test_the_decay_of_the_average_rises_to_its_setting() -> None:
    training = start(ema=0.25, generator_lr=0.01)
    name, weight = next(iter(training.generator.named_parameters()))
    expected = weight.detach().clone().double()
    for step, decay in enumerate((0.1, 2 / 11, 0.25, 0.25)):  # (1 + step) / (10 + step), at most 0.25
        run(training, range(step, step + 1))
        expected = decay * expected + (1 - decay) * weight.detach().double()
        assert torch.allclose(dict(training.average.named_parameters())[name].double(), expected, atol=1e-6)


@pytest.mark.parametrize("loss", ["wgan", "wgan-gp"])
@pytest.mark.parametrize("kind", WITH_MEANS)
def test_a_few_steps_of_a_critic_move_real_and_fake_logits_apart(kind: str, loss: str) -> None:
    training = start(kind, loss=loss, discriminator_lr=1e-3, clip=0.1)
    images, labels = batch(training.network, 0)
    apart = []
    for _ in range(15):
        training.step(images, labels, 0)
        apart.append((training.logits[0].mean() - training.logits[1].mean()).item())
    assert np.mean(apart[-3:]) > np.mean(apart[:3])


def test_clipping_bounds_all_weights_of_the_discriminator_and_not_the_generators() -> None:
    training = start("dcgan with classes", loss="wgan", clip=0.005)
    run(training, range(2))
    assert max(weight.abs().max().item() for weight in training.discriminator.parameters()) <= 0.005
    assert max(weight.abs().max().item() for weight in training.generator.parameters()) > 0.5  # scales of batch norms


def test_the_loss_contains_the_weighted_penalty() -> None:
    found = {}
    for weight in (1.0, 10.0):
        training = start(loss="wgan-gp", gradient_penalty=weight)
        result = training.step(*batch(training.network, 0), 0)
        real_B, fake_B = training.logits
        found[weight] = result["loss_d"].item() - (fake_B.mean() - real_B.mean()).item()
    assert found[1.0] > 0.1
    assert found[10.0] == pytest.approx(10 * found[1.0], rel=1e-4)


def test_every_image_that_the_discriminator_sees_is_augmented() -> None:
    """A cutout clears pixels of real images, of fakes, and of the fakes in the generator's loss."""
    training = start(augment="cutout")
    seen: list[Tensor] = []
    training.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    run(training, range(1))
    assert len(seen) == 3
    for images_BCHW in seen:
        assert ((images_BCHW == 0).flatten(1).sum(1) >= 49).all()  # a quarter of a square of 14, at a corner
    holes = [(images_BCHW == 0) for images_BCHW in seen]
    assert not torch.equal(holes[0], holes[1])
    assert not torch.equal(holes[1], holes[2])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: ",".join(map(str, method.values())) or "log")
def test_gradient_norms_are_over_all_weights_of_a_network(method: dict[str, Any]) -> None:
    training = start("dcgan with classes", **method)
    (result,) = run(training, range(1))
    for name, network in (("gradient_d", training.discriminator), ("gradient_g", training.generator)):
        squares = sum(weight.grad.double().square().sum().item() for weight in network.parameters())
        assert result[name] == pytest.approx(squares**0.5, rel=1e-5)


def test_the_accuracies_of_a_critic_use_the_midpoint_of_its_mean_logits() -> None:
    training = start(loss="wgan-gp")
    with torch.no_grad():
        training.discriminator.head.bias.fill_(100.0)  # all logits are far from 0
    (result,) = run(training, range(1))
    real_B, fake_B = training.logits
    threshold = (real_B.mean() + fake_B.mean()) / 2
    assert result["real_accuracy"] == (real_B > threshold).float().mean()
    assert result["fake_accuracy"] == (fake_B < threshold).float().mean() > 0


@pytest.mark.parametrize("loss", ["log", "hinge"])
@pytest.mark.parametrize("kind", WITH_MEANS)
def test_a_few_steps_on_one_batch_lower_the_discriminators_loss(kind: str, loss: str) -> None:
    training = start(kind, loss=loss, discriminator_lr=1e-3)
    images, labels = batch(training.network, 0)
    losses = [training.step(images, labels, 0)["loss_d"].item() for _ in range(12)]
    assert np.mean(losses[-3:]) < 0.75 * losses[0]


@pytest.mark.parametrize("loss", ["log", "hinge"])
def test_cdcgans_discriminator_learns_slowly_because_its_last_norm_removes_the_means(loss: str) -> None:
    training = start("cdcgan", loss=loss, discriminator_lr=1e-3)
    images, labels = batch(training.network, 0)
    losses = [training.step(images, labels, 0)["loss_d"].item() for _ in range(40)]
    assert 0.9 * losses[0] < np.mean(losses[-3:]) < 0.995 * losses[0]


def test_the_generator_raises_the_logits_of_a_frozen_discriminator() -> None:
    training = start(discriminator_lr=1e-12, generator_lr=2e-3)
    z_BZ = torch.from_numpy(latents.normal(0, BATCH, 6, latents.TRAINING, 3))
    logits = []
    for _ in range(10):
        training.step(*batch(training.network, 0), 0)
        with torch.no_grad():
            logits.append(training.discriminator(training.generator(z_BZ)).mean().item())
    assert logits[-1] > logits[0] + 0.02


@pytest.mark.parametrize("loss", ["log", "hinge"])
@pytest.mark.parametrize("kind", ["dcgan", "dcgan with classes"])
def test_the_losses_of_a_step_agree_with_its_images_labels_and_latents(kind: str, loss: str) -> None:
    training = start(kind, loss=loss, label_smoothing=0.1)
    run(training, range(1))
    generator, discriminator = copy.deepcopy(training.generator), copy.deepcopy(training.discriminator)
    images_BHWC, labels_B = batch(training.network, 1)
    result = training.step(images_BHWC, labels_B, BATCH)

    label_B = torch.from_numpy(labels_B) if training.network.num_classes else None
    z_BZ = torch.from_numpy(latents.normal(BATCH, BATCH, 6, latents.TRAINING, 3))
    with torch.no_grad():
        fake_BCHW = generator(z_BZ, label_B)
        real_B = discriminator(torch.from_numpy(images_BHWC).permute(0, 3, 1, 2) / 127.5 - 1, label_B)
        fake_B = discriminator(fake_BCHW, label_B)
        judged_B = training.discriminator(fake_BCHW, label_B)  # the updated one
    expected = {
        "loss_d": LOSSES[loss].discriminator(real_B, fake_B, 0.1).item(),
        "loss_g": LOSSES[loss].generator(judged_B).item(),
        "real_accuracy": (real_B > 0).float().mean().item(),
        "fake_accuracy": (fake_B < 0).float().mean().item(),
    }
    assert {name: result[name].item() for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert torch.allclose(training.logits[0], real_B, rtol=1e-4, atol=1e-5)
    assert torch.allclose(training.logits[1], fake_B, rtol=1e-4, atol=1e-5)


def test_a_step_changes_both_networks_and_keeps_gradients_enabled() -> None:
    training = start("dcgan with classes")
    before = {name: value.detach().clone() for name, value in training.state().items()}
    run(training, range(1))
    for part in ("generator", "discriminator"):
        network = getattr(training, part)
        assert all(parameter.requires_grad for parameter in network.parameters())
        moved = [not torch.equal(before[f"{part}.{name}"], value) for name, value in network.named_parameters()]
        assert all(moved)


@pytest.mark.long  # the C++ compiler takes a minute
@pytest.mark.parametrize(
    "arithmetic", [FLOAT, pytest.param(BFLOAT, marks=pytest.mark.slow)], ids=["float32", "bfloat16"]
)
def test_compiled_networks_learn_the_same(arithmetic: Arithmetic) -> None:
    plain, compiled = (
        run(start(arithmetic=arithmetic), range(4)),
        run(start(arithmetic=arithmetic, compile=True), range(4)),
    )
    for mine, theirs in zip(plain, compiled, strict=True):
        assert theirs["loss_d"] == pytest.approx(mine["loss_d"], abs=0.05)
        assert theirs["loss_g"] == pytest.approx(mine["loss_g"], abs=0.05)
