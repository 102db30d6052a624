"""A shard job: commit the missing shards of a claimed dataset, then seal it. Ingest and generate are shard jobs."""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.cluster import actor_pool, monitoring
from jobs.cluster.actor_pool import MAX_FAILURES
from jobs.cluster.connection import Pool
from jobs.cluster.failures import WorkersLostError
from jobs.cluster.process import report_sudden_end
from jobs.cluster.shard_worker import MakeWorker, ShardOutcome
from jobs.command.errors import LostWorkError, UsageError
from jobs.command.progress import Progress
from pipelines.dataset import card, layout, manifest, reader, writer
from pipelines.dataset.claim import canonical
from pipelines.dataset.identity import Identity
from pipelines.dataset.journal import Journal
from pipelines.dataset.layout import Index
from pipelines.dataset.manifest import Reject, ShardRecord
from pipelines.storage.folder import Folder


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """A dataset to be made, and the worker that makes its shards."""

    command: str
    folder: Folder
    identity: Identity
    worker: MakeWorker
    arguments: Mapping[str, Any]
    """The worker's constructor arguments."""
    existing: Collection[str] = ()
    """Files that are in the folder already and are sealed too."""
    batch: bool = False
    """Whether it is a Ray Data plan when there are more shards than workers."""
    limit: int | None = None
    """Shards to commit at most."""
    collect: Callable[[dict[str, Any]], None] = lambda result: None
    """Called with the worker's result for each shard."""
    check: Callable[[list[Reject]], None] = lambda rejects: None
    """Called with all rejects before the seal; it may raise."""


@dataclass(frozen=True, slots=True)
class ShardJobResult:
    """A sealed dataset and the work of this run."""

    index: Index | None  # None if `limit` left shards undone
    rejects: list[Reject]
    made: int  # samples that this run made
    seconds: float


@dataclass(slots=True)
class _Committed:
    """The shards that this run has committed, and those that failed."""

    records: dict[int, ShardRecord] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    failed: list[ShardOutcome] = field(default_factory=list)
    lost: str = ""  # the reason why Ray ended the job early
    samples: int = 0
    seconds: float = 0.0


def shard_result(record: ShardRecord, rejects: Iterable[Reject] = ()) -> dict[str, Any]:
    """The result of a ShardWorker that has committed a shard."""
    return {"record": asdict(record), "rejects": [asdict(reject) for reject in rejects]}


def run_shard_job(job: ShardJob, pool: Pool) -> ShardJobResult:
    """Run the worker over the shards that have no part yet, and seal the dataset when all have one.

    Raises: LostWorkError naming the shards that are not done and why; the others are done and stay.
    """
    folder, total = job.folder, layout.num_shards(job.identity)
    missing = writer.missing(folder, total)
    if not missing and layout.SEAL in folder.list():
        return _already_sealed(job)
    if len(missing) < total:
        print(f"{job.command}: going on: {total - len(missing):,} of {total:,} shards are done", flush=True)
    todo, journal = missing[: job.limit], Journal(folder, job.identity)
    with report_sudden_end(f"{job.command}: error: {sudden_end(folder, len(todo))}"):
        done = _commit(job, missing, todo, pool, journal)
        undone = sorted(set(todo) - set(done.records))
        if undone and is_sealed(folder, job.identity):
            print(f"{job.command}: {folder} was sealed by another run meanwhile; nothing more to do", flush=True)
            return ShardJobResult(reader.open_sealed(folder), [], 0, done.seconds)
        if undone:
            journal.flush()
            if done.failed and done.failed[0].trace:
                print(done.failed[0].trace, file=sys.stderr, flush=True)
            raise LostWorkError(lost_shards(folder, undone, done.failed, done.lost))
        if len(todo) < len(missing):
            journal.flush()
            return ShardJobResult(None, done.rejects, done.samples, done.seconds)
        try:
            index = _seal(job, done.records, done.rejects, journal)
        except OSError as error:
            raise LostWorkError(
                f"{folder}: all shards are done, but not sealed: {error}. The same command seals it"
            ) from error
    return ShardJobResult(index, done.rejects, done.samples, done.seconds)


def is_sealed(folder: Folder, identity: Identity) -> bool:
    """Whether a dataset of this identity is sealed: another run of the same command may have been quicker."""
    if layout.SEAL not in folder.list():
        return False
    return canonical(reader.open_sealed(folder).identity.to_json()) == canonical(identity.to_json())


def lost_shards(folder: Folder, undone: list[int], failed: list[ShardOutcome], lost: str) -> str:
    """The message for shards that are not done: which failed, and the reason why Ray ended the job, if it did."""
    causes = [lost] if lost else []
    if failed:
        names = _names(sorted(outcome.shard for outcome in failed))
        causes.insert(0, f"shards {names} failed, the first with: {failed[0].error}")
    cause = "; ".join(causes) or "Ray gave no answer for them"
    return (
        f"{len(undone)} shards of {folder} are not done ({_names(undone)}); {cause.rstrip('.')}. "
        f"What is finished stays; the same command does the rest"
    )


def sudden_end(folder: Folder, shards: int) -> str:
    """The message for a process that ends before all shards are done."""
    return (
        f"{folder}: ended before all of {shards} shards were done: its Ray cluster is gone, or it was killed. "
        f"What is finished stays; the same command does the rest"
    )


def _already_sealed(job: ShardJob) -> ShardJobResult:
    Journal(job.folder, job.identity).delete()
    index = reader.open_sealed(job.folder)
    reader.check_listed(job.folder, index)
    print(f"{job.command}: {job.folder} is complete and sealed; nothing to do", flush=True)
    return ShardJobResult(index, [], 0, 0.0)


def _commit(job: ShardJob, missing: list[int], todo: list[int], pool: Pool, journal: Journal) -> _Committed:
    """Run the worker over the shards of `todo`, and show the progress of the whole dataset."""
    done, count = _Committed(), job.identity.count
    before = count - sum(len(layout.shard_range(job.identity, shard)) for shard in missing)
    labels = {"command": job.command}
    with Progress(job.command, count, "images", done=before) as progress:
        try:
            for outcome in _map_shards(job, todo, pool):
                if outcome.error:
                    done.failed.append(outcome)
                    monitoring.FAILURES.inc(1, labels)
                    if outcome.trace:
                        line = f"{job.command}: shard {outcome.shard:06d} failed: {outcome.error}"
                        print(line, file=sys.stderr, flush=True)
                    continue
                record = ShardRecord(**outcome.result["record"])
                done.records[outcome.shard] = record
                journal.add(record, bool(outcome.result["rejects"]))
                job.collect(outcome.result)
                done.rejects += [Reject(**reject) for reject in outcome.result["rejects"]]
                samples = len(layout.shard_range(job.identity, outcome.shard))
                done.samples += samples
                monitoring.SHARDS.inc(1, labels)
                monitoring.IMAGES.inc(samples, labels)
                progress.update(before + done.samples, f"{len(done.failed)} shards failed" if done.failed else "")
        except WorkersLostError as error:
            done.lost = str(error)
    done.seconds = progress.seconds
    return done


def _map_shards(job: ShardJob, todo: list[int], pool: Pool) -> Iterator[ShardOutcome]:
    if not job.batch or len(todo) <= pool.workers:
        return actor_pool.map_shards(job.worker, job.arguments, todo, pool)
    from jobs.cluster import batch_plan  # imports Ray Data, which takes a second

    return batch_plan.map_shards(job.worker, job.arguments, todo, pool)


def _seal(job: ShardJob, records: dict[int, ShardRecord], rejects: list[Reject], journal: Journal) -> Index:
    """Seal a dataset of which this run made `records`. Records and rejects of earlier runs are added to both."""
    folder, identity = job.folder, job.identity
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
    job.check(rejects)
    extras = card.files(folder, identity, records)
    if rejects:
        extras[layout.REJECTS] = manifest.encode_rejects(rejects)
    index = writer.seal(folder, identity, records, extras, job.existing)
    journal.delete()
    return index


def _names(shards: list[int]) -> str:
    names = ", ".join(f"{shard:06d}" for shard in shards[:MAX_FAILURES])
    return names if len(shards) <= MAX_FAILURES else f"{names} and {len(shards) - MAX_FAILURES} more"
