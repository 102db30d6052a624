"""What jobs tell the cluster's monitoring, as Ray's metrics: Prometheus reads them as `ray_ganmill_...` from each node.

A counter lives as long as the process that counts: a producer's driver, rank 0 of a training run, a worker that was
restarted. A run that goes on starts again at 0, as Prometheus expects of counters. Requests to storage that are tried
again are not counted: storage knows no Ray.
"""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

IMAGES = Counter("ganmill_images_total", "images that are done: ingested, generated or trained on", ("command",))
SHARDS = Counter("ganmill_shards_total", "shards that are committed", ("command",))
FAILURES = Counter("ganmill_shard_failures_total", "shards that ended with an error: the job will fail", ("command",))
RESTARTS = Counter("ganmill_worker_restarts_total", "workers that were started again after a death", ("worker",))
# Of the last tick of a training run; the same numbers as in stats.jsonl.
TICK = {
    "loss_d": Gauge("ganmill_discriminator_loss", "mean of the discriminator's loss"),
    "loss_g": Gauge("ganmill_generator_loss", "mean of the generator's loss"),
    "kernel_distance": Gauge("ganmill_kernel_distance", "distance of fake from real images: the lower the better"),
    "data_wait_share": Gauge("ganmill_data_wait_share", "share of the time in which rank 0 waited for data"),
}


def tick(scalars: Mapping[str, float]) -> None:
    for name, gauge in TICK.items():
        gauge.set(scalars[name])
