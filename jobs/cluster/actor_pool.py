"""Run a worker over shards in a pool of plain actors, which stay for the next call.

A worker makes and writes a shard whole, and returns a few numbers. No image goes through the object store.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayError

from jobs.cluster.connection import Pool, room_for
from jobs.cluster.failures import WorkersLostError, one_line
from jobs.cluster.shard_worker import MakeWorker, ShardOutcome, ShardRunner

T = TypeVar("T")

# One bad shard must not stop the good ones; but if all shards fail, the job must not try a million of them.
MAX_FAILURES = 8
# Infrastructure failures (a killed worker, a lost node) are retried; our own exceptions never are. A worker is
# restarted this often; one that still dies ends the job.
MAX_RETRIES = 8
# Retries of a call that a worker does not answer. 8 of them take 15 s, as long as Ray may need to notice a lost node; a
# hung node takes a minute. So this is not a bound on deaths.
MAX_TASK_RETRIES = 50
IN_FLIGHT = 2  # shards of an actor, so that it does not wait for the driver
IDLE_S = 10.0  # after this time without an answer, actors without a shard give their CPUs back


def map_shards(
    make: MakeWorker, arguments: Mapping[str, Any], shards: Sequence[int], pool: Pool
) -> Iterator[ShardOutcome]:
    """Run `make(**arguments)` over shards in a pool of actors. Yields each outcome as it comes, in any order.

    A worker's own exception ends its shard, not the others. After MAX_FAILURES of them no more shards start.

    Raises: WorkersLostError after MAX_RETRIES deaths of a worker, or for any other error of Ray's own.
    """
    size = min(pool.workers, len(shards))
    if not size:
        return
    say_room(pool, size)
    start(pool, size)
    try:
        yield from _share_out(pool, size, make, dict(arguments), shards)
    except RayError as error:
        raise lost(error) from error


def call(pool: Pool, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in an actor. What it raises of our own errors is raised here.

    Raises: WorkersLostError if the actor dies.
    """
    start(pool, 1)
    try:
        found = ray.get(pool.actors[0].call.remote(function, *arguments))
    except RayError as error:
        raise lost(error) from error
    if isinstance(found, Exception):
        raise found
    result: T = found
    return result


def start(pool: Pool, size: int) -> None:
    """Start actors until the pool has `size`. They may wait for room."""
    actor: Any = ray.remote(
        num_cpus=1, num_gpus=pool.gpus_per_worker, max_restarts=MAX_RETRIES, max_task_retries=MAX_TASK_RETRIES
    )(ShardRunner)
    pool.actors += [actor.remote() for _ in range(size - len(pool.actors))]


def say_room(pool: Pool, size: int) -> None:
    """Print a line if the cluster has no room for all workers."""
    if (room := room_for(pool.bundle())) < size:
        print(f"room for {room} of {size} workers; the others start when there is more", file=sys.stderr, flush=True)


def lost(error: RayError) -> WorkersLostError:
    """The error of a job whose workers Ray could not keep."""
    what, why = "Ray failed", one_line(error)
    if isinstance(error, RayActorError):
        gone = "its owner has died" in why  # the owner is this process: its node died, and this process goes soon
        what = "its Ray cluster is gone" if gone else f"a worker died more than {MAX_RETRIES} times"
    return WorkersLostError(f"{what}: {why}")


def _share_out(
    pool: Pool, size: int, make: MakeWorker, arguments: dict[str, Any], shards: Sequence[int]
) -> Iterator[ShardOutcome]:
    """Give each actor IN_FLIGHT shards once it runs, and one more for each that it returns.

    An actor that waits for room gets none: a shard that it held would wait with it. An actor whose node was lost waits
    with its shards: in the end the others make room for it.
    """
    left, failed = deque(shards), 0
    starting = {actor.__ray_ready__.remote(): actor for actor in pool.actors[:size]}
    running: dict[Any, Any] = {}

    def give(actor: Any, count: int) -> None:
        for _ in range(min(count, len(left)) if failed < MAX_FAILURES else 0):
            running[actor.run.remote(make, arguments, left.popleft())] = actor

    while running or (left and failed < MAX_FAILURES):
        waiting = [*running, *starting]
        if not ray.wait(waiting, num_returns=1, timeout=IDLE_S)[0] and not left:
            pool.stop(but=list(running.values()))
            starting.clear()
            continue
        for done in ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]:
            if done in starting:
                ray.get(done)
                give(starting.pop(done), IN_FLIGHT)
                continue
            actor, outcome = running.pop(done), ray.get(done)
            failed += bool(outcome.error)
            give(actor, 1)
            yield outcome
