"""Models on storage: one that a run replaces meanwhile is read whole or not at all, and a copy is mended."""

import itertools
import json
import threading
from pathlib import Path

import pytest
import torch

from dcgan import model_card, model_files
from dcgan.errors import ModelError
from dcgan.families.registry import build
from dcgan.model_card import CARD, WEIGHTS
from dcgan.model_files import Model
from jobs.command import model_store
from jobs.generation.main import _claim
from jobs.training import run_store
from pipelines.dataset.identity import GenerateIdentity, ImageFormat
from pipelines.storage.folder import Folder
from tests.families import configure


def make(seed: int) -> Model:
    torch.manual_seed(seed)
    return Model(*build(configure("dcgan", image_size=28, channels=1, width=1, z_dim=3)), None, {"images": seed})


def replace(run: Folder, model: Model, tick: int) -> None:
    """Publish a new best model, name it, and drop the one before at once, as runs of earlier versions did."""
    name, before = f"models/{tick:012d}", f"models/{tick - 1:012d}"
    model_store.save(model, run / name)
    run.write(model_store.BEST, json.dumps({"model": name}).encode())
    run_store.delete(run, before, model_store.FILES)


def test_a_model_that_a_run_replaces_meanwhile_is_read_whole(tmp_path: Path) -> None:
    """At the start of each reading another thread begins to replace the best model, as a run that trains does."""
    run = Folder(str(tmp_path / "run"))
    made = [make(seed) for seed in range(4)]
    digests = {model_card.digest(model_files.pack(model)[CARD]) for model in made}
    replace(run, made[0], 0)
    turn, broken, over = threading.Event(), [], False

    def train() -> None:
        for tick in itertools.count(1):
            turn.wait()
            turn.clear()
            if over:
                return
            try:
                replace(run, made[tick % len(made)], tick)
            except BaseException as error:
                broken.append(error)
                raise

    trainer = threading.Thread(target=train)
    trainer.start()
    taken, met = [], 0
    try:
        for _ in range(40):
            turn.set()
            taken.append(model_store.open_model(run))
        while not met and len(taken) < 400:  # the same without another look is refused sooner or later
            turn.set()
            try:
                taken.append(model_store.read(model_store.find_model(run)))
            except ModelError:
                met += 1
    finally:
        over = True
        turn.set()
        trainer.join()
    assert not broken
    assert len({one.folder.url for _, one in taken}) > 5
    assert met, "no reading met a replacement: the test shows nothing"
    for model, one in taken:
        assert one.digest in digests
        assert one.digest == model_card.digest(one.files[CARD])
        assert model_files.pack(model) == one.files


def test_a_best_model_that_is_not_there_and_stays_so_is_an_error(tmp_path: Path) -> None:
    run = Folder(str(tmp_path / "run"))
    replace(run, make(0), 7)
    run.delete(f"models/{7:012d}/{WEIGHTS[1]}")
    with pytest.raises(ModelError) as error:
        model_store.open_model(run)
    where = f"{run}/models/000000000007/{WEIGHTS[1]}"
    assert str(error.value) == f"{where}: not found; the model is not complete"


def test_a_model_that_a_run_deletes_once_it_was_read_is_in_the_dataset_whole(tmp_path: Path) -> None:
    """Else the claim names a model that is nowhere, and the same command is refused for ever."""
    run, output = Folder(str(tmp_path / "run")), Folder(str(tmp_path / "synthetic"))
    replace(run, make(0), 1)
    _, opened = model_store.open_model(run)
    replace(run, make(1), 2)
    assert not opened.folder.list()
    shape = {"count": 4, "shard_size": 2, "image_size": 28, "channels": 1, "classes": None}
    identity = GenerateIdentity(
        producer="generate", model=opened.digest, image=ImageFormat(format="png"), arithmetic={}, **shape
    )
    _claim(output, identity, {}, opened)
    _, carried = model_store.read(output / model_store.IN_DATASET)
    assert (carried.digest, carried.files) == (opened.digest, opened.files)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "damaged, not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[]", "names no model of this run"),
        ("{}", "names no model of this run"),
        ('{"model": "../models/7"}', "names no model of this run"),
    ],
)
def test_a_best_that_is_damaged_is_refused_by_its_file(content: str, why: str, tmp_path: Path) -> None:
    (tmp_path / model_store.BEST).write_text(content)
    with pytest.raises(ModelError) as error:
        model_store.open_model(Folder(str(tmp_path)))
    assert str(error.value) == f"{tmp_path}/{model_store.BEST}: {why}"


@pytest.mark.parametrize("name", model_store.FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "a byte flipped", "of another model"])
def test_a_copy_that_is_damaged_or_half_there_is_mended(name: str, damage: str, tmp_path: Path) -> None:
    files, other = model_files.pack(make(0)), model_files.pack(make(1))
    place, folder = tmp_path / "model", Folder(str(tmp_path / "model"))
    model_store.store_files(files, folder)
    flipped = bytearray(files[name])
    flipped[len(flipped) // 2] ^= 1
    wrong = {"empty": b"", "cut": files[name][:-1], "a byte flipped": bytes(flipped), "of another model": other[name]}
    (place / name).unlink()
    if damage != "missing":
        (place / name).write_bytes(wrong[damage])
    before = {file: (place / file).stat().st_mtime_ns for file in model_store.FILES if file != name}
    model_store.store_files(files, folder)
    assert {file.name: file.read_bytes() for file in place.iterdir()} == files
    assert {file: (place / file).stat().st_mtime_ns for file in before} == before  # what is right is left alone


def test_a_copy_without_its_card_says_so(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "model"))
    folder.write(WEIGHTS[0], b"some bytes")
    with pytest.raises(ModelError) as error:
        model_store.open_model(folder)
    assert str(error.value) == (
        f"{folder}/{CARD}: missing: the model was copied only in part; copy it again, or name the original"
    )
