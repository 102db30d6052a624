"""Models on storage: find, load and copy them."""

import json
import re

from dcgan import model_files
from dcgan.model_files import Model, ModelError
from pipelines.dataset import CorruptError
from pipelines.storage import Folder, MissingError

BEST = "best.json"  # in a run: names its best model, and by what
FILES = (model_files.CARD, *model_files.WEIGHTS)


def resolve(folder: Folder) -> Folder:
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
    raise ModelError(
        f"{folder}: neither a model ({model_files.CARD}) nor a run ({BEST}) is here; check the URL, or train first"
    )


def load(folder: Folder) -> tuple[Model, str]:
    """A model and its digest. Raises ModelError, naming the folder, for files that are not one."""
    try:
        card = folder.read(model_files.CARD, model_files.MAX_CARD_BYTES)
        return model_files.unpack(folder.read), model_files.digest(card)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error
    except MissingError as error:
        raise ModelError(f"{error}; the model is not complete") from error


def load_named(folder: Folder, digest: str) -> Model:
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


def copy(source: Folder, target: Folder) -> None:
    """Copy a model, byte for byte, its card last; nothing to do if the card is there."""
    if model_files.CARD not in target.list():
        for name in (*model_files.WEIGHTS, model_files.CARD):
            target.write(name, source.read(name, model_files.MAX_WEIGHTS_BYTES))
