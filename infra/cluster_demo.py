#!/usr/bin/env python3
"""The whole system on several hosts of one machine: a head, workers and an S3 server, each in a network namespace.

    make cluster-demo            # or: infra/cluster_demo.py --workers 3 --keep

Submits ingest, train and generate with `ray job submit` under a token, kills a worker's host in the middle of the
generation, adds a new one as an autoscaler would, and verifies the dataset. Everything that it starts, it ends.

Hosts need root and iproute2 on Linux. Without them the nodes are processes of this host: all the same but the network.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
NETWORK = "10.213.77"  # of the bridge; this host is .1
BUCKET = "ganmill"
S3_PORT, DASHBOARD_PORT, GCS_PORT = 5000, 8265, 6379
OBJECT_STORE = 128 << 20
JOIN_ATTEMPTS = 3  # Ray gives a new node 30 s to register, which is short on a busy machine


class DemoError(RuntimeError):
    """Something that was to happen did not: one line."""


class Host:
    """A host: a network namespace with one interface, or, without namespaces, nothing but a name."""

    def __init__(self, name: str, number: int, isolated: bool, env: dict[str, str], logs: Path) -> None:
        self.name, self.log = name, logs / f"{name}.log"
        self.address = f"{NETWORK}.{number}" if isolated else "127.0.0.1"
        self._isolated, self._env = isolated, env
        self._space = f"gm{os.getpid()}-{number}"
        self._processes: list[subprocess.Popen[bytes]] = []
        if isolated:
            link = f"gm{number}"
            _ip(f"netns add {self._space}")
            _ip(f"link add {link} type veth peer name eth0 netns {self._space}")
            _ip(f"link set {link} master {_bridge()} up")
            for words in (f"addr add {self.address}/24 dev eth0", "link set eth0 up", "link set lo up"):
                _ip(f"-n {self._space} {words}")

    def run(self, *command: str | Path) -> None:
        """Start a command here, in a session of its own."""
        # Gloo, by which ranks meet, otherwise looks up the machine's own name, which is no address of this host.
        network = {"GLOO_SOCKET_IFNAME": "eth0"} if self._isolated else {}
        prefix = ["ip", "netns", "exec", self._space] if self._isolated else []
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*prefix, *map(str, command)],
                env={**self._env, **network},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)

    def alive(self) -> bool:
        return all(process.poll() is None for process in self._processes)

    def kill(self) -> int:
        """SIGKILL to everything on the host, as when its power goes. Returns how many processes that were."""
        killed = 0
        while found := self._pids():
            killed += len(found)
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self._processes:
                process.poll()
            time.sleep(0.05)  # the kernel takes them away one by one
        for process in self._processes:
            process.wait()
        self._processes.clear()
        return killed

    def remove(self) -> None:
        self.kill()
        if self._isolated:
            _ip(f"netns del {self._space}")

    def _pids(self) -> list[int]:
        if self._isolated:
            return [int(pid) for pid in _ip(f"netns pids {self._space}").split()]
        sessions = {process.pid for process in self._processes}
        return [pid for pid, state, _, session in _process_table() if session in sessions and state != "Z"]


def _process_table() -> Iterator[tuple[int, str, int, int]]:
    """Process id, state, parent and session of every process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                yield int(entry.name), fields[0], int(fields[1]), int(fields[3])


def _bridge() -> str:
    return f"gm{os.getpid() % 100_000}br"


def _ip(words: str) -> str:
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DemoError(f"ip {words}: {done.stderr.strip()}")
    return done.stdout


class Demo:
    """The cluster, and what is done on it."""

    def __init__(self, workers: int, images: int, count: int, isolated: bool, place: Path) -> None:
        self.workers, self.images, self.count = workers, images, count
        self.isolated, self.place = isolated, place
        self.hosts: list[Host] = []
        self.rows: list[tuple[str, float, str]] = []
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_", "GANMILL_"))},
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "CLUSTER_DEMO": str(os.getpid()),  # marks all that is ours
            "AWS_ACCESS_KEY_ID": "demo",
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def host(self, name: str) -> Host:
        host = Host(name, len(self.hosts) + 10, self.isolated, self.env, self.place)
        self.hosts.append(host)
        return host

    def start(self) -> None:
        store = self.host("s3")
        self.s3_port = S3_PORT if self.isolated else _free_port()
        self.env["AWS_ENDPOINT_URL"] = f"http://{store.address}:{self.s3_port}"
        store.run(BIN / "moto_server", "-H", store.address, "-p", str(self.s3_port))
        self.s3: Any = boto3.client(
            "s3",
            endpoint_url=self.env["AWS_ENDPOINT_URL"],
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
            config=Config(connect_timeout=2, read_timeout=10, retries={"max_attempts": 1}),
        )
        until(self._bucket, "the S3 server answers", store)
        head = self.host("head")
        gcs, dashboard = (GCS_PORT, DASHBOARD_PORT) if self.isolated else (_free_port(), _free_port())
        self.gcs, self.dashboard = f"{head.address}:{gcs}", f"http://{head.address}:{dashboard}"
        ports = [f"--port={gcs}", "--dashboard-host=0.0.0.0", f"--dashboard-port={dashboard}"]
        if not self.isolated:  # other nodes live here too
            ports += [f"--ray-client-server-port={_free_port()}"]
        self._ray(head, "--head", "--num-cpus=0", *ports)
        until(lambda: _answers(head.address, dashboard), "the head's Jobs API answers", head)
        for _ in range(self.workers):
            self.add_worker()

    def add_worker(self) -> Host:
        """One more node. One at a time: two that start at once may take the same socket below Ray's folder."""
        host = self.host(f"worker-{len(self.hosts) - 1}")  # beside the store and the head
        for attempt in range(1, JOIN_ATTEMPTS + 1):
            before = self._nodes()
            self._ray(host, f"--address={self.gcs}", "--num-cpus=1")
            try:
                until(lambda before=before: self._nodes() > before, f"{host.name} has joined", host)  # type: ignore[misc]
                break
            except DemoError:
                host.kill()
                if attempt == JOIN_ATTEMPTS:
                    raise
        return host

    def _ray(self, host: Host, *flags: str) -> None:
        agent = [] if self.isolated else [f"--dashboard-agent-listen-port={_free_port()}"]
        place = [f"--temp-dir={self.place}/ray"] if "--head" in flags else []
        always = [f"--node-ip-address={host.address}", f"--object-store-memory={OBJECT_STORE}"]
        host.run(BIN / "ray", "start", "--block", *flags, *always, *agent, *place)

    def _bucket(self) -> bool:
        try:
            self.s3.create_bucket(Bucket=BUCKET)
        except (BotoCoreError, ClientError):
            return False
        return True

    def _nodes(self) -> int:
        """How many nodes the cluster has ever had: a dead one stays listed."""
        token = {"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.dashboard}/nodes?view=summary", headers=token)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return len(json.load(answer)["data"]["summary"])

    def submit(self, name: str, *flags: object, meanwhile: Callable[[], str] = lambda: "") -> None:
        """A command of ours as a submitted job; what it says goes to the terminal, what Ray says to a log."""
        entrypoint = [f"jobs/{name}.py", "--root", f"s3://{BUCKET}/demo", *map(str, flags)]
        submit = ["ray", "job", "submit", "--address", self.dashboard, "--working-dir", ".", "--", *entrypoint]
        say("$", *submit)
        start = time.monotonic()
        log = self.place / f"job-{name}.log"
        job = subprocess.Popen(
            [BIN / "ray", *submit[1:]],
            cwd=ROOT,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        reader = threading.Thread(target=_show, args=(job.stdout, name, log))
        reader.start()
        try:
            happened = meanwhile()
            status = job.wait()
        finally:
            job.kill()
            job.wait()
            reader.join()
        if status:
            raise DemoError(f"{name} ended with status {status}")
        self.rows.append((name, time.monotonic() - start, happened))

    def refused_without_token(self) -> None:
        """The same Jobs API, asked by somebody without the token."""
        env = {**self.env, "RAY_AUTH_TOKEN": "0" * 64}
        command = [str(BIN / "ray"), "job", "list", "--address", self.dashboard]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            raise DemoError("the Jobs API answered a wrong token")
        self.rows.append(("stranger", 0.0, "with a wrong token: refused"))

    def power_cut(self) -> str:
        """Once a third of the shards are done: one worker's host dies, another one comes."""
        shards = -(-self.count // 1000)
        victim = next(host for host in self.hosts if host.name == "worker-1")
        until(lambda: self._parts() >= shards // 3, "a third of the shards are done", self.hosts[1])
        done, killed = self._parts(), victim.kill()
        if done == shards:
            raise DemoError("all shards were done before a host could be killed: use a larger --count")
        say(
            f"cluster-demo: {victim.name} ({victim.address}): {killed} processes killed, {done} of {shards} shards done"
        )
        return f"{victim.name} killed after {done} of {shards} shards, {self.add_worker().name} came"

    def _parts(self) -> int:
        listing = self.s3.list_objects_v2(Bucket=BUCKET, Prefix="demo/synthetic/manifest/")
        return int(listing["KeyCount"])

    def run(self) -> None:
        began = time.monotonic()
        self.start()
        kind = "network namespaces" if self.isolated else "processes of this host"
        self.rows.append(("start", time.monotonic() - began, f"S3 server, head, {self.workers} workers: {kind}"))
        self.refused_without_token()
        self.submit("ingest", "--source", "digits", "--workers", 2)
        self.submit("train", "--images", self.images, "--tick", self.images // 2, "--width", 16, "--workers", 2)
        flags = ("--count", self.count, "--shard-size", 1000, "--workers", self.workers)
        self.submit("generate", *flags, meanwhile=self.power_cut)
        self.submit("verify", "--regenerate", 64, "--workers", 2)
        self._table(time.monotonic() - began)

    def _table(self, seconds: float) -> None:
        say(f"\n{'step':10}{'seconds':>8}  what happened")
        for step, taken, happened in self.rows:
            say(f"{step:10}{taken:8.0f}  {happened or 'done'}")
        say(f"{'total':10}{seconds:8.0f}  {self.count:,} images, exact and verified, on a cluster that lost a host")
        say("\nNext: infra/cluster_demo.py --keep leaves it up: the dashboard, and jobs of your own.")
        say("On real machines: infra/README.md.")

    def end(self) -> None:
        for host in reversed(self.hosts):
            with contextlib.suppress(DemoError):
                host.remove()
        for pid, _, parent, _ in _process_table():  # Ctrl-C in the middle of Popen leaves a child that no name has
            if parent == os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _show(output: IO[str], name: str, log: Path) -> None:
    with log.open("w") as file:
        for line in output:
            file.write(line)
            if line.startswith((f"{name}: ", f"ganmill {name}: ")):
                say(line.rstrip())


def say(*words: object) -> None:
    print(*words, flush=True)


def until(condition: Callable[[], bool], what: str, host: Host, within_s: float = 120.0) -> None:
    """Wait for a condition that `host` is to bring about."""
    deadline = time.monotonic() + within_s
    while not condition():
        if not host.alive():
            raise DemoError(f"{host.name} ended by itself, before this: {what}")
        if time.monotonic() > deadline:
            raise DemoError(f"not within {within_s:.0f} s: {what}")
        time.sleep(0.2)


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def network(isolated: bool) -> Iterator[None]:
    """A bridge on which the hosts meet and this one too, as .1; gone afterwards."""
    if not isolated:
        yield
        return
    _ip(f"link add {_bridge()} type bridge")
    try:
        _ip(f"addr add {NETWORK}.1/24 dev {_bridge()}")
        _ip(f"link set {_bridge()} up")
        yield
    finally:
        _ip(f"link del {_bridge()}")


def namespaces_allowed() -> bool:
    """Whether this machine lets us make a host: root, Linux, iproute2, and a sandbox that permits it."""
    if os.geteuid() or not shutil.which("ip"):
        return False
    try:
        _ip(f"netns add gm{os.getpid()}")
        _ip(f"netns del gm{os.getpid()}")
    except DemoError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="worker hosts, of one CPU each (default: 2)")
    parser.add_argument("--images", type=int, default=12_800, help="real images to train on (default: 12,800)")
    parser.add_argument("--count", type=int, default=60_000, help="images to generate (default: 60,000)")
    parser.add_argument("--processes", action="store_true", help="no network namespaces, though they are allowed")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up until Ctrl-C")
    arguments = parser.parse_args()
    isolated = not arguments.processes and namespaces_allowed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the clean-up below, as Ctrl-C goes
    with tempfile.TemporaryDirectory(prefix="gm-", dir="/tmp") as place, network(isolated):
        demo = Demo(arguments.workers, arguments.images, arguments.count, isolated, Path(place))
        try:
            demo.run()
            if arguments.keep:
                say(f"\nexport RAY_API_SERVER_ADDRESS={demo.dashboard} AWS_ENDPOINT_URL={demo.env['AWS_ENDPOINT_URL']}")
                say(f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN={demo.env['RAY_AUTH_TOKEN']}   # until Ctrl-C")
                signal.pause()
        except DemoError as error:
            print(f"cluster-demo: {error}", file=sys.stderr)
            for log in sorted(Path(place).glob("*.log")):
                print(f"--- the end of {log.name}\n{log.read_text(errors='replace')[-1500:]}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\ncluster-demo: stopped", file=sys.stderr)
            return 130
        finally:
            demo.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
