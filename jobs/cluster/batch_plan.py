"""Run a worker over shards as a Ray Data plan: its actor pool, with its progress and metrics in Ray's dashboard.

One row of the plan is one shard: no second operator waits behind the pool for a CPU that the pool holds. It starts some
five seconds later than plain actors, because every process imports Ray Data.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import ray.data
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from jobs.cluster.actor_pool import IN_FLIGHT, MAX_FAILURES, MAX_RETRIES, MAX_TASK_RETRIES, lost, say_room
from jobs.cluster.connection import Pool
from jobs.cluster.shard_worker import MakeWorker, ShardOutcome, ShardRunner

# Blocks are the plan's unit of scheduling. More blocks cost the driver memory; fewer make the progress coarser.
MAX_BLOCKS = 10_000


def map_shards(
    make: MakeWorker, arguments: Mapping[str, Any], shards: Sequence[int], pool: Pool
) -> Iterator[ShardOutcome]:
    """As `actor_pool.map_shards`."""
    items = [{"shard": shard} for shard in shards]
    size = min(pool.workers, len(items))
    if not size:
        return
    pool.stop()
    say_room(pool, size)
    ray.data.DataContext.get_current().enable_progress_bars = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # up to Ray 2.63 there is no other way to bound restarts
        plan = ray.data.from_items(items, override_num_blocks=min(len(items), MAX_BLOCKS)).map_batches(
            _Batches,  # type: ignore[arg-type]  # Ray's protocol has no further arguments
            fn_args=(make, dict(arguments)),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=IN_FLIGHT),
            num_cpus=1,
            num_gpus=pool.gpus_per_worker,
            max_restarts=MAX_RETRIES,
            max_task_retries=MAX_TASK_RETRIES,
        )
    failed = 0
    rows = iter(plan.iter_rows())
    while failed < MAX_FAILURES:
        try:
            row = next(rows, None)
        except RayError as error:
            raise lost(error) from error
        if row is None:
            return
        outcome = ShardOutcome(**json.loads(row["outcome"]))
        failed += bool(outcome.error)
        yield outcome


class _Batches(ShardRunner):
    """A ShardRunner with the interface of Ray Data."""

    def __call__(self, batch: dict[str, np.ndarray], make: MakeWorker, arguments: Mapping[str, Any]) -> dict[str, Any]:
        [shard] = batch["shard"].tolist()
        return {"outcome": [json.dumps(asdict(self.run(make, arguments, shard)))]}
