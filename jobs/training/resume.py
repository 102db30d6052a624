"""Resume a training: rank 0 chooses the checkpoint, every rank loads it, and the ranks compare their weights.

It is not enough that each rank takes its own newest checkpoint. A folder may differ by node (a local path, a listing
that is behind), and ranks that resumed from different weights would train side by side without an error.
"""

import json
import socket
from dataclasses import dataclass

from dcgan.training.step import Training
from jobs.command.errors import UsageError
from jobs.training import checkpoints, ranks, run_store
from jobs.training.checkpoints import Checkpoint, TickSchedule
from pipelines.storage.folder import Folder, StorageError

_SHARED = "--run must be a path that every node shares, or a URL"


class RankMismatchError(UsageError):
    """Ranks that do not see the same run."""


@dataclass(frozen=True, slots=True)
class DriverView:
    """The run as the driver sees it: the sha256 of its run.json, and the images of the newest committed checkpoint."""

    claim: str
    committed: int


def resume(run: Folder, schedule: TickSchedule, training: Training, rank: int, view: DriverView) -> Checkpoint | None:
    """Load the same checkpoint on every rank; None for a new run. All ranks call this before the first step.

    Raises: RankMismatchError on every rank, naming the rank that sees another run, its node and the folder.
    """
    checkpoint, problem = _choose(run, schedule, view) if rank == 0 else (None, "")
    chosen = {"images": checkpoint.images, "sha256": checkpoint.sha256} if checkpoint else {"images": 0, "sha256": ""}
    chosen = json.loads(ranks.gather_text(json.dumps(chosen))[0])
    if rank != 0:
        checkpoint, problem = _follow(run, schedule, view, chosen["images"], chosen["sha256"])
    if problem:
        problem = f"rank {rank} on node {socket.gethostname()}: {problem}"
    problem = ranks.first_text(problem)
    if problem:
        raise RankMismatchError(problem)
    if checkpoint is None:
        return None
    training.load_state(checkpoint.state)
    check_identical(training, run)
    return checkpoint


def check_identical(training: Training, run: Folder) -> None:
    """Compare the ranks' states. Raises RankMismatchError on every rank, naming the first that differs from rank 0."""
    states = [text.split() for text in ranks.gather_text(f"{training.digest()} {socket.gethostname()}")]
    for rank, (digest, node) in enumerate(states):
        if digest != states[0][0]:
            raise RankMismatchError(
                f"rank {rank} on node {node} holds other weights than rank 0 on node {states[0][1]} after both loaded "
                f"the same checkpoint of {run}: find what differs between the nodes (torch, memory), then start again"
            )


def _choose(run: Folder, schedule: TickSchedule, view: DriverView) -> tuple[Checkpoint | None, str]:
    """The checkpoint to resume from, or the reason why there is none."""
    try:
        _check_claim(run, view.claim)
        checkpoint = checkpoints.newest(run, schedule, view.committed)
    except (UsageError, StorageError) as error:
        return None, str(error)
    images = checkpoint.images if checkpoint else 0
    if images < view.committed:
        return None, (
            f"{run}: the newest complete checkpoint here is of {images:,} images, but one of {view.committed:,} was "
            f"committed: {_SHARED}; if it is one, start the same command again"
        )
    return checkpoint, ""


def _follow(
    run: Folder, schedule: TickSchedule, view: DriverView, images: int, sha256: str
) -> tuple[Checkpoint | None, str]:
    """The checkpoint that rank 0 chose, read by its name; or the reason why it cannot be read."""
    try:
        _check_claim(run, view.claim)
        checkpoint = checkpoints.load(run, images, schedule.network) if images else None
    except (UsageError, StorageError) as error:
        return None, f"{error}, but rank 0 resumes from the checkpoint of {images:,} images: {_SHARED}"
    if checkpoint and checkpoint.sha256 != sha256:
        return None, f"{run}: its checkpoint of {images:,} images differs from rank 0's: {_SHARED}"
    return checkpoint, ""


def _check_claim(run: Folder, expected: str) -> None:
    try:
        same = run_store.claim_digest(run) == expected
    except StorageError as error:
        raise UsageError(f"{error}, but the job wrote it: {_SHARED}") from error
    if not same:
        raise UsageError(f"{run}/{run_store.CLAIM}: this is not the job's run: {_SHARED}")
