#!/usr/bin/env python3
"""Time and memory of whole `jobs/generate.py` runs of growing count: memory must not grow with it.

python benchmarks/memory.py --model ganmill-demo/run --counts 1e4 1e5 1e6
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

JOBS = Path(__file__).resolve().parent.parent / "jobs"
STORE = Path("/dev/shm")  # where Ray's object store lies


def role(process: psutil.Process) -> str:
    """Whose memory it is: the driver's, an actor's, or Ray's own."""
    name = " ".join(process.cmdline())
    if str(JOBS) in name:
        return "driver"
    return "largest actor" if name.startswith(("ray::ShardRunner", "ray::MapWorker")) else ""


def run(job: str, output: Path, *flags: str) -> dict[str, float]:
    """One run of a job. Peaks are unshared memory (USS) in MB: an actor's libraries are counted once."""
    peaks = {"driver": 0.0, "largest actor": 0.0, "object store": 0.0}
    command = [sys.executable, str(JOBS / f"{job}.py"), "--output", str(output), *flags]
    start = time.monotonic()
    first = 0.0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = shutil.disk_usage(STORE).used
    while process.poll() is None:
        if not first and any((output / "manifest").glob("*.parquet")):
            first = time.monotonic() - start
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            try:
                name = role(one)
                if name:
                    peaks[name] = max(peaks[name], one.memory_full_info().uss / 1e6)
            except psutil.Error:  # it ended while we looked
                continue
        store = shutil.disk_usage(STORE).used - before
        peaks["object store"] = max(peaks["object store"], store / 1e6)
        time.sleep(0.5)
    seconds = time.monotonic() - start
    assert process.returncode == 0, f"{command} ended with status {process.returncode}"
    return {"seconds": seconds, "first shard, s": first, **peaks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--counts", type=lambda text: int(float(text)), nargs="+", default=[10_000, 100_000])
    parser.add_argument("--json", type=Path, help="write figures here")
    parser.add_argument("--keep", type=Path, help="leave the last dataset here")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    for count in arguments.counts:
        with tempfile.TemporaryDirectory(prefix="ganmill-memory-") as place:
            keep = arguments.keep if count == arguments.counts[-1] else None
            flags = ("--model", arguments.model, "--count", str(count), "--workers", "2")
            found = run("generate", keep or Path(place) / "out", *flags)
            for name, value in {**found, "images a second": count / found["seconds"]}.items():
                figures[f"{count:,} images: {name}"] = value
                unit = "" if name in ("seconds", "first shard, s", "images a second") else ", MB"
                print(f"{count:>12,} images  {name + unit:24}{value:12,.1f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"ratios": {}, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
