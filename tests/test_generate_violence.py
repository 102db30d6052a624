"""Killed, cut off, refused and full: what a dataset's bytes must not show, and how a job that cannot go on ends.

Everything is real here: processes are killed with SIGKILL, the disk is full, and the S3 server is reached through a
proxy (tests/faults.py) that fails as stores do. Each test compares with one undisturbed run, byte for byte.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import psutil
import pytest

from jobs import generate
from jobs.cluster.actor_pool import MAX_FAILURES, MAX_RETRIES
from pipelines.dataset import claim, reader
from pipelines.dataset.journal import Journal
from pipelines.storage.folder import Folder
from tests.conftest import s3_environment
from tests.faults import KINDS, RATES, FaultyProxy
from tests.processes import Run, cluster_of, ray_here, until, workers

pytestmark = pytest.mark.slow

SHARDS, SHARD_SIZE = 20, 150
COUNT = SHARDS * SHARD_SIZE
BATCH = 1  # slow, so that there are moments to kill in: a shard takes 0.1 to 0.2 s
FLAGS = ("--count", COUNT, "--shard-size", SHARD_SIZE, "--batch-size", BATCH)


class Output:
    """Where a dataset is made, seen past ganmill's own storage: a local folder or a bucket on the server itself."""

    def __init__(self, url: str | Path, server: str | None = None) -> None:
        self.url = str(url)
        self._bucket = boto3.resource("s3", endpoint_url=server).Bucket(self.url.split("/")[2]) if server else None

    def names(self, kind: str) -> set[str]:
        """The files of a kind, `shards` or `manifest`, hidden ones too."""
        if self._bucket is not None:
            return {item.key.rpartition("/")[2] for item in self._bucket.objects.filter(Prefix=f"out/{kind}/")}
        with contextlib.suppress(FileNotFoundError):
            return {entry.name for entry in os.scandir(Path(self.url, kind))}
        return set()

    def parts(self) -> int:
        return sum(not name.startswith(".") for name in self.names("manifest"))

    def read(self, name: str) -> bytes:
        if self._bucket is not None:
            body: bytes = self._bucket.Object(f"out/{name}").get()["Body"].read()
            return body
        return Path(self.url, name).read_bytes()

    def leave(self, name: str, data: bytes) -> None:
        """Put an object there, as a crash would have left it."""
        assert self._bucket is not None
        self._bucket.put_object(Key=f"out/{name}", Body=data)

    def written(self) -> dict[str, object]:
        """Something of each tar and part that changes when it is written again."""
        if self._bucket is not None:
            items = [*self._bucket.objects.filter(Prefix="out/shards/"), *self._bucket.objects.filter(Prefix="out/man")]
            return {item.key.removeprefix("out/"): item.last_modified for item in items}
        files = [Path(self.url, kind, name) for kind in ("shards", "manifest") for name in self.names(kind)]
        return {str(file.relative_to(self.url)): file.stat().st_ino for file in files if file.name[0] != "."}

    def contents(self) -> dict[str, bytes]:
        """Every tar and every part, with what else lies beside them, and the root hash of the seal."""
        files = {f"{kind}/{name}" for kind in ("shards", "manifest") for name in self.names(kind)}
        root = json.loads(self.read("index.json"))["root"]
        return {**{name: self.read(name) for name in files}, "root": root.encode()}


Start = Callable[..., Run]


def make(model: Path, output: Path, count: int = COUNT) -> None:
    """Generate in this process."""
    settings = {"model": str(model), "output": str(output), "count": count, "shard_size": SHARD_SIZE}
    generate.main(generate.GenerateSettings(**settings, batch_size=BATCH, workers=2))


@pytest.fixture(scope="module")
def model(digits_run: Path) -> Path:
    return digits_run


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every run must make, byte for byte. Not to be changed."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    with ray_here():
        make(model, output)
    return output


@pytest.fixture(scope="module")
def expected(undisturbed: Path) -> dict[str, bytes]:
    return Output(undisturbed).contents()


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.long)])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Output:
    if request.param == "disk":
        return Output(tmp_path / "out")
    return Output(f"{request.getfixturevalue('s3')}/out", request.getfixturevalue("s3_server"))


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a run; all of them are ended with the test."""
    runs: list[Run] = []

    def call(output: Output, *flags: str | int, prefix: tuple[str, ...] = ()) -> Run:
        chosen = ("--model", model, "--output", output.url, *FLAGS, *flags)
        runs.append(Run("generate", tmp_path / f"log{len(runs)}", *chosen, prefix=prefix))
        return runs[-1]

    yield call
    for run in runs:
        run.end()


@pytest.fixture
def bucket(s3: str, s3_server: str, proxy: FaultyProxy) -> Output:
    return Output(f"{s3}/out", s3_server)


# --- Leftovers of a crash ---


def begun(undisturbed: Path, folder: Path, shards: range = range(SHARDS)) -> None:
    """A dataset that is claimed, has its model and some shards, and no seal."""
    shutil.copytree(undisturbed, folder)
    for name in ("index.json", "README.md", "croissant.json", "preview.png"):
        (folder / name).unlink()
    for shard in set(range(SHARDS)) - set(shards):
        (folder / f"shards/{shard:06d}.tar").unlink()
        (folder / f"manifest/{shard:06d}.parquet").unlink()


def the_claim_and_half_a_model(folder: Path) -> None:
    for name in ("shards", "manifest", "model"):
        shutil.rmtree(folder / name)
    (folder / "model").mkdir()
    (folder / "model" / ".generator.safetensors.0123456789ab.tmp").write_bytes(bytes(999))


def every_step_of_a_commit(folder: Path) -> None:
    """Six shards, each left at another step of its commit."""

    def half(shard: int, kind: str, name: str) -> bytes:
        file = folder / kind / name.format(f"{shard:06d}")
        content = file.read_bytes()
        file.unlink()
        return content[: len(content) // 2]

    tar, part = "{}.tar", "{}.parquet"
    half(2, "manifest", part)  # nothing of it
    half(2, "shards", tar)
    half(4, "manifest", part)  # half of a temporary tar
    (folder / "shards" / ".000004.tar.0123456789ab.tmp").write_bytes(half(4, "shards", tar))
    half(6, "manifest", part)  # a tar, and no part
    (folder / "manifest" / ".000008.parquet.0123456789ab.tmp").write_bytes(half(8, "manifest", part))
    half(10, "manifest", part)  # a tar of other bytes, as an extension leaves one
    (folder / "shards" / "000010.tar").write_bytes(b"another")
    half(19, "manifest", part)  # the last


def parts_without_a_seal(folder: Path) -> None:
    pass


def half_a_seal(folder: Path) -> None:
    (folder / "README.md").write_bytes(b"half of it")
    (folder / ".preview.png.0123456789ab.tmp").write_bytes(b"half of it")
    (folder / ".index.json.0123456789ab.tmp").write_bytes(b"half of it")


def a_journal_that_knows_more(folder: Path) -> None:
    """The journal has a shard whose part is gone, and one of another size."""
    records = [reader.read_part(Folder(str(folder)), shard)[1] for shard in range(5)]
    identity = reader.read_claim(Folder(str(folder))).identity
    journal = Journal(Folder(str(folder)), identity)
    for record in records:
        journal.add(record, has_rejects=False)
    journal.flush()
    (folder / "manifest" / "000003.parquet").unlink()
    written = folder / "journal" / "000000.json"
    entries = json.loads(written.read_bytes())["records"]
    entries[1] = {**entries[1], "part_bytes": 1, "sha256": "0" * 64}
    digest = hashlib.sha256(claim.canonical([identity.to_json(), entries])).hexdigest()
    written.write_bytes(claim.canonical({"records": entries, "sha256": digest}))


@pytest.fixture(scope="class")
def one_ray(undisturbed: Path) -> Iterator[None]:
    with ray_here():
        yield


@pytest.mark.usefixtures("one_ray")
class TestLeftovers:
    @pytest.mark.parametrize(
        "crash",
        [
            the_claim_and_half_a_model,
            every_step_of_a_commit,
            parts_without_a_seal,
            half_a_seal,
            a_journal_that_knows_more,
        ],
    )
    def test_a_start_makes_good_what_a_crash_left(
        self,
        crash: Callable[[Path], None],
        undisturbed: Path,
        expected: dict[str, bytes],
        model: Path,
        tmp_path: Path,
    ) -> None:
        folder = tmp_path / "out"
        begun(undisturbed, folder)
        crash(folder)
        kept = Output(folder).written()

        make(model, folder)

        assert Output(folder).contents() == expected
        assert [str(file) for file in folder.rglob("*") if file.name.startswith(".") or "journal" in file.name] == []
        assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in undisturbed.iterdir())
        if crash is every_step_of_a_commit:
            again = {name for name, file in Output(folder).written().items() if kept.get(name) != file}
            assert {name[-14:].strip("/").split(".")[0][-6:] for name in again} == {
                f"{shard:06d}" for shard in (2, 4, 6, 8, 10, 19)
            }

    def test_an_extension_that_crashed_at_any_step_is_made_good(
        self, undisturbed: Path, expected: dict[str, bytes], model: Path, tmp_path: Path
    ) -> None:
        shorter = tmp_path / "shorter"
        begun(undisturbed, shorter, range(SHARDS - 1))
        identity = json.loads((shorter / "dataset.json").read_bytes())["identity"]
        (shorter / "dataset.json").write_bytes(claim.encode({**identity, "count": COUNT - 75}, {}))
        make(model, shorter, COUNT - 75)
        assert Output(shorter).contents() != expected

        for steps in (1, 2, 3):
            folder = tmp_path / f"crashed{steps}"
            shutil.copytree(shorter, folder)
            if steps >= 1:
                (folder / "index.json").unlink()
            if steps >= 2:
                (folder / "manifest" / f"{SHARDS - 1:06d}.parquet").unlink()
            if steps >= 3:
                (folder / "dataset.json").write_bytes(claim.encode(identity, {}))
            make(model, folder)
            assert Output(folder).contents() == expected, steps


# --- Kills, on one cluster of two CPUs ---


@pytest.fixture(scope="class")
def one_cluster(undisturbed: Path, s3_server: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in s3_environment(s3_server).items():
            environment.setenv(name, value)  # workers have what their cluster was started with
        with cluster_of(2):
            yield


@pytest.mark.usefixtures("one_cluster")
class TestOneCluster:
    @pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 9))])
    def test_a_driver_killed_at_random_moments_and_started_again_leaves_the_same_bytes(
        self, seed: int, output: Output, start: Start, expected: dict[str, bytes]
    ) -> None:
        moments = random.Random(seed)
        for number in range(3 if seed else 2):
            run = start(output)
            if number < 2:  # in the middle of the work
                more = output.parts() + moments.randint(1, 7)
                until(lambda more=more: output.parts() >= more, f"{more} parts")
            else:  # anywhere: before the first shard, at the seal, after it
                moment = run.started + moments.uniform(0, 12)
                until(lambda at=moment: time.monotonic() > at, "the moment")
            run.kill()
        before = output.written()
        done = output.parts()
        run = start(output)
        run.wait()
        assert f"going on: {done} of {SHARDS} shards are done" in run.log() or done == SHARDS
        assert output.contents() == expected
        after = output.written()
        parts = {name for name in before if name.startswith("manifest/")}
        assert {name: after[name] for name in parts} == {name: before[name] for name in parts}  # never made again

    def test_actors_killed_in_the_middle_of_a_shard_leave_the_same_bytes(
        self, output: Output, start: Start, expected: dict[str, bytes]
    ) -> None:
        moments = random.Random(4)
        run = start(output)
        killed: set[int] = set()
        for at in (1, 5, 10, 15):
            until(lambda at=at: output.parts() >= at, f"{at} parts")
            busy = [actor for actor in workers(psutil.Process(), "MapWorker") if actor.pid not in killed]
            victim = moments.choice(busy)
            killed.add(victim.pid)
            victim.kill()
        run.wait()
        assert len(killed) == 4
        assert output.contents() == expected
        assert not any(name.startswith(".") for kind in ("shards", "manifest") for name in output.names(kind))

    def test_a_worker_that_dies_again_and_again_ends_the_job_with_one_line(
        self, output: Output, start: Start, expected: dict[str, bytes]
    ) -> None:
        run = start(output)
        until(lambda: output.parts() >= 2, "two parts")
        killed: set[int] = set()

        def ended() -> bool:
            for actor in workers(psutil.Process(), "MapWorker"):
                killed.add(actor.pid)
                with contextlib.suppress(psutil.Error):
                    actor.kill()
            return run.process.poll() is not None

        until(ended, "the job has ended")
        assert run.process.returncode == 1
        assert MAX_RETRIES < len(killed) <= 2 * (MAX_RETRIES + 1)
        undone = SHARDS - output.parts()
        assert f"shards of {output.url} are not done (0000" in run.error()
        assert f"a worker died more than {MAX_RETRIES} times: The actor died unexpectedly" in run.error()
        assert run.error().endswith("What is finished stays; the same command does the rest")
        assert "Traceback" not in run.log()
        assert undone > 0
        assert all(output.read(f"manifest/{name}") == expected[f"manifest/{name}"] for name in output.names("manifest"))


# --- A store that fails, with a Ray of the command's own: its workers have its environment ---


@pytest.mark.long  # test_line.py runs generate under the same faults, and drivers are killed above
@pytest.mark.parametrize("kills", [0, 1])
def test_a_failing_store_leaves_the_same_bytes_even_if_the_driver_is_killed_too(
    kills: int, proxy: FaultyProxy, bucket: Output, start: Start, expected: dict[str, bytes]
) -> None:
    proxy.kinds = RATES
    for _ in range(kills):
        run = start(bucket, "--workers", 2)
        until(lambda: bucket.parts() >= 7, "seven parts")
        run.end()
        done = bucket.parts()
        bucket.leave(f"shards/{SHARDS - 1:06d}.tar", b"another run's")  # its part is not there: it counts for nothing
    run = start(bucket, "--workers", 2)
    run.wait()
    assert {kind for kind in KINDS if proxy.counts[kind]} == set(KINDS), proxy.counts
    assert bucket.contents() == expected
    assert not kills or f"going on: {done} of {SHARDS}" in run.log()


@pytest.mark.long  # a full disk goes the same road; that the first answer is final: test_retries.py
def test_refused_credentials_half_way_end_the_job_and_the_next_start_does_only_the_rest(
    proxy: FaultyProxy, bucket: Output, start: Start, expected: dict[str, bytes]
) -> None:
    run = start(bucket, "--workers", 2)
    until(lambda: bucket.parts() >= 4, "four parts")
    proxy.refuse = True
    run.wait(status=1)
    assert proxy.counts["refused"] > 0
    done = bucket.parts()
    assert f"generate: error: {SHARDS - done} shards of {bucket.url} are not done (0000" in run.error()
    assert f"failed, the first with: StorageError: {bucket.url}/" in run.error()
    assert "permission denied; check the credentials in the environment" in run.error()
    assert run.log().count(" failed: StorageError: ") == MAX_FAILURES or done > SHARDS - MAX_FAILURES
    before = {name: when for name, when in bucket.written().items() if name.startswith("manifest/")}

    proxy.refuse = False
    proxy.passed.clear()
    run = start(bucket, "--workers", 2)
    run.wait()
    assert f"going on: {done} of {SHARDS} shards are done" in run.log()
    assert bucket.contents() == expected
    puts = {path.rpartition("/out/")[2] for method, path in proxy.passed if method == "PUT"}
    assert puts.isdisjoint(before)
    assert len([name for name in puts if name.startswith("manifest/")]) == SHARDS - done


# --- Nodes, clusters, whole machines, disks ---


def test_a_node_that_is_lost_leaves_the_same_bytes(output: Output, start: Start, expected: dict[str, bytes]) -> None:
    with cluster_of(1, 1) as cluster:
        run = start(output)
        until(lambda: output.parts() >= 5, "five parts")
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        run.wait()
        assert output.contents() == expected
        run.end()


def test_a_cluster_that_is_stopped_ends_the_job_with_one_line_and_a_new_one_goes_on(
    output: Output, start: Start, expected: dict[str, bytes]
) -> None:
    with cluster_of(2):
        run = start(output)
        until(lambda: output.parts() >= 5, "five parts")
    run.wait(status=1)
    until(lambda: "generate: error: " in run.log(), "the last words")
    # Ray's core ends the process, or an actor's end is told first.
    assert re.search(
        f"(?:{output.url}: ended before|of {output.url} are not).* done.*its Ray cluster is gone", run.error()
    )
    done = output.parts()
    with cluster_of(1):
        run = start(output)
        run.wait()
    assert f"going on: {done} of {SHARDS} shards are done" in run.log()
    assert output.contents() == expected


@pytest.mark.long  # for every start a Ray of its own; the test of a failing store is this one's short form
@pytest.mark.timeout(900)
@pytest.mark.parametrize("moments", [1, 6])
def test_a_machine_that_loses_power_at_random_moments_leaves_the_same_bytes(
    moments: int, output: Output, start: Start, expected: dict[str, bytes]
) -> None:
    """Driver, raylet, workers: all of Ray that the command had started itself goes at once."""
    when = random.Random(moments)
    for number in range(moments):
        run = start(output, "--workers", 2)
        if number % 2:
            at = run.started + when.uniform(0, 20)
            until(lambda at=at: time.monotonic() > at, "the moment")
        else:
            more = min(SHARDS - 1, output.parts() + when.randint(1, 4))
            until(lambda more=more: output.parts() >= more, f"{more} parts")
        run.end()
        assert output.parts() <= SHARDS
    run = start(output, "--workers", 2)
    run.wait()
    assert output.contents() == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[tuple[str, ...], Output]]:
    """A file system of 6 MB that only processes started with the prefix see; and as what we see it."""
    mount = tmp_path / "disk"
    mount.mkdir()
    script = 'mount -t tmpfs -o size=6m tmpfs "$1" && echo mounted && read -r over'
    command = ["unshare", "--map-root-user", "--mount", "/bin/sh", "-c", script, "sh", str(mount)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != "mounted\n":
            give_up = pytest.fail if os.environ.get("CI") else pytest.skip
            give_up("this machine allows no mount namespaces")
        prefix = ("nsenter", "--preserve-credentials", "--user", "--mount", f"--target={holder.pid}")
        yield (*prefix, "--"), Output(Path(f"/proc/{holder.pid}/root{mount}/out"))
        holder.communicate("over\n")


def test_a_full_disk_ends_the_job_and_the_next_start_does_only_the_rest(
    small_disk: tuple[tuple[str, ...], Output], tmp_path: Path, start: Start, expected: dict[str, bytes]
) -> None:
    prefix, seen = small_disk
    inside = Output(tmp_path / "disk" / "out")
    run = start(inside, "--workers", 2, prefix=prefix)
    run.wait(status=1)
    done = seen.parts()
    assert 0 < done < SHARDS
    assert f"generate: error: {SHARDS - done} shards of {inside.url} are not done (0000" in run.error()
    assert "No space left on device" in run.error()
    assert not any(name.startswith(".") for kind in ("shards", "manifest") for name in seen.names(kind))
    before = {name: file for name, file in seen.written().items() if name.startswith("manifest/")}
    run.end()

    subprocess.run([*prefix, "mount", "-o", "remount,size=60m", str(tmp_path / "disk")], check=True)
    run = start(inside, "--workers", 2, prefix=prefix)
    run.wait()
    assert f"going on: {done} of {SHARDS} shards are done" in run.log()
    assert seen.contents() == expected
    assert {name: file for name, file in seen.written().items() if name in before} == before
