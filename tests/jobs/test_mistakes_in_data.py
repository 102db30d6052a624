"""A user's mistake that only data or a model shows: one line and status 2. The others are in test_mistakes.py."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, Job, refused


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (
            "evaluate --fake {digits} --real {tmp}",
            "evaluate: error: {tmp}: no dataset here (dataset.json is missing); check the URL",
        ),
        (
            "train --data {digits} --run {tmp}/run --recipe dcgan64",
            "train: error: recipe dcgan64 is for 64x64x3, but {digits} holds 28x28x1; use another --recipe (dcgan64 "
            "for 64x64x3), --image-size 28 --channels 1, or ingest again with --image-size 64 --channels 3",
        ),
        (
            "train --data {digits} --run {tmp}/run --workers 8",
            "train: error: too few shards: 5 shards and a batch of 128 make 4 streams, which 8 workers cannot share; "
            "use --workers 1, 2, 4, or ingest with a smaller --shard-size",
        ),
        pytest.param(
            "train --data {digits} --run {tmp}/run --workers 2 --batch-size 2",
            "train: error: --batch-size 2: network cdcgan normalises over each worker's images and needs 2 of them; "
            "with 2 workers use 4 or more, or fewer --workers",
            marks=pytest.mark.slow,  # it is known once Ray has started
        ),
        (
            "generate --model {run} --output {tmp}/x --count 1e12 --shard-size 1000",
            "generate: error: count 1,000,000,000,000 in shards of 1,000 makes 1,000,000,000 shards, more than "
            "1,000,000; use a shard size of at least 1,000,000",
        ),
        (
            "ingest --source digits --output {digits} --shard-size 500",
            "ingest: error: {digits}: claimed with shard_size = 1000, this run has 500; "
            "use the same settings to go on, or another --output",
        ),
    ],
)
def test_one_line_and_status_2_for_what_does_not_fit_the_data(
    command: str, answer: str, digits: Path, digits_run: Path, tmp_path: Path, job: Job
) -> None:
    flags = command.format(tmp=tmp_path, digits=digits, run=digits_run).split()
    assert refused(job(*flags)) == answer.format(tmp=tmp_path, digits=digits)


def test_ray_that_does_not_start(digits: Path, job: Job, tmp_path: Path) -> None:
    place = tmp_path / ("x" * 100)  # sockets have names of at most 107 bytes
    place.mkdir()
    done = job("verify", "--dataset", digits, env={"RAY_TMPDIR": str(place)})
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("verify: error: Ray did not start on this machine: validate_socket_filename failed: ")
    assert line.endswith("; fix that, or wait until the machine is less busy; then start the same command again")


@pytest.mark.slow
def test_a_full_temporary_folder_is_named(digits: Path) -> None:
    """A file system without a free byte, which the command alone sees. (With one free MB Ray starts.)"""
    place = Path(tempfile.mkdtemp(dir="/tmp"))  # sockets have names of at most 107 bytes
    full = 'mount -t tmpfs -o size=1m tmpfs "$0" && { cat /dev/zero > "$0/rest" 2> /dev/null; exec "$@"; }'
    inside = ["unshare", "--map-root-user", "--mount", "/bin/sh", "-c", full, str(place)]
    try:
        if subprocess.run([*inside, "true"], check=False, capture_output=True).returncode:
            pytest.skip("this machine allows no mount namespaces")
        command = [*inside, sys.executable, str(ROOT / "jobs" / "verify.py"), "--dataset", str(digits)]
        env = {**os.environ, "RAY_TMPDIR": str(place)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    finally:
        place.rmdir()
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("verify: error: Ray did not start on this machine: ")
    assert line.endswith(
        f"; {place} has 0 MB free: make room there, or set RAY_TMPDIR to a folder that has some; "
        "then start the same command again"
    )
