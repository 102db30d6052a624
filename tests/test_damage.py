"""Damage: every file of a dataset, of a model and of a half-made dataset, damaged in every way, before every command.

A command that reads a damaged file ends with one line that names it, and with status 1 or 2. It may end well only where
the damage cannot be seen in what it makes: the same bytes as without it. A traceback is never right.

Ray is not started. A command's main() runs up to the point where it joins a cluster; what its workers do is called
here, as is what the driver does with nothing left to do. The commands as users start them are the tests marked `long`.
"""

import dataclasses
import itertools
import json
import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from dcgan import model_card, numerics
from dcgan.families.registry import build
from dcgan.model_files import Model
from jobs import curate, evaluate, explore, generate, ingest, train, verify
from jobs.cluster import shard_worker
from jobs.cluster.connection import Pool
from jobs.cluster.real_scores import ScoreShard
from jobs.cluster.shard_job import ShardJob, run_shard_job
from jobs.command import model_store
from jobs.command.errors import FAILURES, USER_ERRORS, LostWorkError
from jobs.command.settings import JobSettings
from jobs.evaluation import accuracy_score, feature_pass
from jobs.evaluation import main as evaluation
from jobs.generation import class_policy
from jobs.generation.worker import GenerateShard, fingerprint
from jobs.ingestion import duplicate_search
from jobs.ingestion.worker import CodeShard, IngestShard
from jobs.training.recorder import first_images
from jobs.verification.worker import VerifyShard
from pipelines import images
from pipelines.dataset import layout, reader, selection, writer
from pipelines.dataset.identity import Identity, from_json
from pipelines.dataset.journal import Journal
from pipelines.dataset.manifest import ShardRecord
from pipelines.errors import CorruptError
from pipelines.ingest import catalogue
from pipelines.ingest.catalogue import Catalogue
from pipelines.loading import loader, order
from pipelines.sources import registry
from pipelines.sources.base import Choice
from pipelines.storage.folder import Folder
from tests.conftest import Job
from tests.families import configure

Product = dict[str, bytes]
COUNT, SHARD, SHARDS = 48, 16, 3
CLASSES = ["cat", "dog"]
CPU = numerics.choose("fp32", "cpu")
NOWHERE = "nowhere"  # an address that Ray refuses at once: so far a command comes without a cluster
SELECTION = "synthetic-top.parquet"


# --- A world of small datasets and models, made without Ray ---


def make_world(place: Path, seed: int) -> None:
    """Images; a sealed dataset of them and one that was left with a shard undone; a model; the same of its images."""
    _make_source(place / "source", seed)
    for output, shards in (("real", SHARDS), ("half-real", SHARDS - 1)):
        take(place, ingest_settings(place, output), shards)
    root = reader.open_sealed(Folder(str(place / "real"))).root
    for model in ("model", "run/models/000000000064"):
        _make_model(place / model, seed, root)
    (place / "run/best.json").write_text(json.dumps({"model": "models/000000000064"}))
    for output, shards in (("synthetic", SHARDS), ("half-synthetic", SHARDS - 1)):
        make(place, generate_settings(place, "model", output), shards)
    before_ray(curate, curate.CurateSettings(dataset=str(place / "synthetic"), rule="top"))


def _make_source(folder: Path, seed: int) -> None:
    """Images in a folder a class, one of which cannot be taken."""
    rng = np.random.default_rng(seed)
    for number in range(COUNT):
        picture = images.encode(rng.integers(0, 256, (28, 28, 1), np.uint8))
        file = folder / CLASSES[number % 2] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"not an image" if number == 5 else picture)


def _make_model(folder: Path, seed: int, data: str) -> None:
    torch.manual_seed(seed)
    config = configure("dcgan", image_size=28, channels=1, width=2, z_dim=4, num_classes=2)
    model_store.save(
        Model(*(network.eval() for network in build(config)), CLASSES, {"data": data}), Folder(str(folder))
    )


def before_ray(command: ModuleType, settings: JobSettings) -> None:
    """A command up to the point where it joins a cluster; the whole, if it needs none."""
    try:
        command.main(settings.model_copy(update={"verbose": True}))  # else it leaves stderr to Ray's core for good
    except LostWorkError as error:
        if f"RAY_ADDRESS={NOWHERE}" not in str(error):
            raise


def in_worker(work: Callable[[], Any]) -> Any:
    """Work that an actor does: what it raises fails the shard, and its text is told. Other errors leave a trace."""
    try:
        return work()
    except (*USER_ERRORS, *FAILURES) as error:
        raise LostWorkError(f"{type(error).__name__}: {error}") from error


# --- The commands ---


def ingest_settings(place: Path, output: str) -> ingest.IngestSettings:
    return ingest.IngestSettings(
        source=str(place / "source"), output=str(place / output), image_size=28, channels=1, shard_size=SHARD, workers=1
    )


def take(place: Path, settings: ingest.IngestSettings, shards: int = SHARDS) -> Product:
    """What jobs/ingest.py does with the first shards that are missing: all of them, and the seal, or some."""
    before_ray(ingest, settings)
    folder, choice = Folder(settings.output), Choice(max_bytes=settings.max_image_bytes)
    publish(place, folder, settings.source, choice)
    origin = registry.Origin(settings.source, "images", choice)
    _finish("ingest", folder, lambda: IngestShard(folder.url, origin), shards)
    if shards == SHARDS:
        duplicate_search.discard_scratch(folder)
    return _content(Path(folder.url))


def publish(place: Path, folder: Folder, source: str, choice: Choice) -> Catalogue:
    """The catalogue, as main() draws it up and publishes it once Ray is there."""
    scratch = place / "scratch"
    scratch.mkdir()
    items = registry.open_source(source, "images", choice).items()
    drawn, _ = catalogue.plan(items, source, None, True, 0, 0.0, scratch)
    drawn.publish(folder, SHARD)
    shutil.rmtree(scratch)  # what is mapped of it stays readable
    return drawn


def generate_settings(place: Path, model: str, output: str) -> generate.GenerateSettings:
    return generate.GenerateSettings(
        model=str(place / model),
        output=str(place / output),
        count=COUNT,
        shard_size=SHARD,
        batch_size=16,
        precision="fp32",
        workers=1,
    )


def make(place: Path, settings: generate.GenerateSettings, shards: int = SHARDS) -> Product:
    """What jobs/generate.py does with the first shards that are missing: all of them, and the seal, or some."""
    before_ray(generate, settings)
    model_store.open_model(Folder(settings.model))  # as the first worker does, before the claim
    source, folder = model_store.find_model(Folder(settings.model)), Folder(settings.output)
    card = source.read(model_card.CARD)
    for name in model_store.FILES if model_card.CARD not in (folder / model_store.IN_DATASET).list() else ():
        (folder / model_store.IN_DATASET).write(name, source.read(name))
    writer.claim(folder, _identity(card, settings), settings.stored())
    files = [f"{model_store.IN_DATASET}/{name}" for name in model_store.FILES]
    _finish("generate", folder, lambda: GenerateShard(folder.url, CPU), shards, files)
    return _content(place / settings.output)


def _identity(card: bytes, settings: generate.GenerateSettings) -> Identity:
    """As main() has it once Ray is there."""
    parsed = model_card.read_card(card)
    config = model_card.config_of(parsed)
    policy = class_policy.parse_classes("balanced", parsed["classes"])
    fields = {
        "producer": "generate",
        "model": model_card.digest(card),
        **{name: getattr(settings, name) for name in ("seed_start", "count", "shard_size")},
        "image": {"format": "png"},
        "image_size": config.image_size,
        "channels": config.channels,
        "classes": parsed["classes"],
        "labels": policy and policy.model_dump(),
        "batch": settings.batch_size,
        "arithmetic": fingerprint(CPU),
    }
    return from_json(fields)


def _finish(
    command: str,
    folder: Folder,
    worker: Callable[[], Callable[[int], dict[str, Any]]],
    shards: int = SHARDS,
    files: Sequence[str] = (),
) -> None:
    """Do the first shards that are missing and leave a journal of them; seal, as produce() does, if that were all."""
    identity = reader.read_claim(folder).identity
    if missing := writer.missing(folder, SHARDS)[:shards]:
        journal = Journal(folder, identity)
        for shard in missing:
            result = in_worker(lambda shard=shard: worker()(shard))
            journal.add(ShardRecord(**result["record"]), bool(result["rejects"]))
        journal.flush()
    if not writer.missing(folder, SHARDS):
        job = ShardJob(
            command=command,
            folder=folder,
            identity=identity,
            worker=shard_worker.ShardWorker,
            arguments={},
            existing=files,
        )
        run_shard_job(job, Pool(1, 0.0))


def ingest_again_settings(place: Path, data: str) -> ingest.IngestSettings:
    return ingest.IngestSettings(source=str(place / data), output=str(place / "new"), shard_size=SHARD, workers=1)


def ingest_again(place: Path, settings: ingest.IngestSettings) -> Product:
    before_ray(ingest, settings)
    source = registry.open_source(settings.source, "dataset", Choice())
    items = list(source.items())
    found = in_worker(lambda: list(source.read(items)))
    return {item.name: f"{item.label} {read!r}".encode() for item, read in zip(items, found, strict=True)}


def train_settings(place: Path, data: str) -> train.TrainSettings:
    picked = str(place / SELECTION) if data == "synthetic" else None
    small = {"image_size": 28, "channels": 1, "width": 2, "batch_size": 8, "images": 16, "metric_images": 100}
    return train.TrainSettings(data=str(place / data), selection=picked, run=str(place / "new"), workers="1", **small)


def read_for_training(place: Path, settings: train.TrainSettings) -> Product:
    """What a training worker reads: an epoch, and the images that a run is measured by."""
    before_ray(train, settings)
    data = Folder(settings.data)

    def read() -> Product:
        index = selection.open_through(data, settings.selection)
        plan = order.make_plan(tuple(record.samples for record in index.shards), 8, 16, 0)
        batches = loader.batches(data, index, plan, 0, 1, 0)
        epoch = [next(batches) for _ in range(plan.steps_per_epoch)]
        batches.close()
        first_NHWC, label_N = first_images(data, index, 20)
        return {
            "epoch": b"".join(batch.images_BHWC.tobytes() + batch.labels_B.tobytes() for batch in epoch),
            "first": first_NHWC.tobytes() + label_N.tobytes(),
        }

    return in_worker(read)


def verify_settings(place: Path, data: str, regenerate: int = 0) -> verify.VerifySettings:
    return verify.VerifySettings(dataset=str(place / data), regenerate=regenerate, workers=1)


def check(place: Path, settings: verify.VerifySettings) -> Product:
    before_ray(verify, settings)

    def look() -> list[dict[str, Any]]:
        worker = VerifyShard(settings.dataset, settings.regenerate, CPU if settings.regenerate else None)
        return [worker(shard) for shard in range(SHARDS)]

    return {"verified": json.dumps(in_worker(look)).encode()}


def curate_settings(place: Path, rule: str) -> curate.CurateSettings:
    data, holdout, output = (str(place / name) for name in ("synthetic", "real", "new.parquet"))
    return curate.CurateSettings(dataset=data, rule=rule, holdout=holdout, output=output, workers=1)


def choose(place: Path, settings: curate.CurateSettings) -> Product:
    before_ray(curate, settings)
    if settings.rule == "top":
        return {"selection": (place / "new.parquet").read_bytes()}

    def score() -> list[dict[str, Any]]:
        worker = ScoreShard(settings.dataset, settings.holdout or "", CPU)
        return [worker(shard) for shard in range(SHARDS)]

    return {"scores": json.dumps(in_worker(score)).encode()}


def evaluate_settings(place: Path) -> evaluate.EvaluateSettings:
    given = {"features": "pixels", "images": 20, "classifier_images": 0, "workers": 1}
    urls = {
        "real": place / "real",
        "fake": place / "synthetic",
        "selection": place / SELECTION,
        "output": place / "new",
    }
    return evaluate.EvaluateSettings(**{role: str(url) for role, url in urls.items()}, **given)


def read_for_evaluation(place: Path, settings: evaluate.EvaluateSettings) -> Product:
    """As feature_pass.MeasureGroup and the driver read, without the sums: they have 15 MB a group."""
    before_ray(evaluate, settings)
    folders = {"real": Folder(settings.real), "fake": Folder(settings.fake)}

    def read() -> Product:
        indexes = {role: selection.open_through(folder, picked[role]) for role, folder in folders.items()}
        plan = feature_pass.PassPlan({role: folder.url for role, folder in folders.items()}, "pixels", None, 20, 0, 2)
        protocol = evaluation._protocol(settings, plan, folders, indexes, evaluation._features(plan, indexes["real"]))
        del protocol["datasets"]["fake"]["selection"]["digest"]  # another file of the same rows
        found = {"protocol": json.dumps(protocol).encode()}
        for role, index in indexes.items():
            batches = [b for record in index.shards for b in loader.in_order(folders[role], index, record, 512)]
            found[role] = b"".join(images_NHWC.tobytes() + label_N.tobytes() for images_NHWC, label_N in batches)
            found[f"one {role}"] = repr(loader.at(folders[role], index, 3)).encode()
        return found

    picked = {"real": None, "fake": settings.selection}
    return in_worker(read)


def explore_settings(place: Path, model: str) -> explore.ExploreSettings:
    urls = {"model": place / model, "data": place / "real", "holdout": place / "synthetic", "output": place / "new"}
    return explore.ExploreSettings(**{name: str(url) for name, url in urls.items()}, what="backprop", images=40)


def look_into(place: Path, settings: explore.ExploreSettings) -> Product:
    explore.main(settings)
    return _content(place / "new")


def _content(folder: Path) -> Product:
    """What a command made, without what only the making needs."""
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if not name.startswith("journal/")}


class Command(NamedTuple):
    """A command as it is run, and the places of the world that it reads; files of `damaged` are damaged in turn."""

    module: ModuleType
    settings: Callable[[Path], JobSettings]
    run: Callable[[Path, Any], Product]
    damaged: tuple[str, ...]
    whole: tuple[str, ...] = ()


def _generate(model: str, output: str, *read: str) -> Command:
    return Command(generate, partial(generate_settings, model=model, output=output), make, read or (model,))


COMMANDS: dict[str, Command] = {
    "ingest --output half-real": Command(
        ingest, partial(ingest_settings, output="half-real"), take, ("half-real",), ("source",)
    ),
    "ingest --source real": Command(ingest, partial(ingest_again_settings, data="real"), ingest_again, ("real",)),
    "ingest --source synthetic": Command(
        ingest, partial(ingest_again_settings, data="synthetic"), ingest_again, ("synthetic",)
    ),
    "generate --output half-synthetic": _generate("model", "half-synthetic", "half-synthetic")._replace(
        whole=("model",)
    ),
    "generate --output synthetic": _generate("model", "synthetic", "synthetic")._replace(whole=("model",)),
    "generate --model model": _generate("model", "new"),
    "generate --model run": _generate("run", "new"),
    "train --data real": Command(train, partial(train_settings, data="real"), read_for_training, ("real",)),
    "train --selection": Command(
        train, partial(train_settings, data="synthetic"), read_for_training, ("synthetic", SELECTION)
    ),
    "verify --dataset real": Command(verify, partial(verify_settings, data="real"), check, ("real",)),
    "verify --dataset synthetic": Command(verify, partial(verify_settings, data="synthetic"), check, ("synthetic",)),
    "verify --regenerate": Command(
        verify, partial(verify_settings, data="synthetic", regenerate=COUNT), check, ("synthetic",)
    ),
    "curate --rule top": Command(curate, partial(curate_settings, rule="top"), choose, ("synthetic",), ("real",)),
    "curate --rule drs": Command(curate, partial(curate_settings, rule="drs"), choose, ("synthetic", "real")),
    "evaluate": Command(evaluate, evaluate_settings, read_for_evaluation, ("real", "synthetic", SELECTION)),
    "explore --model model": Command(
        explore, partial(explore_settings, model="model"), look_into, ("model", "real", "synthetic")
    ),
    "explore --model run": Command(
        explore, partial(explore_settings, model="run"), look_into, ("run",), ("real", "synthetic")
    ),
}


# --- The damage ---

_PAIRS = ("manifest/{:06d}.parquet", "shards/{:06d}.tar")
_MODEL = ("model.json", "generator.safetensors", "discriminator.safetensors")
_SEALED = ("dataset.json", "index.json", "README.md", "croissant.json", "preview.png")
FILES: dict[str, tuple[str, ...]] = {
    "real": (*_SEALED, "rejects.parquet", *(name.format(n) for name in _PAIRS for n in range(SHARDS))),
    "synthetic": (
        *(*_SEALED, *(f"model/{name}" for name in _MODEL)),
        *(name.format(n) for name in _PAIRS for n in range(SHARDS)),
    ),
    "half-real": (
        *("dataset.json", "journal/000000.json", "catalogue/000000.parquet"),
        *(name.format(n) for name in _PAIRS for n in range(SHARDS - 1)),
    ),
    "half-synthetic": (
        *("dataset.json", "journal/000000.json", *(f"model/{name}" for name in _MODEL)),
        *(name.format(n) for name in _PAIRS for n in range(SHARDS - 1)),
    ),
    "model": _MODEL,
    "run": ("best.json", *(f"models/000000000064/{name}" for name in _MODEL)),
    SELECTION: ("",),
}

DAMAGES: dict[str, Callable[[bytes, bytes], bytes | None]] = {  # from a file's content, and its namesake's elsewhere
    "missing": lambda data, other: None,
    "empty": lambda data, other: b"",
    "cut": lambda data, other: data[: len(data) // 2],
    "garbage": lambda data, other: np.random.default_rng(0).bytes(len(data)),
    "flipped": lambda data, other: flipped(data, len(data) // 2),
    "a folder": lambda data, other: None,
    "of another": lambda data, other: other,
}


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def inflict(damage: str, file: Path, other: Path) -> None:
    """The file is a hard link: it is replaced, not written to."""
    data = DAMAGES[damage](file.read_bytes(), other.read_bytes())
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif data is not None:
        file.write_bytes(data)


def cells(commands: Sequence[str], numbers: Sequence[int]) -> list[tuple[str, str]]:
    """Command and file; of the shards those with these numbers."""
    others = [f"{n:06d}." for n in range(SHARDS) if n not in numbers]
    found = [
        (command, f"{p}/{f}".rstrip("/")) for command in commands for p in COMMANDS[command].damaged for f in FILES[p]
    ]
    return [(c, f) for c, f in found if not any(o in f and ("shards/" in f or "manifest/" in f) for o in others)]


class Worlds:
    """Two worlds of the same names, and what each command makes of the first when nothing is damaged."""

    def __init__(self, base: Path) -> None:
        self.world, self.other, self._place = base / "world", base / "other", base / "place"
        for seed, world in enumerate((self.world, self.other)):
            make_world(self._place, seed)  # always there: a dataset's settings name paths
            self._place.rename(world)
        self._made: dict[str, Product] = {}

    def lay(self, command: str) -> Path:
        """A fresh place with what the command reads."""
        shutil.rmtree(self._place, ignore_errors=True)
        self._place.mkdir()
        for name in (*COMMANDS[command].damaged, *COMMANDS[command].whole):
            if (self.world / name).is_dir():
                shutil.copytree(self.world / name, self._place / name, copy_function=os.link)
            else:
                os.link(self.world / name, self._place / name)
        return self._place

    def undamaged(self, command: str) -> Product:
        if command not in self._made:
            place = self.lay(command)
            self._made[command] = COMMANDS[command].run(place, COMMANDS[command].settings(place))
        return self._made[command]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_ADDRESS", NOWHERE)
        yield Worlds(tmp_path_factory.mktemp("damage"))
    torch.set_num_threads(threads)


def wrong(worlds: Worlds, command: str, file: str, damage: str) -> str:
    """What is wrong with the way in which a command takes a damaged file; empty if nothing is."""
    expected = worlds.undamaged(command)
    place = worlds.lay(command)
    inflict(damage, place / file, worlds.other / file)
    run, settings = COMMANDS[command].run, COMMANDS[command].settings(place)
    try:
        made = run(place, settings)
    except (*USER_ERRORS, *FAILURES) as error:
        return _wrong_words(str(error), place, file)
    except Exception:
        return traceback.format_exc()
    changed = sorted(name for name in {*made, *expected} if made.get(name) != expected.get(name))
    return f"exit 0, but changed: {changed}" if changed and not _told_later(place, command, file, changed) else ""


def _wrong_words(text: str, place: Path, file: str) -> str:
    """One line that names the file; or, of two that contradict each other, the other one, or what of it differs."""
    named = [Path(file).name]
    if file.endswith(("dataset.json", "index.json")):
        named += ["dataset.json", "index.json", "claimed with", "changed after the seal"]
    if "journal" in file:
        named += ["is not as it was written"]
    if "\n" in text or str(place) not in text or len(text) > 700:
        return f"not a line: {text}"
    return "" if any(name in text for name in named) else f"the file is not named: {text}"


def _told_later(place: Path, command: str, file: str, changed: list[str]) -> bool:
    """Whether the same seal stands over what changed: it names the right hash, so that readers and verify refuse it.

    A command that finishes a dataset trusts the parts that are there: it does not read all tars of earlier runs again.
    """
    name = file.split("/")[0]
    if "--output" not in command or "index.json" in changed:
        return False
    try:
        check(place, verify_settings(place, name))
    except FAILURES as error:
        return _wrong_words(str(error), place, file) == ""
    return False


SLOW = ("curate --rule drs", "explore --model model")
QUICK = [
    *cells([command for command in COMMANDS if command not in SLOW], (0, 2)),
    *(cell for cell in cells(SLOW, (0,)) if not cell[1].startswith("synthetic")),
]
ALL = cells(list(COMMANDS), range(SHARDS))


def test_the_files_in_these_tests_are_all_that_there_are(worlds: Worlds) -> None:
    for place, names in FILES.items():
        here = worlds.world / place
        assert sorted(names) == sorted(str(file.relative_to(here)) for file in here.rglob("*") if file.is_file()) or (
            names == ("",) and here.is_file()
        )


@pytest.mark.parametrize(("command", "file"), QUICK)
def test_a_damaged_file_is_named_in_a_line(command: str, file: str, worlds: Worlds) -> None:
    found = {damage: wrong(worlds, command, file, damage) for damage in DAMAGES}
    assert not any(found.values()), found


@pytest.mark.parametrize(
    "command", ["train --data real", "verify --dataset real", "evaluate", "explore --model model", "curate --rule drs"]
)
def test_an_image_that_cannot_be_decoded_is_named(command: str, worlds: Worlds) -> None:
    """A dataset whose hashes are right, and which holds an image that is none: a stranger makes one."""
    place = worlds.lay(command)
    folder = Folder(str(place / "real"))
    index = reader.open_sealed(folder)
    samples = list(reader.samples(folder, index, index.shards[0]))
    samples[3] = dataclasses.replace(samples[3], image=samples[3].image[:60])  # its header says the right size
    part, _ = reader.read_part(folder, 0)
    record = writer.commit(folder, 0, "ingest", samples, {"source": part.table["source"].to_pylist()}, part.rejects)
    records = {one.shard: one for one in (record, *index.shards[1:])}
    writer.seal(folder, index.identity, records, {}, [name for name in index.files if name != layout.CLAIM])
    with pytest.raises((*USER_ERRORS, *FAILURES)) as caught:
        COMMANDS[command].run(place, COMMANDS[command].settings(place))
    assert f"{folder}/shards/000000.tar: sample {samples[3].index:012d}: its image is not an image" in str(caught.value)


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "flipped", "of another"])
def test_what_an_evaluation_left_is_used_as_it_was_written(damage: str, worlds: Worlds) -> None:
    """A start that goes on from the files of an earlier one names a file that changed."""
    place = worlds.lay("evaluate")
    urls = {role: str(place / name) for role, name in (("real", "real"), ("fake", "synthetic"))}
    indexes = {role: reader.open_sealed(Folder(url)) for role, url in urls.items()}
    roots = {role: index.root for role, index in indexes.items()}
    plan, output, pool = feature_pass.PassPlan(urls, "pixels", None, 20, 0, 0), Folder(str(place / "new")), Pool(1, 0.0)
    trainings = {
        role: accuracy_score.ClassifierTraining(
            urls[role], roots[role], urls["real"], roots["real"], 2, images=16, seed=0
        )
        for role in ("real", "fake")
    }
    for number in range(2):
        accuracy_score.TrainClassifier(list(trainings.values()), output.url)(number)
    for number in range(2 * SHARDS):
        feature_pass.MeasureGroup(plan, output.url, "key")(number)

    def go_on() -> None:
        accuracy_score.train_classifiers(trainings, output, pool)
        feature_pass.run_pass(plan, indexes, output, "key", pool)

    go_on()
    files = {name: output.read(f"{feature_pass.PARTS}/{name}") for name in output.list(feature_pass.PARTS)}
    assert len(files) == 2 * SHARDS + 4
    for name, data in files.items():
        other = next(files[one] for one in files if one != name and one[-12:-5] == name[-12:-5])
        output.write(f"{feature_pass.PARTS}/{name}", DAMAGES[damage](data, other) or b"")
        with pytest.raises(CorruptError) as caught:
            go_on()
        assert str(caught.value).startswith(f"{output}/{feature_pass.PARTS}/{name}: ")
        assert str(caught.value).count("\n") == 0
        output.write(f"{feature_pass.PARTS}/{name}", data)
    go_on()


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "flipped", "of another"])
def test_codes_of_an_earlier_start_are_used_as_they_were_written(damage: str, worlds: Worlds) -> None:
    """By which ingest tells duplicates apart: a wrong one would leave an image out."""
    place = worlds.lay("ingest --output half-real")
    given = ingest_settings(place, "new").model_copy(update={"dedupe": "exact"})
    before_ray(ingest, given)
    folder, choice = Folder(given.output), Choice(max_bytes=given.max_image_bytes)
    origin = registry.Origin(given.source, "images", choice)
    drawn = publish(place, folder, given.source, choice)
    parts = [(folder, reader.read_claim(folder).identity, drawn)]
    for shard in range(SHARDS):
        CodeShard(folder.url, origin)(shard)

    def go_on() -> None:
        folder.delete("codes/duplicates.parquet")
        duplicate_search.find_duplicates(parts, origin, Pool(1, 0.0))

    go_on()
    written = {name: folder.read(f"codes/{name}") for name in folder.list("codes")}
    for name, data in written.items():
        folder.write(
            f"codes/{name}",
            DAMAGES[damage](data, written["000001.parquet" if name[5] != "1" else "000000.parquet"]) or b"",
        )
        with pytest.raises(CorruptError) as caught:
            IngestShard(folder.url, origin) if name == "duplicates.parquet" else go_on()
        assert str(caught.value) == (
            f"{folder}/codes/{name}: damaged; delete it and start the same command again, which makes it again"
        )
        folder.write(f"codes/{name}", data)
    go_on()


@pytest.mark.long
@pytest.mark.parametrize(("command", "file"), [cell for cell in ALL if cell not in QUICK])
def test_the_rest_of_the_matrix(command: str, file: str, worlds: Worlds) -> None:
    found = {damage: wrong(worlds, command, file, damage) for damage in DAMAGES}
    assert not any(found.values()), found


# The world has too few images to calibrate a discriminator with: what is not damaged ends so too, and `choose` above
# looks at the scores instead.
TOO_FEW = "47 logits of real or synthetic images; at least 100 of each are needed; nothing was selected"


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "file", "damage"),
    [(*cell, damage) for cell, damage in zip(cells(list(COMMANDS), (0,)), itertools.cycle(DAMAGES), strict=False)],
)
def test_a_command_as_users_start_it(command: str, file: str, damage: str, worlds: Worlds, job: Job) -> None:
    """With workers and all. Each file is damaged in one way; over all of them every way comes."""
    expected = worlds.undamaged(command)
    place = worlds.lay(command)
    inflict(damage, place / file, worlds.other / file)
    settings = COMMANDS[command].settings(place)
    config = place / "settings.toml"
    config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.describe().items()))
    done = job(settings.command, "--config", config, env={"RAY_ADDRESS": ""})
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert done.returncode in (1, 2), done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"{settings.command}: error: ")
        assert last.endswith(TOO_FEW) or _wrong_words(last, place, file) == ""
    elif "--output" in command:
        made = _content(place / file.split("/")[0])
        changed = sorted(name for name in {*made, *expected} if made.get(name) != expected.get(name))
        assert not changed or _told_later(place, command, file, changed)
    else:
        assert COMMANDS[command].run(worlds.lay(command), settings) == expected
