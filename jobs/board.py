"""How far a training is, from rank 0 to the driver. Apart from both: an actor that imported torch would cost 260 MB."""

from typing import NamedTuple

import ray


class Post(NamedTuple):
    """How far rank 0 is; `error` says why training had to stop, `warnings` what looks wrong."""

    images: int
    note: str
    error: str
    warnings: tuple[str, ...] = ()


@ray.remote(num_cpus=0)
class Board:
    """Where rank 0 posts how far it is, and the driver reads it."""

    def __init__(self) -> None:
        self.post = Post(0, "", "")
        self.starts = 0

    def started(self) -> int:
        """How often the workers have been started, this time included."""
        self.starts += 1
        return self.starts

    def write(self, post: Post) -> None:
        """Warnings stay until others come: the next post may be there before the driver looks."""
        self.post = post._replace(warnings=post.warnings or self.post.warnings)

    def read(self) -> Post:
        return self.post
