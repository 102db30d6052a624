#!/usr/bin/env python3
"""How long each command takes to do little, beside a bare program that starts Ray, an actor with torch, and ends.

Every round runs the bare program and then each command, so a busy machine slows all of them. With --tree the commands
of another checkout run in the same rounds. The stages of a command are measured once, in the first round.

    python benchmarks/startup.py --rounds 3
    git worktree add /tmp/before 113edc7 && python benchmarks/startup.py --tree /tmp/before
"""

import argparse
import itertools
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BARE = """
import logging, ray
ray.init(address="local", num_cpus=2, object_store_memory=256 << 20, include_dashboard=False,
         logging_level=logging.ERROR, log_to_driver=False)
@ray.remote(num_cpus=1)
class Actor:
    def ready(self):
        import torch
actor = Actor.remote()
ray.get(actor.ready.remote())
ray.shutdown()
"""
STAMPS = "STARTUP_STAMPS"  # the file that a stamped command writes the times of its stages to
STAGES = ("imports and reading", "Ray's start", "workers and work", "end")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a program: seconds in all and in each stage, and the driver's largest memory."""

    seconds: float
    megabytes: float
    stages: tuple[float, ...] = ()


def commands(place: Path) -> dict[str, list[str]]:
    """The commands by what they do, in an order in which each finds what it reads."""
    root = ["--root", str(place)]
    return {
        "--help": ["generate", "--help"],
        "a mistake's line": ["generate", "--cuont", "128"],
        "ingest 5,000 digits": ["ingest", *root, "--source", "digits"],
        "train on 640 digits": ["train", *root, "--images", "640", "--tick", "640", "--metric-images", "100"],
        "generate 128": ["generate", *root, "--count", "128"],
        "generate 10,000": ["generate", *root, "--output", str(place / "10,000"), "--count", "1e4"],
        "verify 10,000": ["verify", "--dataset", str(place / "10,000")],
        "verify, 64 made again": ["verify", "--dataset", str(place / "10,000"), "--regenerate", "64"],
        "curate 10,000": ["curate", "--dataset", str(place / "10,000"), "--rule", "top"],
        "evaluate 128": [
            *("evaluate", *root, "--features", "pixels", "--images", "100"),
            *("--repeats", "2", "--classifier-images", "0"),
        ],
    }


def measure(program: list[str], tree: Path, stamps: Path | None = None) -> Run:
    """Run a program to its end. Its stages are measured if it writes stamps."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GANMILL_")}
    env |= {"PYTHONPATH": str(tree), "RAY_USAGE_STATS_ENABLED": "0", STAMPS: str(stamps or "")}
    start = time.time()
    with subprocess.Popen(program, cwd=tree, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        errors = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    over = time.time()
    if process.returncode not in (0, 2) or "Traceback" in errors:
        raise SystemExit(f"{program} ended with status {process.returncode}: {errors}")
    times = [start, *(json.loads(stamps.read_text()) if stamps and stamps.exists() else []), over]
    stages = tuple(after - before for before, after in itertools.pairwise(times)) if len(times) == 5 else ()
    return Run(over - start, usage.ru_maxrss / 1e3, stages)


def stamped(command: list[str]) -> None:
    """In a process of its own: run a command, and write when Ray's start began and ended and its work was done."""
    import ray

    times: list[float] = []
    init = ray.init

    def timed_init(*arguments: object, **given: object) -> object:
        times.append(time.time())
        try:
            return init(*arguments, **given)  # type: ignore[arg-type]
        finally:
            times.append(time.time())

    ray.init = timed_init
    sys.argv = command
    sys.path.insert(0, os.environ["PYTHONPATH"])
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        Path(os.environ[STAMPS]).write_text(json.dumps([*times, time.time()]))


def round_of_runs(trees: dict[str, Path], place: Path, number: int) -> dict[tuple[str, str], Run]:
    """The bare program, then each command of each tree; in the first round once more with stamps, which cost time."""
    runs = {("", "bare"): measure([sys.executable, "-c", BARE], ROOT)}
    for name, tree in trees.items():
        for what, (command, *flags) in commands(place / f"{name}-{number}").items():
            script = str(tree / "jobs" / f"{command}.py")
            runs[name, what] = measure([sys.executable, script, *flags], tree)
        again = commands(place / f"{name}-stamped") if number == 0 else {}
        for what, (command, *flags) in again.items():
            if what in ("--help", "a mistake's line"):  # it ends before Ray starts
                continue
            script = str(tree / "jobs" / f"{command}.py")
            stamps = place / "stamps"
            stamps.unlink(missing_ok=True)
            program = [sys.executable, __file__, "--stamped", script, *flags]
            runs[name, f"{what}, stages"] = measure(program, tree, stamps)
    return runs


def main() -> None:
    if sys.argv[1:2] == ["--stamped"]:
        return stamped(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tree", type=Path, help="another checkout, whose commands run in the same rounds")
    parser.add_argument("--json", type=Path, help="write figures here")
    arguments = parser.parse_args()
    trees = {"here": ROOT, **({"other": arguments.tree.resolve()} if arguments.tree else {})}
    with tempfile.TemporaryDirectory() as scratch:
        rounds = [round_of_runs(trees, Path(scratch), number) for number in range(arguments.rounds)]
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    print(f"{'':32}{'seconds':>9}{'/ bare':>8}{'MB':>6}   {', '.join(STAGES)}")
    for name, what in rounds[0]:
        if what.endswith(", stages"):
            continue
        label = f"{name} {what}".strip()
        figures[f"{label}, s"] = statistics.median(runs[name, what].seconds for runs in rounds)
        figures[f"{label}, MB"] = statistics.median(runs[name, what].megabytes for runs in rounds)
        ratios[f"{label} / bare"] = statistics.median(
            runs[name, what].seconds / runs["", "bare"].seconds for runs in rounds
        )
        stages = [runs[name, f"{what}, stages"].stages for runs in rounds if (name, f"{what}, stages") in runs]
        shown = ", ".join(f"{statistics.median(column):.1f}" for column in zip(*stages, strict=True))
        print(
            f"{label:32}{figures[f'{label}, s']:9.2f}{ratios[f'{label} / bare']:8.2f}"
            f"{figures[f'{label}, MB']:6.0f}   {shown}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"ratios": ratios, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
