"""The training state: resuming, its layout and digest, and the detection of values that are not finite."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dcgan import model_files
from dcgan.arithmetic import Arithmetic
from dcgan.training.configuration import MethodConfig
from dcgan.training.state import NonFiniteError, check_finite, check_state, check_weights
from dcgan.training.step import Training
from tests.families import configure
from tests.training_runs import BATCH, BFLOAT, FLOAT, METHODS, NETWORKS, WITH_MEANS, run, saved, start

PAIRS = [
    pytest.param(kind, method, id=f"{kind}-{','.join(map(str, method.values())) or 'log'}")
    for kind in NETWORKS
    for method in METHODS
    if kind in WITH_MEANS or "loss" not in method
]


@pytest.mark.parametrize(
    "arithmetic", [FLOAT, pytest.param(BFLOAT, marks=pytest.mark.slow)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize(("kind", "method"), PAIRS)
def test_an_interrupted_run_equals_an_uninterrupted_one_bit_for_bit(
    kind: str, arithmetic: Arithmetic, method: dict[str, Any]
) -> None:
    never_stopped = start(kind, arithmetic, **method)
    run(never_stopped, range(2))
    checkpoint = saved(never_stopped)
    expected, end = run(never_stopped, range(2, 5)), saved(never_stopped)

    torch.manual_seed(999)  # a new process has another random state
    resumed = start(kind, arithmetic, **method)
    run(resumed, range(7, 8))  # loading the state overwrites these steps
    resumed.load_state(model_files.from_bytes(checkpoint))
    assert saved(resumed) == checkpoint
    torch.rand(17)
    assert run(resumed, range(2, 5)) == expected
    assert saved(resumed) == end != checkpoint


def test_loading_an_initial_state_restarts_training() -> None:
    first, second = start(seed=3), start(seed=4)
    second.load_state(model_files.from_bytes(saved(first)))
    second.seed = 3
    assert run(second, range(2)) == run(first, range(2))


def test_the_state_is_named_tensors_that_change_with_every_step() -> None:
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
    # the average's own batch statistics are never used, because the export computes new ones
    unmoved = {name for name in after if name not in moved and not name.startswith("average.layers")}
    assert unmoved == set()


def test_a_state_of_other_networks_is_refused() -> None:
    other = Training(configure("dcgan", image_size=28, channels=1, width=5, z_dim=6), MethodConfig(), FLOAT, 0)
    for state in (start("dcgan with classes").state(), start("keras").state(), {}):
        with pytest.raises(RuntimeError):
            other.load_state(state)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_state_of_another_network_is_refused_before_loading(kind: str) -> None:
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


def test_the_digest_covers_the_whole_state() -> None:
    first, second = start(seed=3), start(seed=3)
    assert first.digest() == second.digest() != start(seed=4).digest()
    run(first, range(1))
    second.load_state(model_files.from_bytes(saved(first)))
    assert first.digest() == second.digest()
    second.discriminator_adam.state[next(second.discriminator.parameters())]["exp_avg_sq"].view(-1)[0] += 1
    assert first.digest() != second.digest()


@pytest.mark.parametrize("where", ["generator", "discriminator"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_stops_the_run_with_the_losses(where: str, bad: float) -> None:
    training = start()
    with torch.no_grad():
        next(getattr(training, where).parameters()).fill_(bad)
    (result,) = run(training, range(1))
    with pytest.raises(NonFiniteError) as caught:
        check_finite({name: result[name] for name in ("loss_d", "loss_g")}, BATCH)
    assert str(caught.value) == "loss_d = nan, loss_g = nan after 8 images"


def test_divergence_at_a_high_learning_rate_is_detected() -> None:
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
def test_the_message_names_only_scalars_that_are_not_finite(scalars: dict[str, float], message: str) -> None:
    with pytest.raises(NonFiniteError) as caught:
        check_finite(scalars, 640)
    assert str(caught.value) == message
    check_finite({"loss_d": 0.0, "loss_g": -1e30}, 640)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_message_names_a_weight_that_is_not_finite(bad: float) -> None:
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
