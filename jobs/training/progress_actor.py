"""How far a training is, from rank 0 to the driver. Apart from both: an actor that imported torch would cost 260 MB."""

from typing import NamedTuple

import ray


class ProgressUpdate(NamedTuple):
    """How far rank 0 is; `warnings` are lines to be told once."""

    images: int
    note: str
    warnings: tuple[str, ...] = ()


class ProgressState(NamedTuple):
    """What the driver reads: `error` says why training had to stop, `committed` is the newest checkpoint's images."""

    update: ProgressUpdate
    error: str
    committed: int


@ray.remote(num_cpus=0)
class ProgressActor:
    """Where rank 0 posts how far it is, and the driver reads it.

    What a run stands by is remembered here, not on a node: the newest checkpoint that was committed, which a node with
    an older view must not go back behind, and the first error that another start would only meet again.
    """

    def __init__(self, committed: int) -> None:
        self.state = ProgressState(ProgressUpdate(committed, ""), "", committed)
        self.starts = 0

    def started(self) -> tuple[int, int]:
        """How often the workers have been started, this time included; images of the newest checkpoint."""
        self.starts += 1
        return self.starts, self.state.committed

    def write(self, update: ProgressUpdate) -> None:
        """Warnings stay: the next post may be there before the driver looks."""
        warnings = tuple(dict.fromkeys((*self.state.update.warnings, *update.warnings)))
        self.state = self.state._replace(update=update._replace(warnings=warnings))

    def commit(self, images: int) -> None:
        """A checkpoint is complete. To be awaited: a call that nobody waits for may be lost with its worker."""
        self.state = self.state._replace(committed=max(images, self.state.committed))

    def fail(self, error: str) -> None:
        """Training has to stop. The first error counts. To be awaited."""
        self.state = self.state._replace(error=self.state.error or error)

    def read(self) -> ProgressState:
        return self.state
