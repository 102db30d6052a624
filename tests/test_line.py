"""The README's three lines and verify, as a user types them, with everything on an S3 server over HTTP."""

import time
from typing import Any

import boto3
import pyarrow.parquet as pq
import pytest
import s3fs

from tests.conftest import Job, PointAt
from tests.faults import FaultyProxy
from tests.processes import cluster_of

SMALL = ("--images", 1280, "--tick", 640, "--width", 16, "--metric-images", 200, "--workers", 2)
LINE = (
    ("ingest", ("--source", "digits", "--shard-size", 250), "5,000 images, "),
    ("train", SMALL, "best model models/"),
    ("generate", ("--count", "1e3", "--shard-size", 100), "1,000 images, "),
    ("verify", ("--regenerate", 16), "16 images made again from their rows: 16 equal in every pixel and score"),
)
# One request in twenty meets a fault, in every way at once; `cut` is a share of the GETs.
FAULTS = {"slow_down": 0.01, "reset": 0.01, "stall": 0.01, "late_error": 0.01, "late_reset": 0.01, "cut": 0.01}
CANARY = b"canary-7c1f"
_NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCOUNT_KEY", "MY_TOKEN")
SECRETS = {name: f"{CANARY.decode()}-{name.lower().replace('_', '-')}" for name in _NAMES}


def test_the_whole_line_runs_on_object_storage(s3: str, job: Job) -> None:
    run_line(job, s3)
    look_into(f"{s3.removeprefix('s3://')}/line/synthetic")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_line_runs_on_object_storage_and_gives_the_same_when_it_fails(
    s3: str, s3_server: str, job: Job, point_at: PointAt, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed_s = run_line(job, s3)
    bucket = boto3.resource("s3").Bucket(s3.removeprefix("s3://"))
    made = contents(bucket)
    assert {"synthetic/dataset.json", "synthetic/index.json", "synthetic/preview.png", "real/index.json"} <= {*made}
    assert not [key for key in made if "/journal/" in key]
    look_into(f"{bucket.name}/line/synthetic")

    bucket.objects.all().delete()
    with FaultyProxy(s3_server, FAULTS, seed=5, stall_s=2.0) as proxy:
        point_at("s3", proxy.url)
        disturbed_s = run_line(job, s3)
        point_at("s3", s3_server)
    ratio, total = disturbed_s / undisturbed_s, len(proxy.passed)
    with capsys.disabled():
        print(
            f"\nthe line: {undisturbed_s:.0f} s; {ratio:.2f} times that with {dict(proxy.counts)} in {total} requests"
        )
    assert sum(proxy.counts.values()) >= 10
    assert len(proxy.counts) >= 4
    assert contents(bucket) == made
    assert [entry.key for entry in bucket.objects.all() if leaks(entry.get()["Body"].read())] == []
    assert disturbed_s < 3 * undisturbed_s + 30  # twice is what is asked for; other work on the machine is in it


def leaks(data: bytes) -> bool:
    """Whether any of the secrets that the commands are run with is in it."""
    return CANARY in data


def run_line(job: Job, base: str) -> float:
    """Seconds for the four commands. The secrets are with them and with their cluster; the S3 server takes any key."""
    with pytest.MonkeyPatch.context() as environment:
        for variable, value in {**SECRETS, "GANMILL_ROOT": f"{base}/line"}.items():
            environment.setenv(variable, value)
        with cluster_of(2):
            started = time.monotonic()
            for name, flags, says in LINE:
                done = job(name, *flags)
                assert done.returncode == 0, done.stderr
                assert not leaks((done.stdout + done.stderr).encode())
                assert says in done.stdout
            return time.monotonic() - started


def contents(bucket: Any) -> dict[str, str]:
    """Every file of both datasets and of the models, with its hash."""
    found = {entry.key.removeprefix("line/"): entry.e_tag for entry in bucket.objects.all()}
    return {key: tag for key, tag in found.items() if key.startswith(("real/", "synthetic/", "run/models/"))}


def look_into(synthetic: str) -> None:
    """One image, by a range read, as its row says."""
    fs = s3fs.S3FileSystem()
    row = pq.read_table(f"{synthetic}/manifest/000002.parquet", filesystem=fs).to_pylist()[7]
    offset, end = row["offset"], row["offset"] + row["size"]
    image = fs.cat_file(f"{synthetic}/shards/000002.tar", start=offset, end=end)
    assert image.startswith(b"\x89PNG")
    assert len(image) == row["size"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", pytest.param("az", marks=pytest.mark.long)])
def test_a_dataset_is_made_and_verified_on_the_other_stores(
    scheme: str, request: pytest.FixtureRequest, job: Job
) -> None:
    root = {"GANMILL_ROOT": f"{request.getfixturevalue(scheme)}/line"}
    with cluster_of(2):
        done = job("ingest", "--source", "digits", env=root)
        assert done.returncode == 0, done.stderr
        done = job("verify", "--dataset", f"{root['GANMILL_ROOT']}/real", env=root)
        assert done.returncode == 0, done.stderr
    assert "5,000 images in 5 shards, every byte as sealed" in done.stdout
