"""What ingest and generate have in common: do the missing shards of a claimed dataset, then seal it."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jobs.cluster import Done, Pool, ShardWorker, map_shards
from jobs.progress import Progress
from jobs.settings import LostWorkError, UsageError
from pipelines import card, dataset, manifest
from pipelines.dataset import Index
from pipelines.manifest import Reject, ShardRecord
from pipelines.storage import Folder


@dataclass(frozen=True, slots=True)
class Product:
    """A sealed dataset and what this run had to do for it."""

    index: Index
    rejects: list[Reject]
    made: int  # samples that this run made
    seconds: float


def shard_result(record: ShardRecord, rejects: Iterable[Reject] = ()) -> dict[str, Any]:
    """What a ShardWorker answers when it has committed a shard."""
    return {"record": asdict(record), "rejects": [asdict(reject) for reject in rejects]}


def produce(
    command: str,
    folder: Folder,
    identity: Mapping[str, Any],
    worker: type[ShardWorker],
    arguments: Mapping[str, Any],
    pool: Pool,
    existing: Iterable[str] = (),
) -> Product:
    """Run `worker` over the shards that have no part yet, and seal the dataset when all have one.

    Raises: LostWorkError naming the shards that failed and why; the others are done and stay.
    """
    total = dataset.num_shards(identity)
    todo = dataset.missing(folder, total)
    if not todo and dataset.SEAL in folder.list():
        print(f"{command}: {folder} is complete and sealed; nothing to do", flush=True)
        return Product(dataset.open_sealed(folder), [], 0, 0.0)
    if len(todo) < total:
        print(f"{command}: going on: {total - len(todo):,} of {total:,} shards are done", flush=True)
    records: dict[int, ShardRecord] = {}
    rejects: list[Reject] = []
    failed: list[Done] = []
    before = int(identity["count"]) - sum(len(dataset.shard_range(identity, shard)) for shard in todo)
    with Progress(command, int(identity["count"]), "images", done=before) as progress:
        done_images = before
        for done in map_shards(worker, arguments, todo, pool):
            if done.error:
                failed.append(done)
                print(f"{command}: shard {done.shard:06d} failed: {done.error}", file=sys.stderr, flush=True)
                continue
            records[done.shard] = ShardRecord(**done.result["record"])
            rejects += [Reject(**reject) for reject in done.result["rejects"]]
            done_images += len(dataset.shard_range(identity, done.shard))
            progress.update(done_images, f"{len(failed)} shards failed" if failed else "")
    if failed:
        print(failed[0].trace, file=sys.stderr, flush=True)
        raise LostWorkError(_lost(folder, [done.shard for done in failed], len(todo) - len(records), failed[0].error))
    for shard in set(range(total)) - set(records):
        part, records[shard] = dataset.read_part(folder, shard)
        rejects += part.rejects
    rejects.sort(key=lambda reject: reject.index)
    if not any(record.samples for record in records.values()):
        first = rejects[0]
        raise UsageError(
            f"{folder}: none of {len(rejects):,} images could be taken; {first.source}: {first.reason}; "
            f"check --source, and use another --output"
        )
    extras = card.files(folder, identity, records)
    if rejects:
        extras[dataset.REJECTS] = manifest.encode_rejects(rejects)
    index = dataset.seal(folder, identity, records, extras, existing)
    return Product(index, rejects, done_images - before, progress.seconds)


def _lost(folder: Folder, failed: list[int], lost: int, why: str) -> str:
    names = ", ".join(f"{shard:06d}" for shard in sorted(failed))
    return (
        f"{lost} shards of {folder} are not done; shards {names} failed, the first with: {why}. "
        f"What is finished stays; the same command does the rest"
    )
