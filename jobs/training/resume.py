"""Where a training goes on from: rank 0 decides, every rank loads that checkpoint, and they compare what they hold.

Each rank picking its own newest checkpoint is not enough: a folder may differ by node (a local path, a listing that is
behind), and ranks that went on from different weights would train side by side without a word.
"""

import json
import socket
from dataclasses import dataclass

from dcgan.training.step import Training
from jobs.command.settings import UsageError
from jobs.training import ranks, run_store
from pipelines.storage.folder import Folder, StorageError

_SHARED = "--run must be a path that every node shares, or a URL"


class RankMismatchError(UsageError):
    """Ranks that do not see the same run."""


@dataclass(frozen=True, slots=True)
class DriverView:
    """What the driver knows of the run: the sha256 of its run.json, and the newest checkpoint that was committed."""

    claim: str
    committed: int


def resume(
    run: Folder, schedule: run_store.TickSchedule, training: Training, rank: int, known: DriverView
) -> run_store.Checkpoint | None:
    """Have every rank go on from the same checkpoint, or from nothing. To be called by all of them, before a step.

    Raises: RankMismatchError on every rank, naming the one that sees something else, its node and the folder.
    """
    chosen, problem = _choose(run, schedule, known) if rank == 0 else (None, "")
    offer = {"images": chosen.images, "sha256": chosen.sha256} if chosen else {"images": 0, "sha256": ""}
    offer = json.loads(ranks.gather_text(json.dumps(offer))[0])
    if rank != 0:
        chosen, problem = _follow(run, schedule, known, offer["images"], offer["sha256"])
    problem = ranks.first_text(_by(rank, problem))
    if problem:
        raise RankMismatchError(problem)
    if chosen is None:
        return None
    training.load_state(chosen.state)
    check_identical(training, run)
    return chosen


def check_identical(training: Training, run: Folder) -> None:
    """Raises RankMismatchError on every rank, naming the first one that holds another state than rank 0."""
    held = [words.split() for words in ranks.gather_text(f"{training.digest()} {socket.gethostname()}")]
    for rank, (digest, node) in enumerate(held):
        if digest != held[0][0]:
            raise RankMismatchError(
                f"rank {rank} on node {node} holds other weights than rank 0 on node {held[0][1]} after both loaded "
                f"the same checkpoint of {run}: find what differs between the nodes (torch, memory), then start again"
            )


def _choose(
    run: Folder, schedule: run_store.TickSchedule, known: DriverView
) -> tuple[run_store.Checkpoint | None, str]:
    """The checkpoint to go on from, or a word on why there is none that may be taken."""
    try:
        _check_claim(run, known.claim)
        chosen = run_store.newest_checkpoint(run, schedule, known.committed)
    except (UsageError, StorageError) as error:
        return None, str(error)
    images = chosen.images if chosen else 0
    if images < known.committed:
        return None, (
            f"{run}: the newest whole checkpoint here is of {images:,} images, but one of {known.committed:,} was "
            f"committed: {_SHARED}; if it is one, start the same command again"
        )
    return chosen, ""


def _follow(
    run: Folder, schedule: run_store.TickSchedule, known: DriverView, images: int, sha256: str
) -> tuple[run_store.Checkpoint | None, str]:
    """The checkpoint that rank 0 chose, read by its name; or a word on why it cannot be had."""
    try:
        _check_claim(run, known.claim)
        chosen = run_store.load(run, images, schedule.network) if images else None
    except (UsageError, StorageError) as error:
        return None, f"{error}, but rank 0 goes on from the checkpoint of {images:,} images: {_SHARED}"
    if chosen and chosen.sha256 != sha256:
        return None, f"{run}: its checkpoint of {images:,} images is another than rank 0's: {_SHARED}"
    return chosen, ""


def _check_claim(run: Folder, expected: str) -> None:
    try:
        same = run_store.claim_digest(run) == expected
    except StorageError as error:
        raise UsageError(f"{error}, but the job wrote it: {_SHARED}") from error
    if not same:
        raise UsageError(f"{run}/{run_store.CLAIM}: another run's than the job's: {_SHARED}")


def _by(rank: int, problem: str) -> str:
    return f"rank {rank} on node {socket.gethostname()}: {problem}" if problem else ""
