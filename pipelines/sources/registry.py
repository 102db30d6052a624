"""The kinds of sources, how to recognise each, and the module that reads it.

    folders            a folder tree of image files        parquet            Parquet with a column of images
    zips, tars         a .zip or a .tar of one             idx                IDX files, as MNIST's; `digits`
    lists              a .csv or .jsonl list of paths      torchvision_sets   `torchvision:NAME`
    webdataset_tars    a folder of WebDataset shards       ganmill_dataset    a sealed dataset of ganmill's
    stacked_mnist      three digits of IDX files as one image

A source lists its items, which pipelines/ingest/catalogue.py puts in order, and reads the contents of one shard's items
at a time. Only its URL travels to the workers, which open it themselves.
"""

from dataclasses import dataclass

from pipelines.dataset import layout
from pipelines.dataset.attribution import Attribution
from pipelines.dataset.manifest import part_name
from pipelines.errors import SourceError
from pipelines.sources import hugging_face_card
from pipelines.sources.base import IMAGE_ENDINGS, Choice, Source, is_image, is_junk
from pipelines.sources.folders import FolderSource
from pipelines.sources.ganmill_dataset import SealedSource
from pipelines.sources.idx import digits, idx, idx_splits, is_array
from pipelines.sources.lists import ListSource
from pipelines.sources.parquet import ENDING, ParquetSource
from pipelines.sources.stacked_mnist import stacked_mnist
from pipelines.sources.tars import TAR_ENDINGS, TarSource
from pipelines.sources.torchvision_sets import TorchvisionSource
from pipelines.sources.webdataset_tars import WebDatasetSource
from pipelines.sources.zips import ZipSource
from pipelines.storage.folder import Folder

BUILT_IN = ("digits", "torchvision:")  # sources without a URL
KINDS = (
    *("digits", "torchvision", "zip", "tar", "list", "parquet", "dataset", "idx", "stacked-mnist", "webdataset"),
    "images",
)


@dataclass(frozen=True, slots=True)
class Origin:
    """A source as workers open it."""

    url: str
    kind: str
    choice: Choice


def kind_of(url: str) -> str:
    """The kind of a source, one of KINDS. Raises SourceError for a folder with nothing to read, or with two kinds."""
    name = url.rstrip("/").rpartition("/")[2].lower()
    if url == "digits" or url.startswith("torchvision:"):
        return url.partition(":")[0]
    for kind, endings in {
        "zip": (".zip",),
        "tar": TAR_ENDINGS,
        "list": (".csv", ".jsonl", ".ndjson"),
        "parquet": (ENDING,),
    }.items():
        if name.endswith(endings):
            return kind
    folder = Folder(url)
    if folder.exists(layout.CLAIM) or (folder.exists(layout.SEAL) and folder.exists(part_name(0))):
        return "dataset"  # also without its claim: then it is refused, and never read as unchecked tars
    seen = set[str]()
    arrays = []
    for name, _ in folder.walk():  # all of them: a rare kind may come last
        seen.add(_kind_of_file(name))
        if is_array(name):
            arrays.append(name)
    if not seen:
        raise SourceError(f"{url}: no such folder, or an empty one; check --source")
    if idx_splits(arrays):
        return "idx"
    if {"webdataset", "images"} <= seen:
        raise SourceError(f"{url}: holds tars and image files; say with --kind which to take: webdataset or images")
    for kind in ("webdataset", "images", "parquet"):  # img2dataset writes .parquet files beside its tars
        if kind in seen:
            return kind
    raise SourceError(
        f"{url}: nothing to ingest here (looked for {', '.join(IMAGE_ENDINGS)}, .tar, .parquet and IDX files); "
        "check --source"
    )


def _kind_of_file(name: str) -> str:
    """The kind of folder that a file indicates; '' for none."""
    if is_image(name):
        return "images"
    if is_junk(name):
        return ""
    return "webdataset" if name.lower().endswith(TAR_ENDINGS) else "parquet" if name.lower().endswith(ENDING) else ""


def open_source(url: str, kind: str, choice: Choice) -> Source:
    """Open a source. Raises SourceError if it is not of this kind, StorageError if it cannot be reached."""
    if kind == "digits":
        return digits()
    if kind == "torchvision":
        return TorchvisionSource(url.partition(":")[2], choice)
    parent, _, name = url.rstrip("/").rpartition("/")
    beside = parent or ("/" if url.startswith("/") else ".")
    if kind == "zip":
        return ZipSource(Folder(beside), name, choice)
    if kind == "tar":
        return TarSource(Folder(beside), name, choice)
    if kind == "list":
        return ListSource(Folder(beside), name, choice)
    if kind == "parquet" and name.lower().endswith(ENDING):
        return ParquetSource(Folder(beside), [name], choice)
    folder = Folder(url)
    if kind == "parquet":
        return ParquetSource(folder, [name for name, _ in folder.walk(hidden=True)], choice)
    if kind == "idx":
        return idx(folder, choice)
    if kind == "stacked-mnist":
        return stacked_mnist(folder, choice)
    if kind == "dataset":
        return SealedSource(folder, choice)
    return WebDatasetSource(folder, choice) if kind == "webdataset" else FolderSource(folder, choice)


def attribution(origin: Origin, source: Source) -> Attribution:
    """Title, licence and citation as the source states them; of a folder, in its Hugging Face card."""
    if origin.kind in ("images", "webdataset", "parquet", "idx") and not origin.url.lower().endswith(ENDING):
        return hugging_face_card.attribution(Folder(origin.url))
    return source.attribution
