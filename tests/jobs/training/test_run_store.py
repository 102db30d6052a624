"""A run's folder: which checkpoint is gone on from, what is damaged, and which models stay."""

import errno
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcgan import model_files
from dcgan.arithmetic import Arithmetic
from dcgan.training.configuration import MethodConfig
from dcgan.training.step import Training
from jobs.command import model_store
from jobs.command.errors import UsageError
from jobs.training import checkpoints, loop, run_store
from pipelines.errors import CorruptError
from pipelines.storage.folder import Folder, MissingError, StorageError, UnreachableError
from tests.families import configure

NETWORK = configure("dcgan", image_size=28, channels=1, width=4, z_dim=6)
SCHEDULE = checkpoints.TickSchedule(NETWORK, batch=16, tick=32, total=96)
TICK = {
    **{"images": 32, "loss_d": 1.0, "loss_g": 1.0, "real_accuracy": 0.5, "fake_accuracy": 0.5, "diversity": 0.9},
    **{"gradient_d": 1.0, "gradient_g": 1.0, "kernel_distance": 3.0, "images_per_second": 10.0, "protocol": "p"},
}
BEST = {"model": f"models/{32:012d}", "images": 32, "metric": "kernel_distance", "value": 3.0, "protocol": "p"}


def begin(place: Path) -> Folder:
    run_store.claim_run(Folder(str(place)), {"seed": 3}, {"seed": 3})
    return Folder(str(place))


def step(training: Training, seen: int) -> dict[str, torch.Tensor]:
    return training.step(
        np.random.default_rng(seen).integers(0, 256, (16, 28, 28, 1), np.uint8), np.zeros(16, np.int64), seen
    )


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """After a step. Not to be changed."""
    training = Training(NETWORK, MethodConfig(), Arithmetic("cpu", "float32"), 3)
    step(training, 0)
    return training.state()


@pytest.fixture
def run(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    """Two ticks of 32 images, with their checkpoints."""
    folder = begin(tmp_path / "run")
    run_store.write_best(folder, BEST)
    run_store.write_stats(folder, [TICK, {**TICK, "images": 64}])
    for images in (32, 64):
        checkpoints.save(folder, images, state, 9)
    return tmp_path / "run"


def newest(run: Path, schedule: checkpoints.TickSchedule = SCHEDULE) -> int:
    return checkpoints.images_at_resume(Folder(str(run)), schedule)


def folder_of(run: Path, images: int) -> Path:
    return run / "checkpoints" / f"{images:012d}"


def test_the_newest_checkpoint_is_gone_on_from(run: Path, tmp_path: Path) -> None:
    assert newest(run) == 64
    assert newest(tmp_path / "none") == 0


def _swap_card(run: Path) -> None:
    (folder_of(run, 64) / "checkpoint.json").write_bytes((folder_of(run, 32) / "checkpoint.json").read_bytes())


def _change_card(change: dict[str, Any]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        card = folder_of(run, 64) / "checkpoint.json"
        card.write_text(json.dumps({**json.loads(card.read_text()), **change}))

    return damage


def _write(name: str, data: bytes) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (folder_of(run, 64) / name).write_bytes(data)

    return damage


def _save(other: dict[str, torch.Tensor]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        checkpoints.save(Folder(str(run)), 64, other, 9)

    return damage


def _not_finite(run: Path) -> None:
    """As earlier versions saved it."""
    whole = model_files.from_bytes((folder_of(run, 64) / "state.safetensors").read_bytes())
    whole["average.layers.0.weight"] = whole["average.layers.0.weight"] * math.nan
    checkpoints.save(Folder(str(run)), 64, whole, 9)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_write("state.safetensors", b""), "state.safetensors is damaged (its bytes are not those that were saved)"),
        (_write("checkpoint.json", b""), "checkpoint.json: damaged, not JSON: "),
        (_write("checkpoint.json", b"[]"), "checkpoint.json: damaged: its content: "),
        (_write("checkpoint.json", b"\xff"), "checkpoint.json: damaged, not JSON: "),
        (_write("checkpoint.json", b"[" * 100_000), "checkpoint.json: damaged, not JSON: "),
        (_write("checkpoint.json", b" " * (2 << 20)), "checkpoint.json: larger than 1,048,576 bytes"),
        (_change_card({"bytes": -1}), "checkpoint.json: damaged: bytes: "),
        (_change_card({"bytes": 10**30}), "checkpoint.json: damaged: bytes: "),
        (_change_card({"sha256": 5}), "checkpoint.json: damaged: sha256: "),
        (_change_card({"images": 32}), "state.safetensors is damaged (it is the checkpoint of 32 images)"),
        (_save({"x": torch.zeros(2)}), "state.safetensors is damaged (another network's: "),
        (
            _not_finite,
            "state.safetensors is damaged (average.layers.0.weight holds values that are not finite",
        ),
    ],
)
def test_one_that_is_not_whole_is_passed_over_and_said_so(
    damage: Callable[[Path], None], words: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run)
    assert newest(run) == 32
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"train: {folder_of(run, 64)}/{words}")
    assert line.endswith("; trying the one before")
    for file in folder_of(run, 32).iterdir():
        file.unlink()
    with pytest.raises(UsageError) as error:
        newest(run)
    assert str(error.value).startswith(f"{run}: none of its 1 checkpoints is complete ({folder_of(run, 64)}/{words}")
    assert str(error.value).endswith("; use another --run to start anew")


def test_checkpoints_that_are_gone_are_missed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_store.write_stats(Folder(str(run)), [{**TICK, "images": images} for images in (32, 64, 96)])
    (folder_of(run, 64) / "checkpoint.json").unlink()
    assert newest(run) == 32
    told = f"train: {run}: stats.jsonl reports 96 images, but the checkpoints after 32 are gone\n"
    assert capsys.readouterr().err == told
    (folder_of(run, 32) / "checkpoint.json").unlink()
    with pytest.raises(UsageError) as error:
        newest(run)
    assert str(error.value) == (
        f"{run}/checkpoints: none found, but stats.jsonl reports 96 images; restore them from a copy, or "
        "use another --run to start anew"
    )
    run_store.write_stats(Folder(str(run)), [TICK])  # the first tick's statistics, then a crash
    assert newest(run) == 0


@pytest.mark.parametrize("name", ["run.json", "best.json", "stats.jsonl", "checkpoint.json", "state.safetensors"])
def test_a_folder_where_a_file_is_to_be(name: str, run: Path) -> None:
    file = (run if (run / name).exists() else folder_of(run, 64)) / name
    file.unlink()
    file.mkdir()
    (file / "file").touch()

    def start() -> None:
        begin(run)
        run_store.read_progress(Folder(str(run)), newest(run))

    with pytest.raises(StorageError) as error:
        start()
    assert str(error.value) == f"{file}: a folder is where a file should be; move it away"


def test_one_without_its_tick_is_passed_over_for_the_one_before(
    run: Path, state: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    """Earlier versions saved on preemption at a tick's own step, and then left the tick out."""
    folder = Folder(str(run))
    checkpoints.save(folder, 80, state, 9)  # between two ticks: nothing is left out
    assert newest(run) == 80
    checkpoints.save(folder, 96, state, 9)
    assert newest(run) == 80
    assert f"train: {run}: the checkpoint of 96 images has no tick in stats.jsonl; trying" in capsys.readouterr().err
    assert newest(run, checkpoints.TickSchedule(NETWORK, 16, tick=40, total=128)) == 96  # no tick by these settings
    run_store.write_stats(folder, [])
    (run / "best.json").unlink()
    for images in (32, 64, 80):
        run_store.delete(folder, f"checkpoints/{images:012d}", ("checkpoint.json", "state.safetensors"))
    assert newest(run) == 96  # there is none before


def test_the_steps_since_the_last_tick_are_kept_with_a_checkpoint_between_two(
    run: Path, state: dict[str, torch.Tensor]
) -> None:
    folder, history = Folder(str(run)), {"loss_d": torch.tensor([0.1, 0.2]), "loss_g": torch.tensor([0.3, 0.4])}
    checkpoints.save(folder, 96, state, 9, history)
    settings = checkpoints.TickSchedule(NETWORK, 16, tick=32, total=128)
    assert newest(run, settings) == 96  # between two ticks of other settings
    assert newest(run) == 64  # the end's own tick is missing
    found = checkpoints.load(folder, 96, NETWORK)
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[name], state[name]) for name in state)
    assert {name: values.tolist() for name, values in found.history.items()} == {
        name: values.tolist() for name, values in history.items()
    }
    assert checkpoints.load(folder, 64, NETWORK).history == {}


def test_steps_that_were_kept_have_the_same_means() -> None:
    training = Training(NETWORK, MethodConfig(), Arithmetic("cpu", "float32"), 3)
    history = [step(training, seen) for seen in (0, 16, 32)]
    kept = checkpoints.unpack_history(model_files.from_bytes(model_files.to_bytes(checkpoints.pack_history(history))))
    assert [{n: float(v) for n, v in one.items()} for one in kept] == [
        {n: float(v) for n, v in one.items()} for one in history
    ]
    assert checkpoints.unpack_history({}) == []


def test_a_tick_ends_where_a_multiple_is_passed_and_at_the_end() -> None:
    schedule = checkpoints.TickSchedule(NETWORK, batch=16, tick=40, total=112)
    assert [seen for seen in range(16, 129, 16) if schedule.ends_tick(seen)] == [48, 80, 112, 128]


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (CorruptError("changed after the seal"), True),
        (MissingError("not found"), True),
        (StorageError("permission denied"), True),
        (UnreachableError("no answer"), False),
        (OSError(errno.ENOSPC, "no space left"), True),
        (OSError("gave up after 6 attempts"), False),
        (ConnectionResetError("by a rank that died"), False),
        (RuntimeError("connection closed by peer"), False),
    ],
)
def test_what_will_fail_again_is_known(error: Exception, again: bool) -> None:
    assert loop.will_fail_again(error) == again


@pytest.mark.parametrize("name", ["best.json", "stats.jsonl"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"images": "32"}', "\0", "null"])
def test_a_story_that_is_damaged_is_refused_by_its_file(name: str, content: str, run: Path) -> None:
    (run / name).write_text(content)
    with pytest.raises(UsageError) as error:
        run_store.read_progress(Folder(str(run)), 64)
    assert str(error.value).startswith(f"{run}/{name}: ")
    assert str(error.value).endswith("; restore it from a copy, or use another --run")


@pytest.mark.parametrize("name", ["best.json", "stats.jsonl"])
def test_a_story_of_which_one_half_is_gone_is_refused(name: str, run: Path) -> None:
    (run / name).unlink()
    with pytest.raises(UsageError, match=f"^{run}/{name}: not found"):
        run_store.read_progress(Folder(str(run)), 64)
    assert run_store.read_progress(Folder(str(run)), 16) in (([], None), ([], BEST))  # a first tick that was cut off


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": 1, "identity": {"seed": 3}}', '{"identity": {"seed": 3}, "settings": 5}', "\0"]
)
def test_a_claim_that_is_damaged_is_refused_by_its_file(content: str, run: Path) -> None:
    (run / "run.json").write_text(content)
    with pytest.raises(ValueError, match=f"^{run}/run.json: damaged"):
        begin(run)


def test_a_best_that_is_nan_is_replaced_and_what_is_behind_a_run_that_went_back() -> None:
    assert run_store.replaces_best(2.0, 64, BEST["protocol"], None)
    assert run_store.replaces_best(2.0, 64, BEST["protocol"], BEST)
    assert not run_store.replaces_best(3.0, 64, BEST["protocol"], BEST)
    assert run_store.replaces_best(3.5, 64, BEST["protocol"], {**BEST, "value": math.nan})
    assert run_store.replaces_best(3.5, 32, BEST["protocol"], BEST)


def test_a_best_by_another_protocol_is_replaced_as_its_distance_cannot_be_compared() -> None:
    assert run_store.replaces_best(3.5, 64, "other", BEST)
    assert not run_store.replaces_best(3.5, 64, BEST["protocol"], BEST)


def test_a_best_that_is_nan_is_read(run: Path) -> None:
    run_store.write_best(Folder(str(run)), {**BEST, "value": math.nan})
    _, best = run_store.read_progress(Folder(str(run)), 64)
    assert best is not None
    assert run_store.replaces_best(1e9, 96, BEST["protocol"], best)


def test_the_models_that_were_replaced_last_stay(run: Path) -> None:
    folder = Folder(str(run))
    for number in range(1, 6):
        name = f"models/{number * 32:012d}"
        for file in model_store.FILES:
            folder.write(f"{name}/{file}", b"x")
        run_store.write_best(folder, {**BEST, "model": name, "images": number * 32})
        there = sorted(path.name for path in (run / "models").iterdir())
        assert there == [f"{n * 32:012d}" for n in range(max(1, number - run_store.KEPT_MODELS), number + 1)]
