"""What ingest's actors do, a shard at a time: take images from the source, or what tells duplicates apart."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs import produce
from jobs.cluster import Done, Pool, WorkersLostError, last_words, map_shards
from jobs.progress import Progress
from jobs.settings import LostWorkError
from pipelines import catalogue, checked, dataset, duplicates, images
from pipelines.catalogue import Catalogue
from pipelines.dataset import CorruptError
from pipelines.images import ImageError, LimitError, Pixels
from pipelines.manifest import Reject
from pipelines.shards import Sample
from pipelines.sources import Choice, open_source
from pipelines.storage import Folder, MissingError

CODES = "codes"  # beside a dataset in the making: what is compared of each image, and what was found
_FOUND = f"{CODES}/duplicates.parquet"
Making = tuple[Folder, Mapping[str, Any], Catalogue]  # a dataset in the making


@dataclass(frozen=True, slots=True)
class Origin:
    """A source as workers open it."""

    url: str
    kind: str
    choice: Choice


class _Intake:
    """An actor's view: the dataset in the making, its catalogue and its source."""

    def __init__(self, output: str, origin: Origin) -> None:
        self.folder, self.url = Folder(output), origin.url
        self.identity = dataset.read_claim(self.folder)["identity"]
        self.source = open_source(origin.url, origin.kind, origin.choice)
        self.catalogue = catalogue.Reader(self.folder, self.identity["source"], self.identity["shard_size"])

    def take(self, shard: int) -> Iterator[tuple[int, str, int | None, Pixels | ImageError]]:
        """Index, source, label and image as the dataset will hold it, of each item of a shard; or why not."""
        items, labels = self.catalogue.shard(shard)
        identity = self.identity
        size, channels, pixels = identity["image_size"], identity["channels"], identity["limits"]["pixels"]
        resize, background = identity["image"]["resize"], tuple(identity["image"]["background"])
        indices = dataset.shard_range(identity, shard)
        for index, item, label, content in zip(indices, items, labels, self.source.read(items), strict=True):
            image: Pixels | ImageError
            try:
                if isinstance(content, ImageError):
                    raise content
                image = images.normalise(content, size, channels, resize, background, pixels)
                if identity["classes"] and label is None:
                    raise ImageError("no label")
            except ImageError as error:
                if self.source.sealed and not isinstance(error, LimitError):
                    raise CorruptError(f"{self.url}/{item.place}: sample {item.name}: {error}") from error
                image = error
            yield index, item.name, label, image


class IngestShard(_Intake):
    """Publishes one whole shard a call: read, normalised, encoded."""

    def __init__(self, output: str, origin: Origin) -> None:
        super().__init__(output, origin)
        self.kept = _read_found(self.folder) if self.identity["dedupe"] else {}

    def __call__(self, shard: int) -> dict[str, Any]:
        samples, rejects, names = [], [], []
        what = "near duplicate" if self.kept and self.identity["dedupe"]["mode"] == "near" else "duplicate"
        for index, name, label, image in self.take(shard):
            if index in self.kept:
                rejects.append(Reject(index, name, f"{what}: of {self.kept[index]}"))
            elif isinstance(image, ImageError):
                rejects.append(Reject(index, name, str(image)))
            else:
                samples.append(Sample(index, images.encode(image), label))
                names.append(name)
        record = dataset.commit(self.folder, shard, "ingest", samples, {"source": names}, rejects)
        return produce.shard_result(record, rejects)


class CodeShard(_Intake):
    """Publishes the codes of one shard's images, by which duplicates are found."""

    def __call__(self, shard: int) -> dict[str, Any]:
        mode = self.identity["dedupe"]["mode"]
        codes = {
            i: duplicates.code(image, mode) for i, _, _, image in self.take(shard) if not isinstance(image, ImageError)
        }
        table = pa.table({"index": pa.array(codes, pa.int64()), "code": pa.array(codes.values(), pa.binary())})
        _write(self.folder, f"{CODES}/{shard:06d}.parquet", table)
        return {}


def find_duplicates(parts: Sequence[Making], origin: Origin, pool: Pool) -> None:
    """Compare all images of the parts, of which the first that are found are kept: of earlier parts, of lower indices.

    What is found lies beside each part for the workers that take its images.

    Raises: LostWorkError naming the shards whose images could not be compared.
    """
    try:
        _find_duplicates(parts, origin, pool)
    except (LostWorkError, MissingError):  # another run of the same command sealed all, and then removed the codes
        if not all(produce.is_sealed(folder, identity) for folder, identity, _ in parts):
            raise


def _find_duplicates(parts: Sequence[Making], origin: Origin, pool: Pool) -> None:
    if all("duplicates.parquet" in folder.list(CODES) for folder, _, _ in parts):
        return
    for folder, identity, _ in parts:
        _make_codes(folder, identity, origin, pool)
    where: list[tuple[int, int]] = []  # part and index of each code

    def codes() -> Iterator[bytes]:
        for part, (folder, identity, _) in enumerate(parts):
            for shard in range(dataset.num_shards(identity)):
                table = pq.read_table(io.BytesIO(checked.read(folder, f"{CODES}/{shard:06d}.parquet")))
                where.extend((part, index) for index in table["index"].to_pylist())
                yield from table["code"].to_pylist()

    found: list[dict[int, tuple[int, int]]] = [{} for _ in parts]
    for number, kept in duplicates.find(codes(), parts[0][1]["dedupe"]["mode"]).items():
        part, index = where[number]
        found[part][index] = where[kept]
    for (folder, _, _), its in zip(parts, found, strict=True):
        names = [parts[part][2].name(index) for part, index in its.values()]
        _write(folder, _FOUND, pa.table({"index": pa.array(its, pa.int64()), "of": pa.array(names, pa.string())}))


def discard(folder: Folder) -> None:
    """Remove what only the making of a dataset needed."""
    for name in (catalogue.FOLDER, CODES):
        dataset.discard(folder, name)


def _make_codes(folder: Folder, identity: Mapping[str, Any], origin: Origin, pool: Pool) -> None:
    have = folder.list(CODES)
    todo = [shard for shard in range(dataset.num_shards(identity)) if f"{shard:06d}.parquet" not in have]
    failed: list[Done] = []
    why = ""
    done = int(identity["count"]) - sum(len(dataset.shard_range(identity, shard)) for shard in todo)
    undone = set(todo)
    with (
        last_words(f"ingest: error: {produce.ended(folder, len(todo))}"),
        Progress("ingest", int(identity["count"]), "images compared", done=done) as progress,
    ):
        try:
            for result in map_shards(CodeShard, {"output": folder.url, "origin": origin}, todo, pool):
                if result.error:
                    failed.append(result)
                    continue
                undone.remove(result.shard)
                done += len(dataset.shard_range(identity, result.shard))
                progress.update(done)
        except WorkersLostError as error:
            why = str(error)
    if undone:
        raise LostWorkError(produce.lost(folder, sorted(undone), failed, why))


def _read_found(folder: Folder) -> dict[int, str]:
    table = pq.read_table(io.BytesIO(checked.read(folder, _FOUND)))
    return dict(zip(table["index"].to_pylist(), table["of"].to_pylist(), strict=True))


def _write(folder: Folder, name: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    checked.write(folder, name, sink.getvalue())
