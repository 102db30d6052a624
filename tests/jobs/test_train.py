"""Training runs: what they leave behind, how they go on, and when they refuse to."""

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs import generate, ingest, train
from jobs.command import model_store
from jobs.command.errors import LostWorkError, UsageError
from jobs.training import checkpoints, run_store
from pipelines.storage.folder import Folder
from tests.conftest import digits_settings
from tests.pages import parsed

Train = Callable[..., None]
SCALARS = (
    *("loss_d", "loss_g", "real_accuracy", "fake_accuracy", "gradient_d", "gradient_g"),
    *("images_per_second", "data_wait_share", "kernel_distance", "diversity", "memory_mib"),
)
TIMED = ("images_per_second", "data_wait_share", "memory_mib")
FIRST, LAST = "checkpoints/000000001280", "checkpoints/000000002560"


@pytest.fixture
def again(digits: Path, digits_run: Path, tmp_path: Path) -> tuple[Path, Train]:
    """A copy of digits_run, and its command with some settings changed."""
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    begun: dict[str, Any] = {
        **digits_settings(),
        **{"data": str(digits), "run": str(run), "images": 2560, "tick": 1280, "workers": 2},
    }
    return run, lambda **changes: train.main(train.TrainSettings(**{**begun, **changes}))


def ticks(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_leaves(digits_run: Path) -> None:
    """Two DDP workers, two ticks."""
    identity = json.loads((digits_run / "run.json").read_text())["identity"]
    assert identity["network"] == {
        **{"network": "dcgan", "image_size": 28, "channels": 1, "width": 16, "z_dim": 100, "num_classes": 10}
    }
    assert identity["method"] == {
        **{"loss": "log", "label_smoothing": 0.1, "clip": 0.01, "gradient_penalty": 10.0, "augment": ""},
        **{"generator_lr": 5e-4, "discriminator_lr": 5e-4, "beta1": 0.5, "ema": 0.998},
        **{"sync_batch_norm": False, "compile": False},
    }
    stats = ticks(digits_run)
    assert [tick["images"] for tick in stats] == [1280, 2560]
    for tick in stats:
        for name in SCALARS:
            assert np.isfinite(tick[name])
        assert min(tick["gradient_d"], tick["gradient_g"], tick["diversity"]) > 0
        assert 100 < tick["memory_mib"] < 10_000
    assert names(digits_run / "grids") == ["000000001280.png", "000000002560.png"]
    for picture in ("reals.png", "grids/000000001280.png", "grids/000000002560.png"):
        assert Image.open(digits_run / picture).size == ((10 * 30 + 2) * 2, (10 * 30 + 2) * 2)  # ten rows of ten
    assert names(digits_run / "checkpoints") == ["000000001280", "000000002560"]
    best = json.loads((digits_run / "best.json").read_text())
    assert best["metric"] == "kernel_distance"
    assert best["value"] == min(tick["kernel_distance"] for tick in stats)
    assert {best["protocol"], *(tick["protocol"] for tick in stats)} == {
        "squared MMD, cubic kernel, 384 features of a random convolutional network (seed 0); "
        f"200 real and as many fake, seeds from {2**62}"
    }
    assert best["model"] == f"models/{best['images']:012d}"
    model, digest = model_store.load(model_store.find_model(Folder(str(digits_run))))
    assert model.classes == [str(digit) for digit in range(10)]
    assert model.provenance["data"] == identity["data"]
    assert len(digest) == 64
    [curves] = (digits_run / "tensorboard").iterdir()
    assert curves.name.startswith("events.out.tfevents.")
    assert list(Path(os.environ["TMPDIR"]).glob(f"ganmill-scratch-*/{curves.name}")) == []
    events = EventAccumulator(str(curves), size_guidance={"histograms": 0}).Reload()  # type: ignore[no-untyped-call]
    assert {*events.Tags()["scalars"]} == {*SCALARS}
    for name in ("logits/real", "logits/fake"):
        drawn = events.Histograms(name)
        assert [(event.step, event.histogram_value.num) for event in drawn] == [(1280, 32), (2560, 32)]
    page = parsed.check((digits_run / "report.html").read_bytes())
    assert "No warnings" in page.words
    assert "Finished" in page.words
    assert len([element for element in page.elements if "data-frame" in element.attributes]) == 2


@pytest.mark.slow
def test_interrupted_equals_uninterrupted_and_keep(
    digits_run: Path, again: tuple[Path, Train], capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest checkpoint is cut short: the run goes back to the one before, and comes by the same tensors again."""
    run, go_on = again
    state = run / LAST / "state.safetensors"
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])

    go_on(images=3840, keep=2)

    out, err = capsys.readouterr()
    assert f"train: {state} is damaged (its bytes are not those that were saved); trying the one before\n" in err
    assert "going on after 1,280 images" in out
    assert names(run / "checkpoints") == ["000000002560", "000000003840"]
    before, after = load_file(digits_run / LAST / "state.safetensors"), load_file(state)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert state.read_bytes() == whole
    stats = ticks(run)
    assert [tick["images"] for tick in stats] == [1280, 2560, 3840]
    assert [untimed(tick) for tick in stats[:2]] == [untimed(tick) for tick in ticks(digits_run)]
    first, second = (folder / "grids" / "000000002560.png" for folder in (digits_run, run))
    assert first.read_bytes() == second.read_bytes()


def test_a_finished_run_has_nothing_to_do(again: tuple[Path, Train], capsys: pytest.CaptureFixture[str]) -> None:
    run, go_on = again
    go_on(images=2560)  # the report is written anew, to the same words
    before = files(run)
    go_on(images=2000)
    assert f"train: {run} has seen 2,560 images already; nothing to do (more: --images)" in capsys.readouterr().out
    assert files(run) == before


def test_no_whole_checkpoint_is_refused(again: tuple[Path, Train]) -> None:
    run, go_on = again
    (run / FIRST / "checkpoint.json").write_text("{")
    (run / LAST / "state.safetensors").unlink()
    with pytest.raises(UsageError) as error:
        go_on(images=3840)
    assert str(error.value) == (
        f"{run}: none of its 2 checkpoints is complete ({run}/{LAST}/state.safetensors: not found); use another "
        "--run to start anew"
    )


@pytest.mark.parametrize(
    ("change", "field", "before", "now"),
    [
        ({"width": 8}, "network.width", "16", "8"),
        ({"conditional": False}, "network.num_classes", "10", "0"),
        ({"generator_lr": 1e-3}, "method.generator_lr", "0.0005", "0.001"),
        ({"augment": "cutout"}, "method.augment", '""', '"cutout"'),
        ({"batch_size": 32}, "batch", "64", "32"),
        ({"shuffle": 100}, "shuffle", "16384", "100"),
        ({"seed": 1}, "seed", "0", "1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_changed_setting_is_refused(
    again: tuple[Path, Train], change: dict[str, Any], field: str, before: str, now: str
) -> None:
    run, go_on = again
    with pytest.raises(UsageError) as error:
        go_on(**change)
    assert str(error.value) == (
        f"{run}: claimed with {field} = {before}, this run has {now}; use the same settings to go on, or another --run "
        "(docs/settings.md lists the settings that may change)"
    )


def test_synchronised_batch_norm_needs_gpus(again: tuple[Path, Train]) -> None:
    _, go_on = again
    with pytest.raises(UsageError) as error:
        go_on(sync_batch_norm=True)
    assert str(error.value) == "--sync-batch-norm: torch has it on GPUs only; leave it out on CPUs"


def test_recipe_for_other_images_is_refused(again: tuple[Path, Train], digits: Path) -> None:
    _, go_on = again
    with pytest.raises(UsageError) as error:
        go_on(recipe="dcgan64", image_size=64, channels=3)
    assert str(error.value) == (
        f"recipe dcgan64 is for 64x64x3, but {digits} holds 28x28x1; use another --recipe (dcgan64 for 64x64x3), "
        "--image-size 28 --channels 1, or ingest again with --image-size 64 --channels 3"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tensor", "factor", "words"),
    [
        ("discriminator.head.weight", 1e38, "loss_d = "),
        # the generator's update is a step's last: its losses are finite still
        ("generator_adam.0.exp_avg", 1e44, r"generator\.\S+ holds values that are not finite \(and \d+ more tensors\)"),
        # finite themselves, but not what they make of a latent
        ("average.", 1e34, r"exported average\.\S+ holds values that are not finite \(and \d+ more tensors\)"),
    ],
    ids=["loss", "weights", "export"],
)
def test_what_is_not_finite_stops_the_run_and_is_not_kept(
    tensor: str, factor: float, words: str, again: tuple[Path, Train]
) -> None:
    """No learning rate that is allowed gets there within hundreds of steps; values near float32's end do at once."""
    run, go_on = again
    state = load_file(run / LAST / "state.safetensors")
    for name, value in state.items():
        if (name == tensor or (name.startswith("average.") and tensor == "average.")) and value.is_floating_point():
            state[name] = (value.double() * factor).clamp(-3e38, 3e38).float()
    if tensor.startswith("generator_adam"):
        state["generator_adam.0.exp_avg_sq"].zero_()  # Adam divides by its root
    checkpoints.save(Folder(str(run)), 2560, state, keep=2)
    before = files(run)
    with pytest.raises(LostWorkError) as error:
        go_on(images=3840, tick=64)
    text = str(error.value)
    assert re.match(f"step 41: {words}", text), text
    assert text.endswith(f" after 2624 images; last good checkpoint: 2,560 images in {run}"), text
    assert files(run) == before


def files(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_run_whose_last_save_was_one_on_preemption_makes_its_last_tick(
    again: tuple[Path, Train], digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an earlier version left it: the checkpoint of the end, without its statistics, picture and model."""
    run, go_on = again
    first = ticks(digits_run)[0]
    best = {"model": f"models/{1280:012d}", "images": 1280, "metric": "kernel_distance"}
    folder = Folder(str(run))
    run_store.write_stats(folder, [first])
    run_store.write_best(folder, {**best, "value": first["kernel_distance"], "protocol": first["protocol"]})
    (run / "grids" / "000000002560.png").unlink()

    go_on(images=2560)

    out, err = capsys.readouterr()
    assert f"train: {run}: the checkpoint of 2,560 images has no tick in stats.jsonl; trying the one before" in err
    assert "; going on after 1,280 images" in out
    assert [untimed(tick) for tick in ticks(run)] == [untimed(tick) for tick in ticks(digits_run)]
    for name in ("best.json", "grids/000000002560.png", f"{LAST}/state.safetensors"):
        assert (run / name).read_bytes() == (digits_run / name).read_bytes()

    shutil.rmtree(run / FIRST)
    for name in ("best.json", "stats.jsonl"):
        (run / name).unlink()
    with pytest.raises(UsageError) as error:
        go_on(images=2560)
    assert str(error.value).startswith(
        f"{run}: no best.json here: its models were not measured yet (go on with more --i"
    )


def untimed(tick: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tick.items() if name not in TIMED}


@pytest.mark.parametrize("content", [None, "", "{}", "[]"])
@pytest.mark.parametrize("name", ["run.json", "stats.jsonl", "best.json"])
def test_a_finished_run_with_a_damaged_file_is_refused_by_its_name(
    name: str, content: str | None, again: tuple[Path, Train]
) -> None:
    run, go_on = again
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    if content is None and name == "run.json":
        return go_on(images=2560)  # it is claimed anew
    with pytest.raises(UsageError, match=f"^{run}/{name}: "):
        go_on(images=2560)


@pytest.mark.slow
def test_a_run_that_goes_wrong_is_told_of_once_and_in_the_report(
    again: tuple[Path, Train], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A generator that does not learn: six ticks of five steps."""
    _, start = again
    run = tmp_path / "wrong"
    start(run=str(run), generator_lr=1e-9, discriminator_lr=2e-3, images=1920, tick=320)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train: warning: ")]
    strong = [line for line in told if line.startswith("train: warning: the discriminator is too strong: from ")]
    assert len(strong) == 1, ticks(run)
    words = parsed.check((run / "report.html").read_bytes()).words
    assert len(re.findall("Warning: ", words)) == len(told)
    for line in told:
        assert line.removeprefix("train: warning: ").replace(": ", " ", 1) in words


@pytest.mark.long  # tests/dcgan/training/test_ddp.py has two ranks without Ray
def test_wasserstein_with_penalty_and_augmentation_on_two_workers(again: tuple[Path, Train], tmp_path: Path) -> None:
    _, start = again
    run, new = tmp_path / "new", {"loss": "wgan-gp", "label_smoothing": 0.0, "augment": "color,translation,cutout"}
    start(run=str(run), images=640, tick=320, **new)
    stats = ticks(run)
    assert [tick["images"] for tick in stats] == [320, 640]
    assert np.isfinite([tick[name] for tick in stats for name in SCALARS]).all()


def test_a_critic_has_no_target_to_smooth(again: tuple[Path, Train], tmp_path: Path) -> None:
    _, start = again
    with pytest.raises(UsageError) as error:
        start(run=str(tmp_path / "new"), loss="wgan")
    assert str(error.value) == "label_smoothing is 0.1; it must be 0 with loss wgan, which has no target"


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["keras28", "gan28", "dcgan64", "emoji64"])
def test_recipes_train_and_generate(recipe: str, digits: Path, tmp_path: Path) -> None:
    """Two steps each on a fitting dataset, then eight images."""
    data, run, output = digits, tmp_path / "run", tmp_path / "synthetic"
    small: dict[str, Any] = {"width": 8, "batch_size": 16, "metric_images": 100, "images": 32, "workers": 2}
    if recipe.endswith("64"):
        data = tmp_path / "real"
        ingest.main(
            ingest.IngestSettings(
                source=str(idx(tmp_path / "idx", 200)), split="train", output=str(data), image_size=64, channels=3,
                shard_size=50,
            )
        )  # fmt: skip
    settings = {**train.TrainSettings.preset({"recipe": recipe}), **small, "recipe": recipe}
    train.main(train.TrainSettings(**settings, data=str(data), run=str(run)))
    assert [tick["images"] for tick in ticks(run)] == [32]
    assert ("efficientnet-lite0" in ticks(run)[0]["protocol"]) == recipe.endswith("64")  # colour is looked at
    generate.main(generate.GenerateSettings(model=str(run), output=str(output), count=8, shard_size=8))
    assert len(names(output / "shards")) == 1


def idx(folder: Path, count: int) -> Path:
    """MNIST's format: images and labels of noise."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes())
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + bytes(count))
    return folder
