#!/usr/bin/env python3
"""How much of its speed each command keeps, at its defaults, beside processes that are always busy.

Each command runs over a small and a large piece of work, and the difference is what images cost: start-up is left out.
Every round runs each command alone and then beside the busy processes. On the built-in digits; train.py --beside
measures training steps without a command around them.

    python benchmarks/beside.py --rounds 3
    OMP_WAIT_POLICY=ACTIVE python benchmarks/beside.py --only train      # with threads that spin while they wait
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import busy

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"train": (2_560, 15_360), "generate": (10_000, 60_000), "evaluate": (1_000, 5_000), "ingest": (10_000, 60_000)}


class Bench:
    """The commands, in a folder with a real dataset, a trained run and synthetic datasets of the sizes in use."""

    def __init__(self, place: Path) -> None:
        self.place, self.runs = place, itertools.count()
        self.real, self.run = str(place / "real"), str(place / "run")
        _command("ingest", "--source", "digits", "--output", self.real)
        _command(*self._train("run", SIZES["train"][0]))
        for count in {*SIZES["evaluate"], *SIZES["ingest"]}:
            _command(*self._generate(f"synthetic-{count}", count))

    def seconds(self, name: str, images: int) -> float:
        """Seconds that the command takes for so many images."""
        fresh = f"fresh-{next(self.runs)}"
        commands = {
            "train": lambda: self._train(fresh, images),
            "generate": lambda: self._generate(fresh, images),
            "evaluate": lambda: [
                *("evaluate", "--real", self.real, "--fake", str(self.place / f"synthetic-{images}")),
                *("--output", str(self.place / fresh), "--images", "500", "--classifier-images", "0"),
            ],
            "ingest": lambda: [
                *("ingest", "--source", str(self.place / f"synthetic-{images}")),
                *("--output", str(self.place / fresh)),
            ],
        }
        start = time.perf_counter()
        _command(*commands[name]())
        return time.perf_counter() - start

    def rate(self, name: str) -> float:
        """Images a second."""
        small, large = SIZES[name]
        return (large - small) / (self.seconds(name, large) - self.seconds(name, small))

    def _train(self, run: str, images: int) -> list[str]:
        flags = ["--recipe", "digits28", "--images", str(images), "--tick", str(images), "--metric-images", "100"]
        return ["train", "--data", self.real, "--run", str(self.place / run), *flags]

    def _generate(self, output: str, count: int) -> list[str]:
        return ["generate", "--model", self.run, "--output", str(self.place / output), "--count", str(count)]


def _command(name: str, *flags: str) -> None:
    program = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *flags]
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(program, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} ended with status {done.returncode}:\n{done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=1, help="processes that are always busy")
    parser.add_argument("--only", choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write ratios and figures here")
    arguments = parser.parse_args()
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in arguments.only}
    with tempfile.TemporaryDirectory(prefix="ganmill-bench-") as scratch:
        bench = Bench(Path(scratch))
        for number in range(arguments.rounds):
            for name, found in rates.items():
                alone = bench.rate(name)
                with busy.processes(arguments.busy):
                    found.append((alone, bench.rate(name)))
                print(f"round {number + 1}: {name:9} {found[-1][0]:8,.0f} and {found[-1][1]:8,.0f} img/s", flush=True)
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    print(f"\n{'':10}{'alone, img/s':>14}{f'beside {arguments.busy}':>12}{'kept':>7}")
    for name, found in rates.items():
        alone, beside = (statistics.median(column) for column in zip(*found, strict=True))
        ratios[f"{name} beside {arguments.busy}/alone"] = kept = statistics.median(b / a for a, b in found)
        figures |= {f"{name} alone img/s": alone, f"{name} beside {arguments.busy} img/s": beside}
        print(f"{name:10}{alone:14,.0f}{beside:12,.0f}{kept:7.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"ratios": ratios, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
