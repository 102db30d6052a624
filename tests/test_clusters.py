"""The same commands on real Ray clusters: submitted with a token, over several nodes, on a single CPU."""

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from jobs import cluster, generate
from pipelines import dataset
from pipelines.storage import Folder
from tests.conftest import ROOT, Job
from tests.processes import Head, cluster_of, head_node, until

COUNT = 1200
CANARY = "canary-5d02-a-secret-of-the-environment"
GENERATE = ("--count", COUNT, "--shard-size", 200)


@pytest.fixture(scope="class")
def token_head() -> Iterator[Head]:
    """A head node with token authentication, and secrets in its environment that must not get out."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-this-test-only-0123456789"}
    with head_node(**token, MY_TOKEN=CANARY, AWS_SECRET_ACCESS_KEY=CANARY) as head:
        yield head


def _submit(head: Head, *entrypoint: str | int | Path, status: int = 0) -> str:
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
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for kind in ("shards", "manifest") for p in (folder / kind).iterdir()
    }


class TestSubmitted:
    def test_three_lines_run_as_submitted_jobs_under_a_token(self, token_head: Head, tmp_path: Path) -> None:
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

    def test_a_submitted_job_refuses_a_root_that_would_vanish(self, token_head: Head) -> None:
        told = _submit(token_head, "jobs/train.py", status=1)
        assert "--root ganmill-data: a relative path would vanish with the submitted job's working directory" in told


@pytest.fixture(scope="module")
def undisturbed(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every cluster must make too, byte for byte."""
    output = tmp_path_factory.mktemp("undisturbed") / "synthetic"
    generate.main(
        generate.GenerateSettings(model=str(digits_run), output=str(output), count=COUNT, shard_size=200, workers=1)
    )
    ray.shutdown()  # one cluster at a time
    return output


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


@pytest.mark.long  # test_generate_violence.py goes on with one CPU after a stopped cluster; verify is on one only here
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


def test_a_cluster_that_has_scaled_to_no_gpu_is_waited_for() -> None:
    ray.shutdown()
    with cluster_of(1) as nodes, ThreadPoolExecutor(1) as other:
        asked = other.submit(cluster.connect, None, "cuda")
        until(ray.is_initialized, "the command has joined the cluster", within_s=30)
        assert not asked.done()
        nodes.add_node(num_cpus=1, num_gpus=1)  # as an autoscaler would
        assert asked.result(60) == cluster.Pool(workers=1, gpus_per_worker=1.0)
        ray.shutdown()
