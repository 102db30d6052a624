"""Find duplicates before an ingest: workers compute a code of every image, the driver compares the codes."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.cluster import shard_job
from jobs.cluster.actor_pool import ShardOutcome, map_shards
from jobs.cluster.connection import Pool
from jobs.cluster.failures import WorkersLostError
from jobs.cluster.process import report_sudden_end
from jobs.command.progress import Progress
from jobs.command.settings import LostWorkError
from jobs.ingestion.worker import CODES, FOUND, CodeShard, write_table
from pipelines.dataset import checked_file, layout, writer
from pipelines.ingest import catalogue, duplicates
from pipelines.ingest.catalogue import Catalogue
from pipelines.sources.registry import Origin
from pipelines.storage.folder import Folder, MissingError

Making = tuple[Folder, Mapping[str, Any], Catalogue]  # a dataset in the making


def find_duplicates(parts: Sequence[Making], origin: Origin, pool: Pool) -> None:
    """Compare all images of the parts, of which the first that are found are kept: of earlier parts, of lower indices.

    What is found lies beside each part for the workers that take its images.

    Raises: LostWorkError naming the shards whose images could not be compared.
    """
    try:
        _find_duplicates(parts, origin, pool)
    except (LostWorkError, MissingError):  # another run of the same command sealed all, and then removed the codes
        if not all(shard_job.is_sealed(folder, identity) for folder, identity, _ in parts):
            raise


def _find_duplicates(parts: Sequence[Making], origin: Origin, pool: Pool) -> None:
    if all("duplicates.parquet" in folder.list(CODES) for folder, _, _ in parts):
        return
    for folder, identity, _ in parts:
        _make_codes(folder, identity, origin, pool)
    where: list[tuple[int, int]] = []  # part and index of each code

    def codes() -> Iterator[bytes]:
        for part, (folder, identity, _) in enumerate(parts):
            for shard in range(layout.num_shards(identity)):
                table = pq.read_table(io.BytesIO(checked_file.read(folder, f"{CODES}/{shard:06d}.parquet")))
                where.extend((part, index) for index in table["index"].to_pylist())
                yield from table["code"].to_pylist()

    found: list[dict[int, tuple[int, int]]] = [{} for _ in parts]
    for number, kept in duplicates.find(codes(), parts[0][1]["dedupe"]["mode"]).items():
        part, index = where[number]
        found[part][index] = where[kept]
    for (folder, _, _), its in zip(parts, found, strict=True):
        names = [parts[part][2].name(index) for part, index in its.values()]
        write_table(folder, FOUND, pa.table({"index": pa.array(its, pa.int64()), "of": pa.array(names, pa.string())}))


def discard_scratch(folder: Folder) -> None:
    """Remove what only the making of a dataset needed."""
    for name in (catalogue.FOLDER, CODES):
        writer.discard(folder, name)


def _make_codes(folder: Folder, identity: Mapping[str, Any], origin: Origin, pool: Pool) -> None:
    have = folder.list(CODES)
    todo = [shard for shard in range(layout.num_shards(identity)) if f"{shard:06d}.parquet" not in have]
    failed: list[ShardOutcome] = []
    why = ""
    done = int(identity["count"]) - sum(len(layout.shard_range(identity, shard)) for shard in todo)
    undone = set(todo)
    with (
        report_sudden_end(f"ingest: error: {shard_job.ended(folder, len(todo))}"),
        Progress("ingest", int(identity["count"]), "images compared", done=done) as progress,
    ):
        try:
            for result in map_shards(CodeShard, {"output": folder.url, "origin": origin}, todo, pool):
                if result.error:
                    failed.append(result)
                    continue
                undone.remove(result.shard)
                done += len(layout.shard_range(identity, result.shard))
                progress.update(done)
        except WorkersLostError as error:
            why = str(error)
    if undone:
        raise LostWorkError(shard_job.lost(folder, sorted(undone), failed, why))
