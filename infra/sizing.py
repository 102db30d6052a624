#!/usr/bin/env python3
"""How long a synthetic dataset takes, on what, and what it costs: from a measured rate, yours or ours.

    infra/sizing.py --images 1e9 --rate 4220 --workers 200 --shard-size 1e5 --image-bytes 2100 --worker-price 0.05

What is behind each number stands in docs/scaling.md. Prices are examples: give your own.
"""

import argparse
from dataclasses import dataclass

# Measured on 2 cores of a server: docs/experiments/generation-scale.md; benchmarks/planning.py and memory.py.
START_S = 30.0  # from the command to the first images, Ray's start and a model's load included
DRIVER_S_A_SHARD = 0.008  # one thread of the driver takes a finished shard in
SEAL_S_A_SHARD = 6.1e-5  # 61 s for a million; a listing and a restart's journal are less
DRIVER_BYTES, DRIVER_BYTES_A_SHARD = 0.77e9, 1800.0
# Counted (tests/infra/test_sizing.py counts them again, on a real S3 protocol):
JOURNAL_SHARDS = 256  # records a journal file
PREVIEW_PARTS, PREVIEW_READS = 3, 120  # at most: parts and ranges of shards that the preview is drawn from
PAGE = 1000  # names a listing's answer holds
PART, SINGLE = 50 << 20, 100 << 20  # s3fs: a tar from 100 MiB on goes up in parts of 50 MiB


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is to be made, by whom."""

    images: int
    rate: float  # images a second of one worker: a CPU core, or a GPU
    workers: int
    shard_size: int = 10_000
    image_bytes: float = 2100.0  # in the tar, with headers and padding

    @property
    def shards(self) -> int:
        return -(-self.images // self.shard_size)

    @property
    def tar_bytes(self) -> float:
        return min(self.shard_size, self.images) * self.image_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """In dollars. Requests as S3 asks for them in its first region, in 2025."""

    worker_hour: float
    gigabyte_month: float = 0.023
    thousand_puts: float = 0.005  # LIST too
    thousand_gets: float = 0.0004  # HEAD too


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a job takes."""

    hours: float
    limit: str  # what its duration hangs on: "workers" or "driver"
    terabytes: float
    driver_gigabytes: float
    requests: dict[str, int]
    dollars: dict[str, float]  # compute, requests, a month of storage

    def dollars_a_million(self, images: int) -> float:
        """Of compute and requests; storage goes on."""
        return (self.dollars["compute"] + self.dollars["requests"]) / (images / 1e6)


def generate_requests(shards: int, workers: int, tar_bytes: float) -> dict[str, int]:
    """What jobs/generate.py asks of a store, without retries and restarts, and with a model in the same store."""
    puts_a_tar = 1 if tar_bytes < SINGLE else 2 + -(-int(tar_bytes) // PART)  # begin, the parts, complete
    journal = shards // JOURNAL_SHARDS
    return {
        "PUT": shards * (puts_a_tar + 1) + 8 + journal,  # parts; claim, model, README, croissant, preview, seal
        "LIST": 9 + 4 * -(-shards // PAGE),  # driver and first worker look for the model; uploads that nobody completed
        "HEAD": 7 + min(PREVIEW_PARTS, shards),
        "GET": 8 + 4 * workers + min(PREVIEW_PARTS, shards) + PREVIEW_READS,  # each worker reads claim and model
        "DELETE": journal,
    }


def estimate(job: Job, prices: Prices) -> Estimate:
    """What a job takes: its workers work side by side, its driver takes in one shard after another."""
    rounds = -(-job.shards // job.workers)  # the last one may leave some workers without a shard
    workers_s = rounds * min(job.shard_size, job.images) / job.rate
    driver_s = job.shards * DRIVER_S_A_SHARD
    hours = (START_S + max(workers_s, driver_s) + job.shards * SEAL_S_A_SHARD) / 3600
    requests = generate_requests(job.shards, job.workers, job.tar_bytes)
    puts, gets = requests["PUT"] + requests["LIST"], requests["GET"] + requests["HEAD"]
    size = job.images * job.image_bytes
    return Estimate(
        hours=hours,
        limit="workers" if workers_s >= driver_s else "driver",
        terabytes=size / 1e12,
        driver_gigabytes=(DRIVER_BYTES + job.shards * DRIVER_BYTES_A_SHARD) / 1e9,
        requests=requests,
        dollars={
            "compute": hours * job.workers * prices.worker_hour,
            "requests": (puts * prices.thousand_puts + gets * prices.thousand_gets) / 1000,
            "storage a month": size / 1e9 * prices.gigabyte_month,
        },
    )


def table(job: Job, prices: Prices) -> str:
    """An estimate as people read it."""
    found = estimate(job, prices)
    rows = [
        ("images", f"{job.images:,}"),
        ("shards", f"{job.shards:,} of {job.tar_bytes / 1e6:,.0f} MB"),
        ("workers", f"{job.workers:,} at {job.rate:,.0f} images a second"),
        ("hours", f"{found.hours:,.2f}, limited by the {found.limit}"),
        ("driver's memory", f"{found.driver_gigabytes:,.1f} GB"),
        ("storage", f"{found.terabytes:,.3f} TB"),
        *((f"{name} requests", f"{number:,}") for name, number in found.requests.items()),
        *((f"dollars: {name}", f"{value:,.2f}") for name, value in found.dollars.items()),
        ("dollars a million images", f"{found.dollars_a_million(job.images):,.4f}"),
    ]
    return "\n".join(f"{name:26}{value}" for name, value in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=_number, required=True, help="how many, as 1e9")
    parser.add_argument("--rate", type=float, required=True, help="images a second of one worker, measured")
    parser.add_argument("--workers", type=_number, required=True, help="CPU cores or GPUs")
    parser.add_argument("--shard-size", type=_number, default=10_000, help="images a shard (default: 10,000)")
    parser.add_argument("--image-bytes", type=float, default=2100.0, help="in the tar (default: 2100, digits28)")
    parser.add_argument("--worker-price", type=float, required=True, help="dollars an hour of a worker")
    given = parser.parse_args()
    if min(given.images, given.workers, given.shard_size, given.rate) <= 0:
        parser.error("images, rate, workers and shard size must be above 0")
    job = Job(
        images=given.images,
        rate=given.rate,
        workers=given.workers,
        shard_size=given.shard_size,
        image_bytes=given.image_bytes,
    )
    print(table(job, Prices(worker_hour=given.worker_price)))


def _number(text: str) -> int:
    return int(float(text))


if __name__ == "__main__":
    main()
