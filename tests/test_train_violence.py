"""Training that is killed, preempted, cut off and resized: it ends in the weights of the run that nobody disturbed.

Real processes, real signals, a real S3 server behind a proxy that fails (tests/faults.py). On another number of workers
the batches are the same and the statistics of batch norm are not: there the losses must be finite and comparable.
"""

import json
import math
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray
from safetensors.torch import load

from pipelines.loading import order
from pipelines.storage.folder import Folder
from tests.conftest import ROOT, digits_settings
from tests.faults import RATES, FaultyProxy
from tests.processes import Run, cluster_of, until, workers

BATCH, TICK, IMAGES = 16, 320, 2560
FLAGS = ("--width", 8, "--batch-size", BATCH, "--tick", TICK, "--images", IMAGES, "--keep", 100)
METHOD = ("--shuffle", 64, "--metric-images", 100)  # a stream reads its next shard when it needs it
TIMED = ("images_per_second", "data_wait_share", "memory_mib")
STAYS = "What is saved in {place} stays; the same command goes on from there"
Start = Callable[..., Run]


@pytest.fixture
def start(digits: Path, tmp_path: Path) -> Iterator[Start]:
    """Train into a place; all that is started is ended with the test. The session's own Ray ends: one at a time."""
    ray.shutdown()
    begun: list[Run] = []

    def call(
        place: str | Path,
        *flags: str | int,
        data: str | Path = digits,
        shape: tuple[str | int | Path, ...] = (*FLAGS, *METHOD),
    ) -> Run:
        chosen = ("--data", data, "--run", place, *shape, *flags)
        begun.append(Run("train", tmp_path / f"log{len(begun)}", *chosen))
        return begun[-1]

    yield call
    for run in begun:
        run.end()


@pytest.fixture(scope="module")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two workers that every other must equal. Not to be changed."""
    place = tmp_path_factory.mktemp("undisturbed")
    ray.shutdown()
    run = Run("train", place / "log", "--data", digits, "--run", place / "run", *FLAGS, *METHOD, "--workers", 2)
    run.wait()
    run.end()
    return place / "run"


def saved(place: str | Path) -> list[int]:
    """The images of the checkpoints that are complete."""
    names = Folder(f"{place}/checkpoints").tree()
    return sorted(int(name.split("/")[0]) for name in names if name.endswith("/checkpoint.json"))


def state_name(expected: Path) -> str:
    """The file of its last checkpoint's state."""
    return f"checkpoints/{saved(expected)[-1]:012d}/state.safetensors"


def until_saved(place: str | Path, images: int, run: Run, within_s: float = 120.0) -> None:
    def there() -> bool:
        assert run.process.poll() is None, run.log()
        return bool(saved(place)) and saved(place)[-1] >= images

    until(there, f"the checkpoint of {images} images", within_s)


def until_begun(place: Path, run: Run) -> None:
    def there() -> bool:
        assert run.process.poll() is None, run.log()
        return (place / "reals.png").exists()

    until(there, "training that has begun")


def assert_equal(place: str | Path, expected: Path) -> None:
    """The last checkpoint, the best model and the pictures, byte for byte; the statistics but for times and memory."""
    folder, best = Folder(str(place)), json.loads((expected / "best.json").read_text())
    last = state_name(expected)
    names = [last, "best.json", *(f"{best['model']}/{name}" for name in ("model.json", "generator.safetensors"))]
    for name in [*names, *(f"grids/{images:012d}.png" for images in saved(expected))]:
        assert folder.read(name) == (expected / name).read_bytes(), name
    mine, theirs = (
        [{name: value for name, value in json.loads(line).items() if name not in TIMED} for line in data.splitlines()]
        for data in (folder.read("stats.jsonl"), (expected / "stats.jsonl").read_bytes())
    )
    assert mine == theirs
    assert mine[-1]["images"] == saved(expected)[-1]


def assert_comparable(place: str | Path, expected: Path) -> None:
    """Across numbers of workers: every loss is finite, and those at the end are of the same size."""
    mine, theirs = (
        [json.loads(line) for line in (Path(run) / "stats.jsonl").read_text().splitlines()] for run in (place, expected)
    )
    mine = mine[: len(theirs)]
    assert [tick["images"] for tick in mine] == [tick["images"] for tick in theirs]
    for name in ("loss_d", "loss_g"):
        assert all(math.isfinite(tick[name]) for tick in mine)
        assert 0.4 < mine[-1][name] / theirs[-1][name] < 2.5
    state = load((Path(place) / state_name(expected)).read_bytes())
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())


def test_a_killed_rank_and_then_a_killed_driver_leave_the_same_weights(
    start: Start, digits_run: Path, tmp_path: Path
) -> None:
    """The settings of `digits_run`, and as many CPUs."""
    place, images = tmp_path / "run", saved(digits_run)
    (tmp_path / "same.toml").write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in digits_settings().items()))
    flags = ("--config", tmp_path / "same.toml", "--tick", images[0], "--images", images[-1], "--workers", 2)
    with cluster_of(4):
        run = start(place, shape=flags)
        until_begun(place, run)
        ranks = workers(psutil.Process(), "RayTrainWorker")
        assert len(ranks) == 2
        ranks[1].kill()  # Ray starts both anew
        until_saved(place, images[0], run)
        assert {rank.pid for rank in workers(psutil.Process(), "RayTrainWorker")}.isdisjoint(rank.pid for rank in ranks)
        run.kill()
        run.end()
        assert saved(place) == images[:1]
        run = start(place, shape=flags)
        run.wait()
    assert f"; going on after {images[0]:,} images" in run.log()
    assert_equal(place, digits_run)


@pytest.fixture(scope="class")
def one_cluster(undisturbed: Path) -> Iterator[None]:
    """Of two CPUs; the undisturbed run had a Ray of its own."""
    with cluster_of(2):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("one_cluster")
class TestOneCluster:
    @pytest.mark.parametrize("on", [False, pytest.param(True, marks=pytest.mark.long)])
    def test_what_would_fail_again_ends_the_job_at_once_and_once_mended_the_same_command_goes_on(
        self, on: bool, start: Start, undisturbed: Path, digits: Path, tmp_path: Path
    ) -> None:
        """A shard that cannot be read, and that the last stream needs in the middle of the epoch."""
        plan = order.make_plan((1000,) * 5, BATCH, 64, seed=0)
        number = order.spans(plan, 0, plan.streams - 1)[-1].shard
        place, shard = tmp_path / "run", digits / "shards" / f"{number:06d}.tar"
        hidden = shard.rename(shard.with_suffix(".hidden"))
        try:
            run = start(place, "--workers", 2)  # three more starts are allowed
            run.wait(status=1)
        finally:
            hidden.rename(shard)
        assert run.error() == f"train: error: rank 1 on {socket.gethostname()}: {shard}: missing"
        assert "Traceback" not in run.log()
        run.end()
        assert 0 < max(saved(place)) < IMAGES
        if on:
            run = start(place, "--workers", 2)
            run.wait()
            assert_equal(place, undisturbed)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("victim", "words"),
        [
            ("RayTrainWorker", "worker 0 failed, and --max-failures are used up: "),
            ("TrainController", "Ray Train ended: "),
            pytest.param("ProgressActor", "the progress actor is gone: ", marks=pytest.mark.long),
        ],
    )
    def test_a_process_of_rays_that_dies_ends_the_job_in_a_line(
        self, victim: str, words: str, start: Start, tmp_path: Path
    ) -> None:
        place = tmp_path / "run"
        run = start(place, "--workers", 1, "--images", 1000 * IMAGES, "--max-failures", 0)
        until_saved(place, TICK, run)
        [process] = workers(psutil.Process(), victim)
        process.kill()
        run.wait(status=1)
        assert run.error().startswith(f"train: error: {words}")
        assert run.error().endswith(STAYS.format(place=place))
        assert "Traceback" not in run.log()

    @pytest.mark.slow
    def test_ctrl_c_stops_with_a_word(self, start: Start, tmp_path: Path) -> None:
        place = tmp_path / "run"
        run = start(place, "--workers", 1, "--images", 1000 * IMAGES)
        until_saved(place, TICK, run)
        run.process.send_signal(signal.SIGINT)
        run.wait(status=130)
        assert run.log().splitlines()[-1] == "train: stopped; the same command goes on from here"
        assert "Traceback" not in run.log()
        until(lambda: not workers(psutil.Process(), "RayTrainWorker"), "its workers end")


@pytest.mark.slow
def test_a_network_interface_that_is_not_there_is_a_line(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nonsense0")
    place = tmp_path / "run"
    run = start(place, "--workers", 2)
    run.wait(status=1)
    assert run.error().startswith("train: error: Ray Train could not go on: ")
    assert "nonsense0" in run.error()
    assert run.error().endswith(STAYS.format(place=place))
    assert "Traceback" not in run.log()


@pytest.mark.long  # Ray waits for its return
def test_a_cluster_that_is_gone_is_a_line(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
    place = tmp_path / "run"
    with cluster_of(2) as cluster:
        run = start(place, "--workers", 1, "--images", 1000 * IMAGES)
        until_saved(place, TICK, run)
        cluster.head_node.kill_gcs_server()
        run.wait(status=1)
    assert run.error() == (f"train: error: this process ended before the run was done. {STAYS.format(place=place)}")


@pytest.mark.slow
@pytest.mark.long  # test_line.py trains under the same faults, and a killed driver is above
def test_a_failing_store_and_a_crash_while_a_checkpoint_is_sent_leave_the_same_weights(
    start: Start, undisturbed: Path, digits: Path, s3: str, proxy: FaultyProxy
) -> None:
    place = f"{s3}/run"
    third = f"checkpoints/{3 * TICK:012d}/state"

    def where(method: str, path: str) -> bool:
        return method == "PUT" and third in path

    proxy.kinds, proxy.where, proxy.stall_s = {"stall": 1.0}, where, 100.0
    with cluster_of(2):
        run = start(place, "--workers", 2)
        until(lambda: proxy.counts["stall"] > 0, "the third checkpoint is being sent")
        run.end()
        proxy.kinds, proxy.where, proxy.stall_s = RATES, lambda method, path: True, 0.5
        assert saved(place) == [TICK, 2 * TICK]
        run = start(place, "--workers", 2)
        run.wait()
        assert f"; going on after {2 * TICK:,} images" in run.log()
        assert sum(proxy.counts.values()) > 10, proxy.counts
    proxy.kinds = {}
    assert_equal(place, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)  # 100 s on a free machine, of which Ray waits up to 90; twice that beside a busy process
def test_a_preempted_node_leaves_a_checkpoint_in_time_and_the_rest_goes_on(
    start: Start, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elastic: two nodes of one CPU, of which one is drained as a cloud does it; then one worker goes on."""
    place = tmp_path / "run"
    # Ray may ask once more for as many workers as before, and waits this long for them.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")

    with cluster_of(1, 1) as cluster:
        # Without an end: on a fast machine the notice, looked for every few seconds, came after it.
        run = start(place, "--workers", "1:2", "--images", 10_000 * IMAGES, "--keep", 1000)
        until_saved(place, 2 * TICK, run, within_s=300)  # on a busy machine Ray's workers alone take two minutes
        address, node = cluster.address, next(iter(cluster.worker_nodes)).node_id
        drain = [Path(sys.executable).parent / "ray", "drain-node", "--address", address, "--node-id", node]
        why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds"]
        subprocess.run([*map(str, drain), *why, "90"], cwd=ROOT, check=True, capture_output=True)

        def noticed() -> re.Match[str] | None:
            assert run.process.poll() is None, run.log()
            return re.search(r"a node will be preempted; a checkpoint of ([\d,]+) images is saved", run.log())

        until(lambda: bool(noticed()), "the notice is told of")
        found = noticed()
        assert found is not None
        notice = int(found[1].replace(",", ""))
        # A notice that falls on a tick's own step leaves the tick's checkpoint, and nothing beside it.
        assert [images for images in saved(place) if images % TICK] == [notice] * bool(notice % TICK)
        assert notice in saved(place)
        cluster.remove_node(next(iter(cluster.worker_nodes)))
        # Ray may wait for the drain's end before it starts the rest again.
        until_saved(place, max(IMAGES, saved(place)[-1] + 2 * TICK), run, within_s=200)
        assert len(workers(psutil.Process(run.process.pid), "RayTrainWorker")) <= 1
        assert notice > 2 * TICK
        run.end()
    assert_comparable(place, undisturbed)


@pytest.mark.long  # the test above is this one's short form
def test_two_workers_then_one_then_two_again(start: Start, undisturbed: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    for number, count in enumerate((2, 1)):
        run = start(place, "--workers", count)
        until_saved(place, (2 + 2 * number) * TICK, run)
        run.end()
    run = start(place, "--workers", 2)
    run.wait()
    assert_comparable(place, undisturbed)
