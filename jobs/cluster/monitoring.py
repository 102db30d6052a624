"""The metrics of the jobs, as Ray metrics: Prometheus reads them as `ray_ganmill_...` from each node.

A counter lives as long as its process: the driver of a shard job, rank 0 of a training, a restarted worker. A resumed
run starts again at 0, as Prometheus expects of counters. Retried storage requests are not counted, because the storage
layer does not import Ray.
"""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

IMAGES = Counter("ganmill_images_total", "images that were ingested, generated or trained on", ("command",))
SHARDS = Counter("ganmill_shards_total", "committed shards", ("command",))
FAILURES = Counter("ganmill_shard_failures_total", "shards that ended with an error: the job fails", ("command",))
RESTARTS = Counter("ganmill_worker_restarts_total", "workers that were restarted after a death", ("worker",))
# The last tick of a training run: the same numbers as in stats.jsonl.
TICK = {
    "loss_d": Gauge("ganmill_discriminator_loss", "mean discriminator loss"),
    "loss_g": Gauge("ganmill_generator_loss", "mean generator loss"),
    "kernel_distance": Gauge("ganmill_kernel_distance", "distance between fake and real images; lower is better"),
    "data_wait_share": Gauge("ganmill_data_wait_share", "share of the time that rank 0 waits for data"),
}


def tick(scalars: Mapping[str, float]) -> None:
    for name, gauge in TICK.items():
        gauge.set(scalars[name])
