"""Models on storage: find, read and publish them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dcgan import model_files
from dcgan.model_files import Model, ModelError
from pipelines.dataset.shards import CorruptError
from pipelines.storage.folder import Folder, MissingError

BEST = "best.json"  # in a run: names its best model, and by what
IN_DATASET = "model"  # in a dataset: its model, so that an image can be made again when the run is long gone
FILES = (model_files.CARD, *model_files.WEIGHTS)
ATTEMPTS = 8  # to read a run's best model while the run replaces it: each needs a tick of training in some milliseconds


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model that was read whole: a run that trains may delete it meanwhile."""

    folder: Folder
    model: Model
    digest: str
    files: dict[str, bytes]


def open_model(place: Folder) -> OpenedModel:
    """The model at a URL that is a model or a run, read whole and checked before anything is done with it.

    A run that trains replaces its best model: where that happens in the middle of reading, the new one is read.

    Raises: ModelError, naming the folder, for files that are not a model.
    """
    for _ in range(ATTEMPTS):
        folder = find_model(place)
        try:
            return read(folder)
        except ModelError:
            if find_model(place).url == folder.url:
                raise
    raise ModelError(f"{place}: replaced its best model {ATTEMPTS} times while it was read; start the command again")


def find_model(folder: Folder) -> Folder:
    """The model at a URL that is a model or a run. Raises ModelError if it is neither."""
    files = folder.list()
    if model_files.CARD in files:
        return folder
    if BEST in files:
        try:
            name = json.loads(folder.read(BEST, model_files.MAX_CARD_BYTES))["model"]
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise ModelError(f"{folder}/{BEST}: damaged: {error!r}") from error
        if not isinstance(name, str) or not re.fullmatch(r"models/\d{1,20}", name):
            raise ModelError(f"{folder}/{BEST}: names no model of this run")
        return folder / name
    if not files.keys().isdisjoint(model_files.WEIGHTS):
        raise ModelError(
            f"{folder}/{model_files.CARD}: missing: a model that was copied in part; name the one it was copied from"
        )
    raise ModelError(
        f"{folder}: neither a model ({model_files.CARD}) nor a run ({BEST}) is here; check the URL, or train first"
    )


def read(folder: Folder) -> OpenedModel:
    """The model in a folder. Raises ModelError, naming the folder, for files that are not one."""
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
    taken = read(folder)
    return taken.model, taken.digest


def load_copy(folder: Folder, digest: str) -> Model:
    """The model that a dataset carries. Raises CorruptError if its digest is not the one that the dataset names."""
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


def store_files(files: Mapping[str, bytes], folder: Folder, others: Mapping[str, bool] | None = None) -> None:
    """Have these files of a model in a folder, its card last. What is there is compared, byte for byte, and mended.

    Args:   others: what `compare_files` found, where it was asked before.
    """
    others = compare_files(files, folder) if others is None else others
    for name in (*model_files.WEIGHTS, model_files.CARD):
        if others.get(name, True):
            folder.write(name, files[name])


def compare_files(files: Mapping[str, bytes], folder: Folder) -> dict[str, bool]:
    """The files of a model that lie in a folder, and whether each is another than the one of these files."""
    there = folder.list()
    return {
        name: there[name] != len(data) or folder.read(name, len(data)) != data
        for name, data in files.items()
        if name in there
    }
