"""Find duplicates before an ingest: workers compute a code of every image, and the driver compares the codes."""

import io
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.cluster import shard_job
from jobs.cluster.actor_pool import map_shards
from jobs.cluster.connection import Pool
from jobs.cluster.failures import WorkersLostError
from jobs.cluster.process import report_sudden_end
from jobs.cluster.shard_worker import ShardOutcome
from jobs.command.errors import LostWorkError
from jobs.command.progress import Progress
from jobs.ingestion.worker import CODES, FOUND, CodeShard, write_table
from pipelines.dataset import checked_file, layout, writer
from pipelines.dataset.identity import IngestIdentity
from pipelines.ingest import catalogue, duplicates
from pipelines.ingest.catalogue import Catalogue
from pipelines.sources.registry import Origin
from pipelines.storage.folder import Folder, MissingError

DatasetInProgress = tuple[Folder, IngestIdentity, Catalogue]  # its folder, identity and catalogue


def find_duplicates(parts: Sequence[DatasetInProgress], origin: Origin, pool: Pool) -> None:
    """Compare all images of the parts. Of duplicates the first is kept: in the earlier part, at the lower index.

    The result lies beside each part, for its ingest workers.

    Raises: LostWorkError naming the shards whose images could not be compared.
    """
    try:
        _find_duplicates(parts, origin, pool)
    except (LostWorkError, MissingError):  # another run of the same command has sealed all and removed the codes
        if not all(shard_job.is_sealed(folder, identity) for folder, identity, _ in parts):
            raise


def _find_duplicates(parts: Sequence[DatasetInProgress], origin: Origin, pool: Pool) -> None:
    if all("duplicates.parquet" in folder.list(CODES) for folder, _, _ in parts):
        return
    for folder, identity, _ in parts:
        _make_codes(folder, identity, origin, pool)
    places: list[tuple[int, int]] = []  # part and index of each code

    def codes() -> Iterator[bytes]:
        for part, (folder, identity, _) in enumerate(parts):
            for shard in range(layout.num_shards(identity)):
                table = pq.read_table(io.BytesIO(checked_file.read(folder, f"{CODES}/{shard:06d}.parquet")))
                places.extend((part, index) for index in table["index"].to_pylist())
                yield from table["code"].to_pylist()

    found: list[dict[int, tuple[int, int]]] = [{} for _ in parts]
    dedupe = parts[0][1].dedupe
    assert dedupe is not None, "asked for"
    for number, kept in duplicates.find(codes(), dedupe.mode).items():
        part, index = places[number]
        found[part][index] = places[kept]
    for (folder, _, _), its in zip(parts, found, strict=True):
        names = [parts[part][2].name(index) for part, index in its.values()]
        write_table(folder, FOUND, pa.table({"index": pa.array(its, pa.int64()), "of": pa.array(names, pa.string())}))


def discard_scratch(folder: Folder) -> None:
    """Remove the files that only the ingest needs: catalogue and codes."""
    for name in (catalogue.FOLDER, CODES):
        writer.discard(folder, name)


def _make_codes(folder: Folder, identity: IngestIdentity, origin: Origin, pool: Pool) -> None:
    existing = folder.list(CODES)
    todo = [shard for shard in range(layout.num_shards(identity)) if f"{shard:06d}.parquet" not in existing]
    failed: list[ShardOutcome] = []
    lost = ""
    done = identity.count - sum(len(layout.shard_range(identity, shard)) for shard in todo)
    undone = set(todo)
    with (
        report_sudden_end(f"ingest: error: {shard_job.sudden_end(folder, len(todo))}"),
        Progress("ingest", identity.count, "images compared", done=done) as progress,
    ):
        try:
            for outcome in map_shards(CodeShard, {"output": folder.url, "origin": origin}, todo, pool):
                if outcome.error:
                    failed.append(outcome)
                    continue
                undone.remove(outcome.shard)
                done += len(layout.shard_range(identity, outcome.shard))
                progress.update(done)
        except WorkersLostError as error:
            lost = str(error)
    if undone:
        raise LostWorkError(shard_job.lost_shards(folder, sorted(undone), failed, lost))
