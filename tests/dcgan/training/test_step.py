"""Training: a run that was interrupted is the run that was not, and what is exported is a function of the weights."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from dcgan import model_files
from dcgan.configuration import reason
from dcgan.families.family import FamilyConfig
from dcgan.numerics import Arithmetic
from dcgan.sampling import latents
from dcgan.training.configuration import MethodConfig
from dcgan.training.losses import LOSSES
from dcgan.training.state import NonFiniteError, check_finite, check_state, check_weights
from dcgan.training.step import Training
from tests.families import configure

FLOAT, BFLOAT = Arithmetic("cpu", torch.float32), Arithmetic("cpu", torch.bfloat16)
BATCH = 8
NETWORKS = {
    "dcgan": configure("dcgan", image_size=28, channels=1, width=4, z_dim=6),
    "dcgan with classes": configure("dcgan", image_size=32, channels=3, width=2, z_dim=6, num_classes=3),
    "cdcgan": configure("cdcgan", image_size=28, channels=1, width=8, z_dim=6, num_classes=2),
    "keras": configure("keras", image_size=28, channels=1, width=1, z_dim=6, num_classes=2),  # has dropout
    "gan": configure("gan", image_size=28, channels=3, z_dim=6),
}
WITH_MEANS = [kind for kind in NETWORKS if kind != "cdcgan"]  # between real and fake logits, from the first step on
METHODS: list[dict[str, Any]] = [
    {},
    {"augment": "color,translation,cutout"},
    {"loss": "wgan"},
    {"loss": "wgan-gp", "augment": "cutout"},
]
PAIRS = [
    pytest.param(kind, method, id=f"{kind}-{','.join(map(str, method.values())) or 'log'}")
    for kind in NETWORKS
    for method in METHODS
    if kind in WITH_MEANS or "loss" not in method
]


def start(kind: str = "dcgan", arithmetic: Arithmetic = FLOAT, seed: int = 3, **method: Any) -> Training:
    return Training(NETWORKS[kind], MethodConfig(**method), arithmetic, seed)


def batch(network: FamilyConfig, number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    shape = (BATCH, network.image_size, network.image_size, network.channels)
    return rng.integers(0, 256, shape, np.uint8), rng.integers(0, max(1, network.num_classes), BATCH)


def run(training: Training, steps: range) -> list[dict[str, float]]:
    """The steps' scalars."""
    results = [training.step(*batch(training.network, step), step * BATCH) for step in steps]
    return [{name: value.item() for name, value in result.items()} for result in results]


def saved(training: Training) -> bytes:
    """The state as a checkpoint holds it."""
    return model_files.to_bytes(training.state())


@pytest.mark.parametrize("arithmetic", [FLOAT, BFLOAT], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "method"), PAIRS)
def test_a_run_that_was_interrupted_is_the_run_that_was_not_bit_for_bit(
    kind: str, arithmetic: Arithmetic, method: dict[str, Any]
) -> None:
    never_stopped = start(kind, arithmetic, **method)
    run(never_stopped, range(2))
    checkpoint = saved(never_stopped)
    expected, end = run(never_stopped, range(2, 5)), saved(never_stopped)

    torch.manual_seed(999)  # another process, where other things have drawn
    resumed = start(kind, arithmetic, **method)
    run(resumed, range(7, 8))  # whatever it did before is gone
    resumed.load_state(model_files.from_bytes(checkpoint))
    assert saved(resumed) == checkpoint
    torch.rand(17)
    assert run(resumed, range(2, 5)) == expected
    assert saved(resumed) == end != checkpoint


def test_loading_a_state_of_before_the_first_step_starts_anew() -> None:
    first, second = start(seed=3), start(seed=4)
    second.load_state(model_files.from_bytes(saved(first)))
    second.seed = 3
    assert run(second, range(2)) == run(first, range(2))


def test_the_state_is_flat_named_tensors_that_move_with_every_step() -> None:
    training = start("keras")
    run(training, range(1))
    before = model_files.from_bytes(saved(training))
    run(training, range(1, 2))
    after = model_files.from_bytes(saved(training))
    assert {type(value) for value in training.state().values()} == {Tensor}
    owners = {"generator", "discriminator", "average", "generator_adam", "discriminator_adam"}
    assert {name.split(".")[0] for name in after} == owners
    assert before.keys() == after.keys()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    # the average's own batch statistics are never used: the export takes new ones
    unmoved = {name for name in after if name not in moved and not name.startswith("average.layers")}
    assert unmoved == set()


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_seed_and_the_position_decide_a_step_and_nothing_drawn_elsewhere_does(kind: str) -> None:
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
    """One rank's step on its share of a batch; leaves its gradients."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meet}", rank=rank, world_size=len(shares))
    training = Training(NETWORKS["dcgan"], MethodConfig(), FLOAT, 3, len(shares))
    images_BHWC, labels_B = batch(training.network, 0)
    share = shares[rank]
    training.step(images_BHWC[share], labels_B[share], 40, share.start, BATCH)
    torch.save([weight.grad for weight in training.discriminator.parameters()], out / f"{rank}")
    torch.distributed.destroy_process_group()


def test_ranks_with_unequal_shares_count_each_image_alike(tmp_path: Path) -> None:
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


def test_a_state_of_other_networks_is_refused() -> None:
    other = Training(configure("dcgan", image_size=28, channels=1, width=5, z_dim=6), MethodConfig(), FLOAT, 0)
    for state in (start("dcgan with classes").state(), start("keras").state(), {}):
        with pytest.raises(RuntimeError):
            other.load_state(state)


@pytest.mark.parametrize("arithmetic", [FLOAT, BFLOAT], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["dcgan", "dcgan with classes"])
def test_an_export_is_in_eval_mode_deterministic_and_leaves_training_alone(kind: str, arithmetic: Arithmetic) -> None:
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


def test_the_exported_generator_has_the_averaged_weights_and_batch_statistics_of_its_own() -> None:
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
    with torch.no_grad():  # of many images: their mean is near what the statistics say
        maps = generator.project(torch.randn(4000, 6, generator=torch.Generator().manual_seed(0)), None)
    spread = maps.std((0, 2, 3))
    assert ((maps.mean((0, 2, 3)) - means["layers.0.running_mean"]).abs() < 0.1 * spread).all()


def test_the_average_follows_the_generator_with_a_memory_that_grows_to_its_setting() -> None:
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


def test_clipping_bounds_every_weight_of_the_discriminator_and_none_of_the_generator() -> None:
    training = start("dcgan with classes", loss="wgan", clip=0.005)
    run(training, range(2))
    assert max(weight.abs().max().item() for weight in training.discriminator.parameters()) <= 0.005
    assert max(weight.abs().max().item() for weight in training.generator.parameters()) > 0.5  # batch norms' scales


def test_the_penalty_is_in_the_loss_with_its_weight() -> None:
    found = {}
    for weight in (1.0, 10.0):
        training = start(loss="wgan-gp", gradient_penalty=weight)
        result = training.step(*batch(training.network, 0), 0)
        real_B, fake_B = training.logits
        found[weight] = result["loss_d"].item() - (fake_B.mean() - real_B.mean()).item()
    assert found[1.0] > 0.1
    assert found[10.0] == pytest.approx(10 * found[1.0], rel=1e-4)


def test_the_discriminator_never_sees_an_image_that_was_not_augmented() -> None:
    """A cutout leaves grey in real images, in fakes, and in the fakes that the generator is judged by."""
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
def test_the_gradients_lengths_are_those_of_all_weights_together(method: dict[str, Any]) -> None:
    training = start("dcgan with classes", **method)
    (result,) = run(training, range(1))
    for name, network in (("gradient_d", training.discriminator), ("gradient_g", training.generator)):
        squares = sum(weight.grad.double().square().sum().item() for weight in network.parameters())
        assert result[name] == pytest.approx(squares**0.5, rel=1e-5)


def test_a_critics_accuracies_are_of_the_border_halfway_between_its_means() -> None:
    training = start(loss="wgan-gp")
    with torch.no_grad():
        training.discriminator.head.bias.fill_(100.0)  # no logit is anywhere near 0
    (result,) = run(training, range(1))
    real_B, fake_B = training.logits
    border = (real_B.mean() + fake_B.mean()) / 2
    assert result["real_accuracy"] == (real_B > border).float().mean()
    assert result["fake_accuracy"] == (fake_B < border).float().mean() > 0


@pytest.mark.parametrize("loss", ["log", "hinge"])
@pytest.mark.parametrize("kind", WITH_MEANS)
def test_a_few_steps_on_one_batch_lower_the_discriminators_loss(kind: str, loss: str) -> None:
    training = start(kind, loss=loss, discriminator_lr=1e-3)
    images, labels = batch(training.network, 0)
    losses = [training.step(images, labels, 0)["loss_d"].item() for _ in range(12)]
    assert np.mean(losses[-3:]) < 0.75 * losses[0]


@pytest.mark.parametrize("loss", ["log", "hinge"])
def test_cdcgans_discriminator_gets_ahead_slowly_as_its_last_norm_hides_the_means(loss: str) -> None:
    training = start("cdcgan", loss=loss, discriminator_lr=1e-3)
    images, labels = batch(training.network, 0)
    losses = [training.step(images, labels, 0)["loss_d"].item() for _ in range(40)]
    assert 0.9 * losses[0] < np.mean(losses[-3:]) < 0.995 * losses[0]


@pytest.mark.parametrize("loss", ["wgan", "wgan-gp"])
def test_no_critic_is_asked_to_go_by_means_that_are_hidden(loss: str) -> None:
    with pytest.raises(ValueError, match=f"^loss is {loss}; with network cdcgan, .* it must be log or hinge; or take"):
        start("cdcgan", loss=loss)


def test_a_frozen_discriminator_is_fooled_more_with_every_step_of_the_generator() -> None:
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
def test_a_steps_losses_are_those_of_its_images_labels_and_latents(kind: str, loss: str) -> None:
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


def test_a_step_moves_both_networks_and_leaves_no_gradient_switched_off() -> None:
    training = start("dcgan with classes")
    before = {name: value.detach().clone() for name, value in training.state().items()}
    run(training, range(1))
    for part in ("generator", "discriminator"):
        network = getattr(training, part)
        assert all(parameter.requires_grad for parameter in network.parameters())
        moved = [not torch.equal(before[f"{part}.{name}"], value) for name, value in network.named_parameters()]
        assert all(moved)


@pytest.mark.parametrize("where", ["generator", "discriminator"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_weight_makes_a_loss_that_stops_the_run_with_its_values(where: str, bad: float) -> None:
    training = start()
    with torch.no_grad():
        next(getattr(training, where).parameters()).fill_(bad)
    (result,) = run(training, range(1))
    with pytest.raises(NonFiniteError) as caught:
        check_finite({name: result[name] for name in ("loss_d", "loss_g")}, BATCH)
    assert str(caught.value) == "loss_d = nan, loss_g = nan after 8 images"


def test_a_rate_that_is_far_too_high_is_found_out() -> None:
    training = start(loss="hinge", generator_lr=1.0, discriminator_lr=1.0)
    with torch.no_grad():
        training.discriminator.head.weight.fill_(3e38)
    losses = [value for result in run(training, range(5)) for value in (result["loss_d"], result["loss_g"])]
    with pytest.raises(NonFiniteError, match=r" = (nan|-?inf)"):
        check_finite({f"loss {n}": value for n, value in enumerate(losses)}, 5 * BATCH)


@pytest.mark.parametrize(
    ("scalars", "message"),
    [
        ({"loss_d": math.nan, "loss_g": 0.5}, "loss_d = nan after 640 images"),
        ({"loss_d": 0.5, "loss_g": -math.inf}, "loss_g = -inf after 640 images"),
        ({"loss_d": math.inf, "loss_g": math.nan}, "loss_d = inf, loss_g = nan after 640 images"),
    ],
)
def test_only_what_is_not_finite_is_named(scalars: dict[str, float], message: str) -> None:
    with pytest.raises(NonFiniteError) as caught:
        check_finite(scalars, 640)
    assert str(caught.value) == message
    check_finite({"loss_d": 0.0, "loss_g": -1e30}, 640)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_named(bad: float) -> None:
    training = start()
    run(training, range(1))
    check_weights(training.state(), BATCH)
    with torch.no_grad():
        training.discriminator.head.weight.view(-1)[-1] = bad
    with pytest.raises(NonFiniteError) as caught:
        check_weights(training.state(), BATCH)
    assert str(caught.value) == "discriminator.head.weight holds values that are not finite after 8 images"
    training.generator_adam.state[next(training.generator.parameters())]["exp_avg"].fill_(bad)
    with pytest.raises(NonFiniteError, match=r"^discriminator.head.weight .* \(and 1 more tensors\) after 8 images$"):
        check_weights(training.state(), BATCH)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_state_is_known_by_its_tensors_before_it_is_loaded(kind: str) -> None:
    training = start(kind)
    run(training, range(1))
    state = training.state()
    check_state(state, NETWORKS[kind])
    other = {name: value for name, value in state.items() if name != "generator_adam.0.step"}
    with pytest.raises(
        ValueError, match=r"^another network's: generator_adam.0.step is absent, not torch.float32 \(\)$"
    ):
        check_state(other, NETWORKS[kind])
    with pytest.raises(ValueError, match=r"^another network's: more is torch.float32 \(2,\), not absent$"):
        check_state({**state, "more": torch.zeros(2)}, NETWORKS[kind])
    with pytest.raises(ValueError, match=r"^another network's: "):
        check_state(state, NETWORKS["keras" if kind != "keras" else "gan"])


def test_a_digest_is_of_all_that_a_state_holds() -> None:
    first, second = start(seed=3), start(seed=3)
    assert first.digest() == second.digest() != start(seed=4).digest()
    run(first, range(1))
    second.load_state(model_files.from_bytes(saved(first)))
    assert first.digest() == second.digest()
    second.discriminator_adam.state[next(second.discriminator.parameters())]["exp_avg_sq"].view(-1)[0] += 1
    assert first.digest() != second.digest()


@pytest.mark.long  # a minute of a C++ compiler
@pytest.mark.parametrize("arithmetic", [FLOAT, BFLOAT], ids=["float32", "bfloat16"])
def test_compiled_networks_learn_the_same(arithmetic: Arithmetic) -> None:
    plain, compiled = (
        run(start(arithmetic=arithmetic), range(4)),
        run(start(arithmetic=arithmetic, compile=True), range(4)),
    )
    for mine, theirs in zip(plain, compiled, strict=True):
        assert theirs["loss_d"] == pytest.approx(mine["loss_d"], abs=0.05)
        assert theirs["loss_g"] == pytest.approx(mine["loss_g"], abs=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "gan"}, "loss is 'gan'; it must be 'log', 'hinge', 'wgan' or 'wgan-gp'"),
        (
            {"loss": "wgan-gp", "label_smoothing": 0.1},
            "label_smoothing is 0.1; it must be 0 with loss wgan-gp, which has no target",
        ),
        (
            {"loss": "wgan-gp", "compile": True},
            "compile is set with loss wgan-gp; torch.compile has no gradients of gradients",
        ),
        (
            {"loss": "wgan-gp", "sync_batch_norm": True},
            "sync_batch_norm is set with loss wgan-gp, whose penalty it would change: the points between real and fake "
            "images are normalised by each worker's own statistics; leave it out, or take another loss",
        ),
        ({"clip": 0.0}, "clip is 0.0; it must be greater than 0"),
        ({"gradient_penalty": -1.0}, "gradient_penalty is -1.0; it must be greater than 0"),
        ({"augment": "flip"}, "augment is 'flip'; it must be some of color,translation,cutout, joined by commas"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1; it must be greater than or equal to 0"),
        ({"label_smoothing": 0.6}, "label_smoothing is 0.6; it must be less than or equal to 0.5"),
        ({"beta1": 1.0}, "beta1 is 1.0; it must be less than or equal to 0.999"),
        ({"ema": 1.0}, "ema is 1.0; it must be less than or equal to 0.99999"),
        ({"ema": math.nan}, "ema is nan; it must be a finite number"),
        ({"generator_lr": 0.0}, "generator_lr is 0.0; it must be greater than 0"),
        ({"discriminator_lr": 1.5}, "discriminator_lr is 1.5; it must be less than or equal to 1"),
        ({"discriminator_lr": math.nan}, "discriminator_lr is nan; it must be a finite number"),
    ],
)
def test_a_method_that_makes_no_sense_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        MethodConfig(**changes)
    assert reason(caught.value) == message
