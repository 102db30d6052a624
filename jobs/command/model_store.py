"""Models on storage: find, read, check and publish them."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from dcgan import model_card
from dcgan.errors import ModelError
from dcgan.families.family import FamilyConfig
from pipelines.dataset import facts
from pipelines.dataset.attribution import Attribution
from pipelines.errors import CorruptError
from pipelines.storage.folder import Folder, MissingError

if TYPE_CHECKING:
    from dcgan.model_files import Model

T = TypeVar("T")

BEST = "best.json"  # in a run: names its best model, and the metric
IN_DATASET = "model"  # in a dataset: a copy of its model, so that its images can be made again after the run is deleted
FILES = (model_card.CARD, *model_card.WEIGHTS)
ATTEMPTS = 8  # to read the best model of a run that trains; one fails only if a tick ends within milliseconds


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model's files in memory: a run that trains may delete them meanwhile."""

    folder: Folder
    files: dict[str, bytes]

    @property
    def digest(self) -> str:
        return model_card.digest(self.files[model_card.CARD])

    @property
    def config(self) -> FamilyConfig:
        return model_card.config_of(json.loads(self.files[model_card.CARD]))

    @property
    def classes(self) -> list[str] | None:
        classes: list[str] | None = json.loads(self.files[model_card.CARD])["classes"]
        return classes

    @property
    def attribution(self) -> Attribution:
        """Title, licence and citation of the dataset that the model was trained on, as far as its card has them."""
        return facts.attribution_of(json.loads(self.files[model_card.CARD])["provenance"])


def open_model(place: Folder) -> tuple["Model", StoredModel]:
    """Read and check the model at a URL that is a model or a run.

    Raises: ModelError, naming the folder, for files that are not a model.
    """
    return _of_current(place, read)


def read_card(place: Folder) -> tuple[FamilyConfig, list[str] | None]:
    """The configuration and the classes of the model at a URL that is a model or a run. Its weights are not read.

    Raises: ModelError, naming the folder, for a card that is damaged, or for files that are missing or of other sizes.
    """
    return _of_current(place, _read_card)


def find_model(folder: Folder) -> Folder:
    """The folder of the model at a URL that is a model or a run. Raises ModelError if it is neither."""
    files = folder.list()
    if model_card.CARD in files:
        return folder
    if BEST in files:
        try:
            best = json.loads(folder.read(BEST, model_card.MAX_CARD_BYTES))
        except (RecursionError, ValueError) as error:
            raise ModelError(f"{folder}/{BEST}: damaged, not JSON: {error}") from error
        name = best.get("model") if isinstance(best, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"models/\d{1,20}", name):
            raise ModelError(f"{folder}/{BEST}: names no model of this run")
        return folder / name
    if not files.keys().isdisjoint(model_card.WEIGHTS):
        raise ModelError(
            f"{folder}/{model_card.CARD}: missing: the model was copied only in part; copy it again, or name the "
            "original"
        )
    raise ModelError(
        f"{folder}: no model ({model_card.CARD}) and no run ({BEST}) is here; check the URL, or train first"
    )


def read(folder: Folder) -> tuple["Model", StoredModel]:
    """Read the model in a folder. Raises ModelError, naming the folder, for files that are not a model."""
    from dcgan.model_files import unpack  # needs torch

    files: dict[str, bytes] = {}

    def keep(name: str, limit: int) -> bytes:
        files[name] = folder.read(name, limit)
        return files[name]

    with _naming(folder):
        return unpack(keep), StoredModel(folder, files)


def _read_card(folder: Folder) -> tuple[FamilyConfig, list[str] | None]:
    with _naming(folder):
        card = model_card.read_card(folder.read(model_card.CARD, model_card.MAX_CARD_BYTES))
        sizes = folder.list()
        for name in model_card.WEIGHTS:
            if name not in sizes:
                raise MissingError(f"{folder}/{name}: not found")
            model_card.check_size(name, card, sizes[name])
        return model_card.config_of(card), card["classes"]


@contextlib.contextmanager
def _naming(folder: Folder) -> Iterator[None]:
    """Have the errors of a model's files name its folder."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error
    except MissingError as error:
        raise ModelError(f"{error}; the model is not complete") from error


def _of_current(place: Folder, use: Callable[[Folder], T]) -> T:
    """The result of `use` for a model, or for the best one of a run, which may be replaced meanwhile: then for that."""
    for _ in range(ATTEMPTS):
        folder = find_model(place)
        try:
            return use(folder)
        except ModelError:
            if find_model(place).url == folder.url:
                raise
    raise ModelError(f"{place}: replaced its best model during each of {ATTEMPTS} reads; start the command again")


def load(folder: Folder) -> tuple["Model", str]:
    """A model and its digest. Raises as `read`."""
    model, stored = read(folder)
    return model, stored.digest


def load_copy(folder: Folder, digest: str) -> "Model":
    """The copy of a model in a dataset. Raises CorruptError if it has another digest than the dataset names."""
    model, found = load(folder)
    if found != digest:
        raise CorruptError(f"{folder}: its digest is {found}, the dataset was made by {digest}")
    return model


def save(model: "Model", folder: Folder) -> str:
    """Publish a model, its card last. Returns its digest."""
    from dcgan.model_files import pack  # needs torch

    files = pack(model)
    for name, data in files.items():
        folder.write(name, data)
    return model_card.digest(files[model_card.CARD])


def store_files(files: Mapping[str, bytes], folder: Folder, different: Mapping[str, bool] | None = None) -> None:
    """Write a model's files to a folder, the card last. Files that are equal already are not written.

    Args:   different: the result of `compare_files`, if the caller has it.
    """
    different = compare_files(files, folder) if different is None else different
    for name in (*model_card.WEIGHTS, model_card.CARD):
        if different.get(name, True):
            folder.write(name, files[name])


def compare_files(files: Mapping[str, bytes], folder: Folder) -> dict[str, bool]:
    """For each of a model's files that a folder has: whether its bytes differ."""
    sizes = folder.list()
    return {
        name: sizes[name] != len(data) or folder.read(name, len(data)) != data
        for name, data in files.items()
        if name in sizes
    }
