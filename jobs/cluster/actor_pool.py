"""Map a worker over shards in a pool of actors.

One row of the plan is one shard: a worker makes and writes it whole, and returns a few numbers. No image goes through
the object store, and no second operator waits behind the pool for a CPU that the pool holds.
"""

import json
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError, RayError
from ray.util.annotations import RayDeprecationWarning

from jobs.cluster import monitoring
from jobs.cluster.connection import Pool, room_for
from jobs.cluster.failures import WorkersLostError, one_line
from jobs.cluster.process import keep_freed_memory
from jobs.command.errors import FAILURES, USER_ERRORS

# Blocks are the plan's unit of scheduling. More blocks cost the driver memory; fewer make the progress coarser.
MAX_BLOCKS = 10_000
# One bad shard must not stop the good ones; but if all shards fail, the job must not try a million of them.
MAX_FAILURES = 8
# Infrastructure failures (a killed worker, a lost node) are retried; our own exceptions never are. A worker is
# restarted this often; one that still dies ends the job.
MAX_RETRIES = 8
# Retries of a call that a worker does not answer. 8 of them take 15 s, as long as Ray may need to notice a lost node; a
# hung node takes a minute. So this is not a bound on deaths.
MAX_TASK_RETRIES = 50


class ShardWorker(Protocol):
    """Runs in an actor: constructed there once, then called with one shard after another. Returns JSON types."""

    def __call__(self, shard: int) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class ShardOutcome:
    """The outcome of a shard: the worker's result, or its error."""

    shard: int
    result: dict[str, Any]
    error: str  # one line; empty on success
    trace: str  # empty on success, and for an expected error: its line says all


def map_shards(
    worker: type[ShardWorker], arguments: Mapping[str, Any], shards: Sequence[int], pool: Pool
) -> Iterator[ShardOutcome]:
    """Run `worker(**arguments)` over shards in a pool of actors. Yields each outcome as it comes, in any order.

    A worker's own exception ends its shard, not the others. After MAX_FAILURES of them no more shards start.

    Raises: WorkersLostError after MAX_RETRIES deaths of a worker, or for any other error of Ray's own.
    """
    if not shards:
        return
    items = [{"shard": shard} for shard in shards]
    size = min(pool.workers, len(items))
    if (room := room_for(pool.bundle())) < size:
        print(f"room for {room} of {size} workers; the others start when there is more", file=sys.stderr, flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # up to Ray 2.63 there is no other way to bound restarts
        plan = ray.data.from_items(items, override_num_blocks=min(len(items), MAX_BLOCKS)).map_batches(
            _Actor,
            fn_constructor_args=(worker, dict(arguments)),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
            num_cpus=1,
            num_gpus=pool.gpus_per_worker,
            max_restarts=MAX_RETRIES,
            max_task_retries=MAX_TASK_RETRIES,
        )
    failures = 0
    rows = iter(plan.iter_rows())
    while failures < MAX_FAILURES:
        try:
            row = next(rows, None)
        except RayError as error:
            what = f"a worker died more than {MAX_RETRIES} times" if isinstance(error, RayActorError) else "Ray failed"
            raise WorkersLostError(f"{what}: {one_line(error)}") from error
        if row is None:
            return
        yield ShardOutcome(row["shard"], json.loads(row["result"]), row["error"], row["trace"])
        failures += bool(row["error"])


class _Actor:
    """Constructs the ShardWorker at its first shard, so that its errors are reported like those of a shard."""

    def __init__(self, worker: type[ShardWorker], arguments: dict[str, Any]) -> None:
        torch.set_num_threads(1)  # one core a worker; and the same order of sums on every machine
        keep_freed_memory()
        if ray.get_runtime_context().was_current_actor_reconstructed:
            monitoring.RESTARTS.inc(1, {"worker": worker.__name__})
        self._worker, self._arguments = worker, arguments
        self._ready: ShardWorker | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        shard = int(batch["shard"][0])
        result: dict[str, Any] = {}
        error = trace = ""
        try:
            self._ready = self._ready or self._worker(**self._arguments)
            result = self._ready(shard)
        except Exception as problem:  # the boundary to Ray: any error is reported with its shard, and fails the job
            error = f"{type(problem).__name__}: {problem}"
            known = isinstance(problem, (*USER_ERRORS, *FAILURES))  # bad data or storage: the message says what to do
            trace = "" if known else traceback.format_exc()
        return {"shard": [shard], "result": [json.dumps(result)], "error": [error], "trace": [trace]}
