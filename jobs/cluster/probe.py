"""The arithmetic of a worker: the driver's machine may be of another kind."""

import socket
from collections.abc import Callable
from typing import TypeVar

from dcgan.arithmetic import Arithmetic
from jobs.cluster import actor_pool, connection
from jobs.cluster.connection import Pool
from jobs.command.errors import UsageError

T = TypeVar("T")


def probe(pool: Pool, precision: str, also: Callable[[Arithmetic], T], workers: int) -> tuple[Arithmetic, T]:
    """The arithmetic of a worker of the pool, and what `also` returns there.

    Args:   also: called in the worker; what it raises is raised here. workers: as many are started meanwhile.
    Raises: UsageError if Ray has GPUs and torch has not. WorkersLostError if the worker dies.
    """
    actor_pool.start(pool, workers)
    for actor in pool.actors[1:]:
        actor.call.remote(_import_torch)
    return actor_pool.call(pool, _probe, pool.gpus_per_worker > 0, precision, also)


def probe_for_training(pool: Pool, precision: str) -> tuple[Arithmetic, dict[str, str]]:
    """As `probe`, without a worker that stays: Ray Train starts its own.

    It runs here if workers run on this machine and need no GPU: the driver of a training imports torch anyway.
    """
    if len(connection.nodes()) == 1 and not pool.gpus_per_worker:
        return _probe(False, precision, fingerprint)
    try:
        return probe(pool, precision, fingerprint, 1)
    finally:
        pool.stop()


def fingerprint(chosen: Arithmetic) -> dict[str, str]:
    """`numerics.fingerprint`, for `probe`. It is imported in the worker."""
    from dcgan import numerics

    return numerics.fingerprint(chosen)


def _probe(gpu: bool, precision: str, also: Callable[[Arithmetic], T]) -> tuple[Arithmetic, T]:
    import torch

    from dcgan import numerics

    if gpu and not torch.cuda.is_available():
        raise UsageError(
            f"Ray gives workers a GPU, but torch {torch.__version__} sees none on node {socket.gethostname()}; use "
            "--device cpu, or install a torch for that GPU's driver"
        )
    chosen = numerics.choose(precision, "cuda" if gpu else "cpu")
    return chosen, also(chosen)


def _import_torch() -> None:
    import torch  # noqa: F401
