#!/usr/bin/env python3
"""What a dataset of very many shards costs beside its images: listing, restart, seal, and Ray's share per shard.

The shards are simulated: three real ones, and for the rest empty files of the right sizes with their records in the
journal, so that everything but the images' bytes is the real thing.

    python benchmarks/planning.py --shards 1e4 1e5 1e6 --ray 1e4
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jobs.cluster import batch_plan, connection
from pipelines import images
from pipelines.dataset import card, layout, reader, writer
from pipelines.dataset.identity import Identity, from_json
from pipelines.dataset.journal import Journal
from pipelines.dataset.manifest import part_name, tar_name
from pipelines.dataset.shards import Sample
from pipelines.storage.folder import Folder

IMAGE = images.encode(np.zeros((28, 28, 1), np.uint8))


class Nothing:
    """A worker that does nothing: what is left is Ray's cost a shard."""

    def __call__(self, shard: int) -> dict[str, Any]:
        return {}


def identity(num_shards: int) -> Identity:
    fields = {
        "producer": "generate",
        "count": num_shards,
        "shard_size": 1,
        "image_size": 28,
        "channels": 1,
        "classes": None,
        "image": {"format": "png"},
        "arithmetic": {},
    }
    return from_json(fields)


def simulate(place: Path, num_shards: int) -> Folder:
    """A dataset that a crash left unsealed with all shards done."""
    folder = Folder(str(place))
    writer.claim(folder, identity(num_shards), {})
    journal = Journal(folder, identity(num_shards))
    journal.SHARDS_A_FILE = 10_000  # to make it quickly; its size does not change what is measured
    for shard in range(3):
        samples = [Sample(shard, IMAGE, None)]
        record = writer.commit(folder, shard, "generate", samples, {"seed": [shard], "logit": [0.0], "score": [0.5]})
        journal.add(record, False)
    for shard in range(3, num_shards):
        for name, size in ((tar_name(shard), record.bytes), (part_name(shard), record.part_bytes)):
            with open(place / name, "xb") as file:
                os.truncate(file.fileno(), size)
        journal.add(replace(record, shard=shard), False)
    journal.flush()
    return folder


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def measure(num_shards: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="ganmill-planning-") as place:
        folder = simulate(Path(place), num_shards)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        todo, listing = timed(lambda: writer.missing(folder, num_shards))
        assert todo == []
        journal, reading = timed(lambda: Journal(folder, identity(num_shards)))
        found, joining = timed(lambda: dict(_by_number(folder, num_shards, journal)))
        extras = card.files(folder, identity(num_shards), found)
        index, sealing = timed(lambda: writer.seal(folder, identity(num_shards), found, extras))
        assert index.samples == num_shards
        _, opening = timed(lambda: reader.open_sealed(folder))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "list what is missing, s": listing,
            "restart: read the journal, s": reading + joining,
            "seal, s": sealing,
            "open the seal, s": opening,
            "index.json, MB": len(folder.read(layout.SEAL)) / 1e6,
            "driver's memory on top, MB": (peak - before) / 1e3,
        }


def _by_number(folder: Folder, num_shards: int, journal: Journal) -> Any:
    return ((record.shard, record) for record, _ in writer.records_of(folder, range(num_shards), journal))


def ray_cost(num_shards: int) -> dict[str, float]:
    pool = connection.connect(2, "cpu")
    start = time.perf_counter()
    done = batch_plan.map_shards(Nothing, {}, range(num_shards), pool)
    next(done)
    first = time.perf_counter() - start
    _, rest = timed(lambda: sum(1 for _ in done))
    return {"first row after, s": first, "then a shard, ms": 1000 * rest / (num_shards - 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = {"type": lambda text: int(float(text))}
    parser.add_argument("--shards", **number, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--ray", **number, nargs="*", default=[10_000])
    parser.add_argument("--json", type=Path, help="write figures here")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    for num_shards in arguments.shards:
        for name, value in measure(num_shards).items():
            figures[f"{num_shards:,} shards: {name}"] = value
            print(f"{num_shards:>10,} shards  {name:32}{value:10.2f}", flush=True)
    for num_shards in arguments.ray:
        for name, value in ray_cost(num_shards).items():
            figures[f"{num_shards:,} shards through Ray: {name}"] = value
            print(f"{num_shards:>10,} through Ray  {name:27}{value:10.2f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"ratios": {}, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
