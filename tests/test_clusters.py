"""The same commands on real Ray clusters: submitted with a token, over several nodes, on a single CPU."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from jobs import generate
from pipelines import dataset
from pipelines.storage import Folder
from tests.conftest import ROOT, Job

COUNT = 1200
CANARY = "canary-5d02-a-secret-of-the-environment"
GENERATE = ("--count", COUNT, "--shard-size", 200)


class Head(NamedTuple):
    """A `ray start --head` of the test's own, the environment of one who may use it, and where it keeps its logs."""

    dashboard: str
    env: dict[str, str]
    place: Path


@pytest.fixture
def token_head(tmp_path: Path) -> Iterator[Head]:
    """A head node with token authentication, as a platform engineer starts one; gone when the test is."""
    gcs, dashboard, agent, client = (_free_port() for _ in range(4))
    # The environment is active where `ray start` is called, as the README has it: a job finds its Python by PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-this-test-only-0123456789"}
    env = {**os.environ, **token, "PATH": path, "MY_TOKEN": CANARY, "AWS_SECRET_ACCESS_KEY": CANARY}
    place = Path("/tmp") / f"gm{os.getpid()}"  # Ray's sockets live below it, and their paths must be short
    command = [
        f"{Path(sys.executable).parent}/ray start --head --block --num-cpus=2 --object-store-memory=268435456",
        f"--port={gcs} --dashboard-port={dashboard} --dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client} --temp-dir={place} --disable-usage-stats",
    ]
    process = subprocess.Popen(
        " ".join(command).split(), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "--block" in line:  # printed when everything is up
            break
    else:
        raise AssertionError("the head did not start")
    yield Head(f"http://127.0.0.1:{dashboard}", env, place)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs([*children, psutil.Process(process.pid)], timeout=5)
    for survivor in alive:
        survivor.kill()
    process.wait()
    shutil.rmtree(place, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _submit(head: Head, *entrypoint: str | int | Path) -> str:
    """`ray job submit --working-dir . -- ...`, as the README has it; its output."""
    ray_cli = Path(sys.executable).parent / "ray"
    command = [ray_cli, "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", *entrypoint]
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=head.env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for kind in ("shards", "manifest") for p in (folder / kind).iterdir()
    }


@pytest.fixture(scope="module")
def undisturbed(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every cluster must make too, byte for byte."""
    output = tmp_path_factory.mktemp("undisturbed") / "synthetic"
    generate.main(
        generate.GenerateSettings(model=str(digits_run), output=str(output), count=COUNT, shard_size=200, workers=1)
    )
    ray.shutdown()  # one cluster at a time; this file is the last that needs Ray
    return output


def test_three_lines_run_as_submitted_jobs_under_a_token(token_head: Head, tmp_path: Path) -> None:
    request = urllib.request.Request(f"{token_head.dashboard}/api/jobs/", method="GET")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=10)

    root = tmp_path / "root"
    listing = _submit(token_head, "find", ".", "-size", "+1000k")
    assert ".venv" not in listing
    assert ".git/" not in listing
    assert "ganmill-d" not in listing

    assert "5,000 images" in _submit(token_head, "jobs/ingest.py", "--root", root, "--source", "digits")
    trained = _submit(
        token_head, "jobs/train.py", "--root", root, "--images", 2560, "--tick", 1280, "--width", 16, "--workers", 2
    )
    assert "best model" in trained
    made = _submit(token_head, "jobs/generate.py", "--root", root, *GENERATE)
    assert f"{COUNT:,} images" in made
    assert dataset.open_sealed(Folder(str(root / "synthetic"))).samples == COUNT

    # The secrets that head, workers and submitter had in their environment are in nothing that any of them wrote.
    asked = {"Authorization": f"Bearer {token_head.env['RAY_AUTH_TOKEN']}"}
    with urllib.request.urlopen(urllib.request.Request(request.full_url, headers=asked), timeout=10) as answer:
        records = answer.read().decode()
    assert "jobs/generate.py" in records
    assert CANARY not in listing + trained + made + records
    written = [path for place in (root, token_head.place) for path in place.rglob("*") if path.is_file()]
    assert len(written) > 50
    assert [path for path in written if CANARY.encode() in path.read_bytes()] == []


def test_a_submitted_job_refuses_a_root_that_would_vanish(token_head: Head) -> None:
    ray_cli = Path(sys.executable).parent / "ray"
    done = subprocess.run(
        [ray_cli, "job", "submit", "--address", token_head.dashboard, "--working-dir", ".", "--", "jobs/train.py"],
        cwd=ROOT,
        env=token_head.env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "--root ganmill-data: a relative path would vanish with the submitted job's working directory" in done.stdout


@pytest.mark.parametrize("nodes", [pytest.param(2, marks=pytest.mark.long), 3])
def test_several_nodes_make_the_same_bytes_as_one_worker(
    nodes: int, undisturbed: Path, digits_run: Path, tmp_path: Path, job: Job
) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 128 << 20})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=1, object_store_memory=128 << 20)
        cluster.wait_for_nodes()
        output = tmp_path / "synthetic"
        done = job(
            "generate", "--model", digits_run, "--output", output, *GENERATE, env={"RAY_ADDRESS": cluster.address}
        )
        assert done.returncode == 0, done.stderr
        assert f"{nodes} workers" in done.stdout  # one a CPU, and each node has one: all of them took part
        assert _contents(output) == _contents(undisturbed)
        assert dataset.open_sealed(Folder(str(output))).root == dataset.open_sealed(Folder(str(undisturbed))).root
    finally:
        cluster.shutdown()


def test_a_cluster_of_one_cpu_runs_to_the_end(undisturbed: Path, digits_run: Path, tmp_path: Path, job: Job) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 128 << 20})
    try:
        env = {"RAY_ADDRESS": cluster.address}
        output = tmp_path / "synthetic"
        done = job("generate", "--model", digits_run, "--output", output, *GENERATE, env=env)
        assert done.returncode == 0, done.stderr
        assert _contents(output) == _contents(undisturbed)
        done = job("verify", "--dataset", output, "--regenerate", 8, env=env)
        assert done.returncode == 0, done.stderr
    finally:
        cluster.shutdown()
