"""What the tests of violence share: commands as processes that can be killed, and clusters."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import ray
from ray.cluster_utils import Cluster

from tests.conftest import ROOT


def until(condition: Callable[[], bool], what: str, within_s: float = 120.0) -> None:
    """Wait for a condition, looking every few milliseconds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        time.sleep(0.003)


class Run:
    """A command as a process in a session of its own, by which all that it starts can be found."""

    def __init__(self, name: str, log: Path, *flags: str | int | Path, prefix: tuple[str, ...] = ()) -> None:
        command = [*prefix, sys.executable, str(ROOT / "jobs" / f"{name}.py"), *map(str, flags)]
        self._name, self._log = name, log
        self.started = time.monotonic()
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)

    def log(self) -> str:
        return self._log.read_text()

    def error(self) -> str:
        """Its one line of an error."""
        lines = [line for line in self.log().splitlines() if line.startswith(f"{self._name}: error: ")]
        assert len(lines) == 1, self.log()
        return lines[0]

    def wait(self, status: int = 0, within_s: float = 200.0) -> None:
        assert self.process.wait(within_s) == status, self.log()

    def kill(self) -> None:
        """SIGKILL to the driver alone."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """SIGKILL to everything of its session, until nothing is left."""

        def gone() -> bool:
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error, ProcessLookupError):
                    if os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                        process.kill()
                        return False
            return True

        until(gone, "everything that the run started is gone")
        self.process.wait()


def workers(of: psutil.Process, name: str) -> list[psutil.Process]:
    """Ray's workers below a process that have begun to work: plain actors are `ShardRunner`, those of Ray Data
    `MapWorker`, of Ray Train `RayTrainWorker`."""
    found = []
    for process in of.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "".join(process.cmdline()[:1]).startswith(f"ray::{name}"):
                found.append(process)
    return found


@contextlib.contextmanager
def ray_here() -> Iterator[None]:
    """A Ray for calls in this process. The session's own is ended: one cluster at a time."""
    ray.shutdown()
    ray.init(address="local", num_cpus=2, object_store_memory=256 << 20, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def cluster_of(*cpus: int) -> Iterator[Cluster]:
    """A cluster of nodes with these CPUs; RAY_ADDRESS is its address meanwhile."""
    arguments = {"object_store_memory": 128 << 20}
    head = {**arguments, "num_cpus": cpus[0], "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for count in cpus[1:]:
            cluster.add_node(num_cpus=count, **arguments)
        cluster.wait_for_nodes()
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        cluster.shutdown()


class Head(NamedTuple):
    """A `ray start --head` of a test's own, the environment of one who may use it, and where it keeps its logs."""

    gcs: str
    dashboard: str
    metrics: str
    env: dict[str, str]
    place: Path


@contextlib.contextmanager
def head_node(cpus: int = 2, **variables: str) -> Iterator[Head]:
    """A head node as a platform engineer starts one, with these variables of the environment; gone afterwards."""
    gcs, dashboard, agent, client, metrics = (free_port() for _ in range(5))
    # The environment is active where `ray start` is called, as the README has it: a job finds its Python by PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", **variables, "PATH": path}
    place = Path("/tmp") / f"gm{os.getpid()}"  # Ray's sockets live below it, and their paths must be short
    command = [
        f"{Path(sys.executable).parent}/ray start --head --block --num-cpus={cpus} --object-store-memory=268435456",
        f"--port={gcs} --dashboard-port={dashboard} --dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client} --metrics-export-port={metrics} --temp-dir={place} --disable-usage-stats",
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
    try:
        here = "http://127.0.0.1"
        yield Head(f"127.0.0.1:{gcs}", f"{here}:{dashboard}", f"{here}:{metrics}/metrics", env, place)
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs([*children, psutil.Process(process.pid)], timeout=5)
        for survivor in alive:
            survivor.kill()
        process.wait()
        shutil.rmtree(place, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
