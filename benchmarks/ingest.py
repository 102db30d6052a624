#!/usr/bin/env python3
"""Images a second and core that become shards: ours beside the writers that people use, on the same local files.

All of them read files, decode, crop the middle, resize, encode as PNG and write tars of 1,000:
  ours         jobs/ingest.py with one worker
  img2dataset  one process, file:// URLs, resize_mode center_crop (OpenCV's INTER_AREA)
  webdataset   Pillow's ImageOps.fit and ShardWriter, as its documentation has it
Counted is the CPU time of a command and of all that it started, Ray's own processes too, so that other work on the
machine matters little. Each way runs over all files and over a fifth of them, and the difference is what images cost:
start-up is left out. Rounds alternate.
img2dataset wants older packages than ours: give the Python of an environment that has it.

    python -m venv peers && peers/bin/pip install img2dataset
    python benchmarks/ingest.py --images pictures/ --peers peers/bin/python
    python benchmarks/ingest.py --images pictures/ --memory 1e4 1e5          # ours alone: memory by count
"""

import argparse
import contextlib
import ctypes
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import memory

ROOT = Path(__file__).resolve().parent.parent
SIZE, SHARD = 64, 1000
ENDINGS = {".png", ".jpg", ".jpeg", ".webp"}

# Programs of their own, as img2dataset's environment has none of our packages.
IMG2DATASET = """
import sys, pandas
from img2dataset import download
files, out, size, shard = open(sys.argv[1]).read().splitlines(), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if __name__ == "__main__":
    pandas.DataFrame({"url": ["file://" + name for name in files]}).to_parquet(out + ".parquet")
    download(
        url_list=out + ".parquet", input_format="parquet", url_col="url", output_folder=out, output_format="webdataset",
        image_size=size, resize_mode="center_crop", encode_format="png", encode_quality=1,
        processes_count=1, thread_count=4, number_sample_per_shard=shard,
    )
"""
WEBDATASET = """
import sys, webdataset
from PIL import Image, ImageOps
files, out, size, shard = open(sys.argv[1]).read().splitlines(), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with webdataset.ShardWriter(out + "/%06d.tar", maxcount=shard, verbose=0) as writer:
    for number, name in enumerate(files):
        image = ImageOps.fit(Image.open(name).convert("RGB"), (size, size), Image.Resampling.LANCZOS)
        writer.write({"__key__": f"{number:09d}", "png": image})
"""
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def ours(files: Path, place: Path) -> float:
    """CPU seconds."""
    command = [ROOT / "jobs" / "ingest.py", "--source", files, "--output", place / "out", "--image-size", SIZE]
    return _cpu_s([sys.executable, *map(str, command), "--channels", "3", "--shard-size", str(SHARD), "--workers", "1"])


def peer(python: str, code: str, files: Path, place: Path) -> float:
    """CPU seconds."""
    (place / "files").write_text("\n".join(sorted(str(path) for path in files.rglob("*.*"))))
    (place / "run.py").write_text(code)
    (place / "out").mkdir()
    return _cpu_s([python, str(place / "run.py"), str(place / "files"), str(place / "out"), str(SIZE), str(SHARD)])


def _cpu_s(command: list[str]) -> float:
    """CPU seconds of a command and of every process that it left to us."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "NO_ALBUMENTATIONS_UPDATE": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{command[1]} ended with {done.returncode}:\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def several(source: Path, count: int, place: Path) -> Path:
    """A folder of `count` files: those of a source, each as often as it takes, by hard links where it can be."""
    originals = sorted(path for path in source.rglob("*") if path.suffix.lower() in ENDINGS)
    if not originals:
        sys.exit(f"--images {source}: no .png, .jpg or .webp files")
    for number in range(count):
        original = originals[number % len(originals)]
        target = place / f"{number // 5000:03d}" / f"{number:07d}{original.suffix.lower()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(original, target)
        except OSError:  # on another disk
            shutil.copy(original, target)
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of image files")
    parser.add_argument("--peers", help="the Python that has img2dataset; left out without")
    parser.add_argument("--count", type=lambda text: int(float(text)), default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=lambda text: int(float(text)), nargs="+", help="ours at these counts, instead")
    parser.add_argument("--json", type=Path, help="write figures here")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="ganmill-ingest-", dir=arguments.images.absolute().parent) as scratch:
        for count in arguments.memory or ():
            files = several(arguments.images, count, Path(scratch) / f"{count}")
            found = memory.run("ingest", Path(scratch) / f"out{count}", "--source", str(files), "--workers", "2")
            for name, value in {**found, "images a second": count / found["seconds"]}.items():
                figures[f"{count:,} images: {name}"] = value
                print(f"{count:>12,} images  {name:24}{value:12,.1f}", flush=True)
        if not arguments.memory:
            sizes = (arguments.count, arguments.count // 5)
            large, small = (several(arguments.images, count, Path(scratch) / f"{count}") for count in sizes)
            ways: dict[str, Callable[[Path, Path], float]] = {
                "ours": ours,
                "webdataset": lambda files, place: peer(sys.executable, WEBDATASET, files, place),
            }
            if arguments.peers:
                ways["img2dataset"] = lambda files, place: peer(arguments.peers, IMG2DATASET, files, place)
            rounds: list[dict[str, float]] = []
            for number in range(arguments.rounds):
                rounds.append({})
                for name, way in ways.items():
                    seconds = []
                    for files in (large, small):
                        with tempfile.TemporaryDirectory(dir=scratch) as place:
                            seconds.append(way(files, Path(place)))
                    rounds[-1][name] = (sizes[0] - sizes[1]) / (seconds[0] - seconds[1])
                    print(f"round {number + 1}: {name:12} {rounds[-1][name]:10,.0f} images a CPU second", flush=True)
            for name in ways:
                figures[f"{name} images a CPU second"] = statistics.median(found[name] for found in rounds)
                if name != "ours":
                    each = [found["ours"] / found[name] for found in rounds]
                    ratios[f"ours/{name}"] = statistics.median(each)
                    print(f"ours/{name:12} {ratios[f'ours/{name}']:6.2f}   ({min(each):.2f} to {max(each):.2f})")
    if arguments.json:
        arguments.json.write_text(json.dumps({"ratios": ratios, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
