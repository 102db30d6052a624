"""What ingest and generate have in common: do the missing shards of a claimed dataset, then seal it."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jobs.cluster import Done, Pool, ShardWorker, map_shards
from jobs.progress import Progress
from jobs.settings import LostWorkError
from pipelines import card, dataset, manifest
from pipelines.dataset import Index
from pipelines.manifest import Reject, ShardRecord
from pipelines.storage import Folder


@dataclass(frozen=True, slots=True)
class Product:
    """A sealed dataset and what this run had to do for it."""

    index: Index | None  # None where `limit` left shards undone
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
    limit: int | None = None,
    collect: Callable[[dict[str, Any]], None] = lambda result: None,
) -> Product:
    """Run `worker` over the shards that have no part yet, and seal the dataset when all have one.

    Args:   existing: files that are there already and are sealed too. limit: shards to do at most.
            collect: is given the worker's answer for each shard.
    Raises: LostWorkError naming the shards that failed and why; the others are done and stay.
    """
    total = dataset.num_shards(identity)
    todo = dataset.missing(folder, total)
    if not todo and dataset.SEAL in folder.list():
        dataset.Journal(folder).delete()
        print(f"{command}: {folder} is complete and sealed; nothing to do", flush=True)
        return Product(dataset.open_sealed(folder), [], 0, 0.0)
    if len(todo) < total:
        print(f"{command}: going on: {total - len(todo):,} of {total:,} shards are done", flush=True)
    records: dict[int, ShardRecord] = {}
    rejects: list[Reject] = []
    failed: list[Done] = []
    before = int(identity["count"]) - sum(len(dataset.shard_range(identity, shard)) for shard in todo)
    journal = dataset.Journal(folder)
    with Progress(command, int(identity["count"]), "images", done=before) as progress:
        done_images = before
        for done in map_shards(worker, arguments, todo[:limit], pool):
            if done.error:
                failed.append(done)
                print(f"{command}: shard {done.shard:06d} failed: {done.error}", file=sys.stderr, flush=True)
                continue
            records[done.shard] = ShardRecord(**done.result["record"])
            journal.add(records[done.shard], bool(done.result["rejects"]))
            collect(done.result)
            rejects += [Reject(**reject) for reject in done.result["rejects"]]
            done_images += len(dataset.shard_range(identity, done.shard))
            progress.update(done_images, f"{len(failed)} shards failed" if failed else "")
    if failed:
        print(failed[0].trace, file=sys.stderr, flush=True)
        journal.flush()
        raise LostWorkError(_lost(folder, [done.shard for done in failed], len(todo) - len(records), failed[0].error))
    if limit is not None and limit < len(todo):
        journal.flush()
        return Product(None, rejects, done_images - before, progress.seconds)
    earlier = sorted(set(range(total)) - set(records))
    for record, found in dataset.records_of(folder, earlier, journal):
        records[record.shard] = record
        rejects += found
    rejects.sort(key=lambda reject: reject.index)
    extras = card.files(folder, identity, records)
    if rejects:
        extras[dataset.REJECTS] = manifest.encode_rejects(rejects)
    index = dataset.seal(folder, identity, records, extras, existing)
    journal.delete()
    return Product(index, rejects, done_images - before, progress.seconds)


def _lost(folder: Folder, failed: list[int], lost: int, why: str) -> str:
    names = ", ".join(f"{shard:06d}" for shard in sorted(failed))
    return (
        f"{lost} shards of {folder} are not done; shards {names} failed, the first with: {why}. "
        f"What is finished stays; the same command does the rest"
    )
