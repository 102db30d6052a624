"""What ingest and generate have in common: do the missing shards of a claimed dataset, then seal it."""

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jobs.cluster import monitoring
from jobs.cluster.actor_pool import MAX_FAILURES, ShardOutcome, ShardWorker, map_shards
from jobs.cluster.connection import Pool
from jobs.cluster.failures import WorkersLostError
from jobs.cluster.process import report_sudden_end
from jobs.command.progress import Progress
from jobs.command.settings import LostWorkError, UsageError
from pipelines.dataset import card, layout, manifest, reader, writer
from pipelines.dataset.claim import canonical
from pipelines.dataset.journal import Journal
from pipelines.dataset.layout import Index
from pipelines.dataset.manifest import Reject, ShardRecord
from pipelines.storage.folder import Folder


@dataclass(frozen=True, slots=True)
class ShardJobResult:
    """A sealed dataset and what this run had to do for it."""

    index: Index | None  # None where `limit` left shards undone
    rejects: list[Reject]
    made: int  # samples that this run made
    seconds: float


def shard_result(record: ShardRecord, rejects: Iterable[Reject] = ()) -> dict[str, Any]:
    """What a ShardWorker answers when it has committed a shard."""
    return {"record": asdict(record), "rejects": [asdict(reject) for reject in rejects]}


def run_shard_job(
    command: str,
    folder: Folder,
    identity: Mapping[str, Any],
    worker: type[ShardWorker],
    arguments: Mapping[str, Any],
    pool: Pool,
    existing: Collection[str] = (),
    limit: int | None = None,
    collect: Callable[[dict[str, Any]], None] = lambda result: None,
    check: Callable[[list[Reject]], None] = lambda rejects: None,
) -> ShardJobResult:
    """Run `worker` over the shards that have no part yet, and seal the dataset when all have one.

    Args:   existing: files that are there already and are sealed too. limit: shards to do at most.
            collect: is given the worker's answer for each shard. check: is given all rejects before the seal.
    Raises: LostWorkError naming the shards that are not done and why; the others are done and stay.
    """
    total = layout.num_shards(identity)
    missing = writer.missing(folder, total)
    if not missing and layout.SEAL in folder.list():
        Journal(folder, identity).delete()
        index = reader.open_sealed(folder)
        reader.check_listed(folder, index)
        print(f"{command}: {folder} is complete and sealed; nothing to do", flush=True)
        return ShardJobResult(index, [], 0, 0.0)
    if len(missing) < total:
        print(f"{command}: going on: {total - len(missing):,} of {total:,} shards are done", flush=True)
    todo = missing[:limit]
    records: dict[int, ShardRecord] = {}
    rejects: list[Reject] = []
    failed: list[ShardOutcome] = []
    why = ""
    before = int(identity["count"]) - sum(len(layout.shard_range(identity, shard)) for shard in missing)
    done_images = before
    journal = Journal(folder, identity)
    with report_sudden_end(f"{command}: error: {ended(folder, len(todo))}"):
        with Progress(command, int(identity["count"]), "images", done=before) as progress:
            try:
                for done in map_shards(worker, arguments, todo, pool):
                    if done.error:
                        failed.append(done)
                        monitoring.FAILURES.inc(1, {"command": command})
                        if done.trace:
                            line = f"{command}: shard {done.shard:06d} failed: {done.error}"
                            print(line, file=sys.stderr, flush=True)
                        continue
                    records[done.shard] = ShardRecord(**done.result["record"])
                    journal.add(records[done.shard], bool(done.result["rejects"]))
                    collect(done.result)
                    rejects += [Reject(**reject) for reject in done.result["rejects"]]
                    images = len(layout.shard_range(identity, done.shard))
                    done_images += images
                    monitoring.SHARDS.inc(1, {"command": command})
                    monitoring.IMAGES.inc(images, {"command": command})
                    progress.update(done_images, f"{len(failed)} shards failed" if failed else "")
            except WorkersLostError as error:
                why = str(error)
        undone = sorted(set(todo) - set(records))
        if undone and is_sealed(folder, identity):
            print(f"{command}: {folder} was sealed by another run meanwhile; nothing more to do", flush=True)
            return ShardJobResult(reader.open_sealed(folder), [], 0, progress.seconds)
        if undone:
            journal.flush()
            if failed and failed[0].trace:
                print(failed[0].trace, file=sys.stderr, flush=True)
            raise LostWorkError(lost(folder, undone, failed, why))
        if len(todo) < len(missing):
            journal.flush()
            return ShardJobResult(None, rejects, done_images - before, progress.seconds)
        try:
            index = _seal(folder, identity, records, rejects, existing, journal, check)
        except OSError as error:
            raise LostWorkError(
                f"{folder}: all shards are done, but not sealed: {error}. The same command seals it"
            ) from error
    return ShardJobResult(index, rejects, done_images - before, progress.seconds)


def is_sealed(folder: Folder, identity: Mapping[str, Any]) -> bool:
    """Whether a dataset of this identity is complete: another run of the same command may have been quicker."""
    return layout.SEAL in folder.list() and canonical(reader.open_sealed(folder).identity) == canonical(identity)


def _seal(
    folder: Folder,
    identity: Mapping[str, Any],
    records: dict[int, ShardRecord],
    rejects: list[Reject],
    existing: Collection[str],
    journal: Journal,
    check: Callable[[list[Reject]], None],
) -> Index:
    """Seal a dataset of which this run made `records`; those of earlier runs, and their rejects, are added to both."""
    earlier = sorted(set(range(layout.num_shards(identity))) - set(records))
    for record, found in writer.records_of(folder, earlier, journal):
        records[record.shard] = record
        rejects += found
    rejects.sort(key=lambda reject: reject.index)
    if not any(record.samples for record in records.values()):
        first = rejects[0]
        raise UsageError(
            f"{folder}: none of {len(rejects):,} images could be taken; {first.source}: {first.reason}; "
            f"check --source, and use another --output"
        )
    check(rejects)
    extras = card.files(folder, identity, records)
    if rejects:
        extras[layout.REJECTS] = manifest.encode_rejects(rejects)
    index = writer.seal(folder, identity, records, extras, existing)
    journal.delete()
    return index


def lost(folder: Folder, undone: list[int], failed: list[ShardOutcome], why: str) -> str:
    """What is not done and why: shards that failed, or `why` none of the others will be done, or both."""
    causes = [why] if why else []
    if failed:
        names = _names(sorted(done.shard for done in failed))
        causes.insert(0, f"shards {names} failed, the first with: {failed[0].error}")
    cause = "; ".join(causes) or "Ray gave no answer for them"
    return (
        f"{len(undone)} shards of {folder} are not done ({_names(undone)}); {cause.rstrip('.')}. "
        f"What is finished stays; the same command does the rest"
    )


def ended(folder: Folder, shards: int) -> str:
    return (
        f"{folder}: ended before all of {shards} shards were done: its Ray cluster is gone, or it was killed. "
        f"What is finished stays; the same command does the rest"
    )


def _names(shards: list[int]) -> str:
    names = ", ".join(f"{shard:06d}" for shard in shards[:MAX_FAILURES])
    return names if len(shards) <= MAX_FAILURES else f"{names} and {len(shards) - MAX_FAILURES} more"
