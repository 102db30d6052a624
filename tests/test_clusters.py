"""The same commands on real Ray clusters: submitted with a token, over several nodes, on a single CPU."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from jobs import generate, train
from jobs.cluster import actor_pool, batch_plan, connection
from jobs.cluster.probe import fingerprint, probe
from jobs.command.errors import LostWorkError, UsageError
from pipelines.dataset import reader
from pipelines.storage.folder import Folder
from tests.conftest import ROOT, Job, digits_settings
from tests.processes import Head, cluster_of, head_node, ray_here, until

pytestmark = pytest.mark.slow

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
        assert reader.open_sealed(Folder(str(root / "synthetic"))).samples == COUNT

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
        assert reader.open_sealed(Folder(str(output))).root == reader.open_sealed(Folder(str(undisturbed))).root
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
        asked = other.submit(connection.connect, None, "cuda")
        until(ray.is_initialized, "the command has joined the cluster", within_s=30)
        assert not asked.done()
        nodes.add_node(num_cpus=1, num_gpus=1)  # as an autoscaler would
        assert asked.result(60) == connection.Pool(workers=1, gpus_per_worker=1.0)
        ray.shutdown()


@ray.remote(num_cpus=2)
class Other:
    """Another job, which holds all of a cluster."""

    def ready(self) -> None: ...


def test_workers_without_room_are_told_of_waited_for_and_then_refused(capsys: pytest.CaptureFixture[str]) -> None:
    class SaysWhere:  # in here: Ray's workers cannot import this file
        def __call__(self, shard: int) -> dict[str, Any]:
            return {"pid": os.getpid()}

    ray.shutdown()
    with cluster_of(2, 1) as nodes, ThreadPoolExecutor(1) as thread, ray.init(log_to_driver=False):
        assert connection.connect(None, "cpu") == connection.Pool(3, 0.0)
        nodes.remove_node(next(node for node in nodes.list_all_nodes() if not node.head), allow_graceful=False)
        until(lambda: len(connection.nodes()) == 1, "the node's death is known", within_s=60)
        assert len(ray.nodes()) == 2  # Ray's list keeps it
        assert (connection.threads(1), connection.threads(4)) == (2, 1)

        told = "3 workers of 1 CPU each: the cluster has room for 2; use --workers 2"
        with pytest.raises(UsageError) as mistake:
            connection.wait_for_room({"CPU": 1.0}, 3, wait_s=1)
        assert str(mistake.value) == told
        assert f"{told}; waiting 1 s for room (--wait-s)\n" in capsys.readouterr().err
        with pytest.raises(UsageError) as mistake:
            connection.connect(None, "cuda", 2.0, wait_s=0)
        assert str(mistake.value) == (
            "a worker of 1 CPU and 2 GPUs: the cluster has room for none; use --device cpu, or less of a GPU a worker"
        )
        assert "waiting" not in capsys.readouterr().err

        answers = list(actor_pool.map_shards(SaysWhere, {}, range(8), connection.Pool(4, 0.0)))
        assert sorted(done.shard for done in answers) == list(range(8))
        assert len({done.result["pid"] for done in answers}) <= 2
        assert "room for 2 of 4 workers; the others start when there is more" in capsys.readouterr().err

        other = Other.remote()  # type: ignore[attr-defined]  # ray.remote's classes
        ray.get(other.ready.remote())
        with pytest.raises(LostWorkError) as lost:
            connection.wait_for_room({"CPU": 1.0}, 1, wait_s=1)
        assert str(lost.value) == (
            "a worker of 1 CPU: the cluster was busy for 1 s; start the same command when it is not, or with a longer "
            "--wait-s"
        )
        asked = thread.submit(connection.wait_for_room, {"CPU": 1.0}, 2, 60)
        told = "2 workers of 1 CPU each: the cluster is busy; waiting 60 s for room (--wait-s)\n"
        err = []
        until(lambda: err.append(capsys.readouterr().err) or told in "".join(err), "it has said so", within_s=30)
        assert not asked.done()
        ray.kill(other)
        asked.result(60)

        assert not torch.cuda.is_available(), "this test is for machines without a GPU"
        nodes.add_node(num_cpus=1, num_gpus=1, object_store_memory=128 << 20)
        until(lambda: len(connection.nodes()) == 2, "the new node is there", within_s=60)
        pool = connection.connect(None, "auto")
        assert pool == connection.Pool(1, 1.0)
        with pytest.raises(UsageError) as mistake:
            probe(pool, "auto", fingerprint, 1)
        assert str(mistake.value) == (
            f"Ray gives workers a GPU, but torch {torch.__version__} sees none on node {socket.gethostname()}; "
            "use --device cpu, or install a torch for that GPU's driver"
        )


@pytest.mark.parametrize("map_shards", [actor_pool.map_shards, batch_plan.map_shards], ids=["actors", "Ray Data"])
def test_shards_of_a_lost_node_are_made_though_no_other_node_comes(map_shards: Callable[..., Any]) -> None:
    """The other worker is idle in the end, and its CPU is the only one that is left."""

    class Slow:
        def __call__(self, shard: int) -> dict[str, Any]:
            time.sleep(1.0)
            return {"node": ray.get_runtime_context().get_node_id()}

    ray.shutdown()
    with cluster_of(1, 1) as nodes, ThreadPoolExecutor(1) as thread, ray.init(log_to_driver=False):
        lost = next(node for node in nodes.list_all_nodes() if not node.head)
        pool = connection.Pool(2, 0.0)
        outcomes = map_shards(Slow, {}, range(12), pool)
        found = []
        while len({one.result["node"] for one in found}) < 2:  # both are at work
            found.append(next(outcomes))
        nodes.remove_node(lost, allow_graceful=False)
        rest = thread.submit(lambda: list(outcomes))
        found += rest.result(150)
    assert sorted(one.shard for one in found) == list(range(12))
    assert not any(one.error for one in found)


def test_workers_without_room_on_this_machine_are_refused_at_once() -> None:
    with ray_here():
        with pytest.raises(UsageError) as mistake:
            connection.wait_for_room({"CPU": 1.0}, 3, wait_s=900)
        assert str(mistake.value) == "3 workers of 1 CPU each: this machine has room for 2; use --workers 2"
        with pytest.raises(UsageError) as mistake:
            connection.connect(None, "cuda", 0.5)
        assert str(mistake.value) == (
            "a worker of 1 CPU and 0.5 GPU: this machine has room for none; use --device cpu, or less of a GPU a worker"
        )


def test_training_without_room_for_its_workers_is_refused_before_it_begins(digits: Path, tmp_path: Path) -> None:
    """Ray Train itself would wait for ever, without a word."""
    settings = {**digits_settings(), "data": str(digits), "run": str(tmp_path / "run"), "workers": "4"}
    with ray_here(), pytest.raises(UsageError) as mistake:
        train.main(train.TrainSettings(**settings))
    assert str(mistake.value) == "4 workers of 1 CPU each: this machine has room for 2; use --workers 2"
    assert not (tmp_path / "run").exists()
