"""Models on storage: find, read, check and publish them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dcgan import model_files
from dcgan.model_files import Model, ModelError
from pipelines.dataset.shards import CorruptError
from pipelines.storage.folder import Folder, MissingError

BEST = "best.json"  # in a run: names its best model, and the metric
IN_DATASET = "model"  # in a dataset: a copy of its model, so that its images can be made again after the run is deleted
FILES = (model_files.CARD, *model_files.WEIGHTS)
ATTEMPTS = 8  # to read the best model of a run that trains; one fails only if a tick ends within milliseconds


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model in memory, with its files: a run that trains may delete them meanwhile."""

    folder: Folder
    model: Model
    digest: str
    files: dict[str, bytes]


def open_model(place: Folder) -> OpenedModel:
    """Read and check the model at a URL that is a model or a run.

    A run that trains may replace its best model during the read; then the new one is read.

    Raises: ModelError, naming the folder, for files that are not a model.
    """
    for _ in range(ATTEMPTS):
        folder = find_model(place)
        try:
            return read(folder)
        except ModelError:
            if find_model(place).url == folder.url:
                raise
    raise ModelError(f"{place}: replaced its best model during each of {ATTEMPTS} reads; start the command again")


def find_model(folder: Folder) -> Folder:
    """The folder of the model at a URL that is a model or a run. Raises ModelError if it is neither."""
    files = folder.list()
    if model_files.CARD in files:
        return folder
    if BEST in files:
        try:
            best = json.loads(folder.read(BEST, model_files.MAX_CARD_BYTES))
        except (RecursionError, ValueError) as error:
            raise ModelError(f"{folder}/{BEST}: damaged, not JSON: {error}") from error
        name = best.get("model") if isinstance(best, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"models/\d{1,20}", name):
            raise ModelError(f"{folder}/{BEST}: names no model of this run")
        return folder / name
    if not files.keys().isdisjoint(model_files.WEIGHTS):
        raise ModelError(
            f"{folder}/{model_files.CARD}: missing: the model was copied only in part; copy it again, or name the "
            "original"
        )
    raise ModelError(
        f"{folder}: no model ({model_files.CARD}) and no run ({BEST}) is here; check the URL, or train first"
    )


def read(folder: Folder) -> OpenedModel:
    """Read the model in a folder. Raises ModelError, naming the folder, for files that are not a model."""
    files: dict[str, bytes] = {}

    def keep(name: str, limit: int) -> bytes:
        files[name] = folder.read(name, limit)
        return files[name]

    try:
        model = model_files.unpack(keep)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error
    except MissingError as error:
        raise ModelError(f"{error}; the model is not complete") from error
    return OpenedModel(folder, model, model_files.digest(files[model_files.CARD]), files)


def load(folder: Folder) -> tuple[Model, str]:
    """A model and its digest. Raises as `read`."""
    opened = read(folder)
    return opened.model, opened.digest


def load_copy(folder: Folder, digest: str) -> Model:
    """The copy of a model in a dataset. Raises CorruptError if it has another digest than the dataset names."""
    model, found = load(folder)
    if found != digest:
        raise CorruptError(f"{folder}: its digest is {found}, the dataset was made by {digest}")
    return model


def save(model: Model, folder: Folder) -> str:
    """Publish a model, its card last. Returns its digest."""
    files = model_files.pack(model)
    for name, data in files.items():
        folder.write(name, data)
    return model_files.digest(files[model_files.CARD])


def store_files(files: Mapping[str, bytes], folder: Folder, different: Mapping[str, bool] | None = None) -> None:
    """Write a model's files to a folder, the card last. Files that are equal already are not written.

    Args:   different: the result of `compare_files`, if the caller has it.
    """
    different = compare_files(files, folder) if different is None else different
    for name in (*model_files.WEIGHTS, model_files.CARD):
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
