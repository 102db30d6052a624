#!/usr/bin/env python3
"""The whole pipeline on real digits: ingest, train, generate, verify; then a table of results and times."""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from jobs.command import signals

JOBS = Path(__file__).resolve().parent
HOME = JOBS.parent / "ganmill-demo"
STEPS = (  # (command, flags, result, place)
    ("ingest", ["--source", "digits"], "5,000 real digits", "real"),
    ("train", ["--images", "1.2e5", "--workers", "2"], "a conditional DCGAN, 2 DDP workers", "run"),
    ("generate", ["--count", "1e4", "--shard-size", "1000"], "10,000 labelled synthetic digits", "synthetic"),
    ("verify", ["--regenerate", "64"], "every byte checked, 64 images made again", "synthetic"),
)


def main() -> int:
    seconds = []
    for command, flags, _, _ in STEPS:
        print(f"\n$ jobs/{command}.py --root {HOME} {' '.join(flags)}", flush=True)
        start = time.monotonic()
        status = _run([sys.executable, str(JOBS / f"{command}.py"), "--root", str(HOME), *flags])
        if status:
            print(f"demo: {command} ended with status {status}; `make demo` goes on from there", file=sys.stderr)
            return status
        seconds.append(time.monotonic() - start)
    preview = JOBS.parent / "preview.png"
    shutil.copyfile(HOME / "synthetic" / "preview.png", preview)
    print(f"\n{'step':10}{'seconds':>8}  {'made':42}where")
    for (command, _, made, where), taken in zip(STEPS, seconds, strict=True):
        print(f"{command:10}{taken:8.0f}  {made:42}{HOME / where}")
    print(f"{'total':10}{sum(seconds):8.0f}")
    print(f"\nLook at {preview}: a row a digit.")
    print(f"Then, say: jobs/generate.py --root {HOME} --output {HOME / 'more'} --count 1e5 --seed-start 1e6")
    return 0


def _run(command: list[str]) -> int:
    """The status of a command. It is stopped with this process: Ctrl-C reaches both, SIGTERM only this one."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise


if __name__ == "__main__":
    argparse.ArgumentParser(prog="jobs/demo.py", description=__doc__).parse_args()  # --help starts nothing
    signals.arm()
    signals.begin()
    try:
        sys.exit(main())
    except KeyboardInterrupt as error:
        signals.leave_if_given(error, "demo: stopped; `make demo` goes on from here")
