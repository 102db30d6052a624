"""The progress of a training, from rank 0 to the driver.

A module of its own: an actor that imports torch costs 260 MB.
"""

from typing import NamedTuple

import ray


class ProgressUpdate(NamedTuple):
    """The progress of rank 0. The driver prints each of the `warnings` once."""

    images: int
    note: str
    warnings: tuple[str, ...] = ()


class ProgressState(NamedTuple):
    """The driver's view. `error`: the reason why training has to stop. `committed`: images of the newest checkpoint."""

    update: ProgressUpdate
    error: str
    committed: int


@ray.remote(num_cpus=0)
class ProgressActor:
    """Holds the progress that rank 0 reports and the driver reads.

    Two facts of a run are kept here and not on a node. The newest committed checkpoint: a node with an older view must
    not resume from before it. The first error that would recur after a restart.
    """

    def __init__(self, committed: int) -> None:
        self.state = ProgressState(ProgressUpdate(committed, ""), "", committed)
        self.starts = 0

    def started(self) -> tuple[int, int]:
        """Count a start of the workers. Returns the starts so far, and the images of the newest checkpoint."""
        self.starts += 1
        return self.starts, self.state.committed

    def write(self, update: ProgressUpdate) -> None:
        """Replace the update. Warnings stay: the next update may come before the driver reads this one."""
        warnings = tuple(dict.fromkeys((*self.state.update.warnings, *update.warnings)))
        self.state = self.state._replace(update=update._replace(warnings=warnings))

    def commit(self, images: int) -> None:
        """Record a complete checkpoint. Await it: a call that nobody waits for may be lost with its worker."""
        self.state = self.state._replace(committed=max(images, self.state.committed))

    def fail(self, error: str) -> None:
        """Record the reason why training has to stop. The first one counts. Await it."""
        self.state = self.state._replace(error=self.state.error or error)

    def read(self) -> ProgressState:
        return self.state
