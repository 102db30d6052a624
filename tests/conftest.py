"""What the tests share: the commands as processes, one Ray for the tests that call them directly, and an S3 server."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands have it; read when torch is imported

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import ray
from adlfs import AzureBlobFileSystem
from gcsfs.core import GCSFileSystem
from hypothesis import HealthCheck, Phase, settings
from s3fs import S3FileSystem
from xdist.scheduler import LoadScopeScheduling

from jobs import ingest, train
from tests import emulators, leftovers
from tests.faults import SEED, FaultyProxy

ROOT = Path(__file__).resolve().parent.parent
PLAIN_INFRA = ("helm", "image", "manifests", "mutations", "vms")
WITHOUT_RAY = (
    *(
        "dcgan/",
        "pipelines/",
        "jobs/test_mistakes.py",
        "jobs/command/",
        "jobs/training/",
        "pages/",
        "test_attacks.py",
        "test_damage.py",
        "test_imports.py",
    ),
    *(f"infra/test_{name}.py" for name in PLAIN_INFRA),
)
_BEFORE = pytest.StashKey[set[str]]()  # temporary folders
Job = Callable[..., subprocess.CompletedProcess[str]]

# Property tests. The suite's examples are the same each time; `pytest --hypothesis-profile=long` looks at others, and
# at more. No example outlives a run in a database: what fails is printed, and belongs into a test of its own.
settings.register_profile(
    "suite",
    max_examples=25,
    deadline=None,
    derandomize=True,
    print_blob=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("long", parent=settings.get_profile("suite"), max_examples=500, derandomize=False)
# For tests/pipelines/test_property_mutations.py: the suite's examples, and the first that fails is enough.
settings.register_profile("first", parent=settings.get_profile("suite"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """tests/infra last: it ends the session's Ray of 4 CPUs, and with the threads of another the bits are others."""
    items.sort(key=lambda item: item.nodeid.startswith("tests/infra/"))


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the process that starts the others
        config.stash[_BEFORE] = leftovers.begin()


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """The suite's last check, once all fixtures are torn down: whatever it started has ended."""
    yield
    if _BEFORE in session.config.stash and (left := leftovers.find(session.config.stash[_BEFORE])):
        print("\nThe suite left behind:", *left, sep="\n  ", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


class ByRay(LoadScopeScheduling):
    """Two groups of tests, each in a process: one Ray cluster at a time. (xdist's own groups need an older pytest.)"""

    def _split_scope(self, nodeid: str) -> str:
        return "plain" if nodeid.removeprefix("tests/").startswith(WITHOUT_RAY) else "ray"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByRay:
    return ByRay(config, log)


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What commands and Ray's workers find. Their temporary folder is the suite's: a command that is killed leaves its
    own folder there. Ray keeps /tmp, because the paths of its sockets must be short."""
    os.environ["RAY_TMPDIR"], os.environ["TMPDIR"] = "/tmp", str(tmp_path_factory.mktemp("tmp"))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_MODE"] = "disabled"  # the tests that want a token start their own cluster
    for name in [
        name for name in os.environ if name.startswith(("GANMILL_", "AWS_", "AZURE_")) or name == "RAY_ADDRESS"
    ]:
        del os.environ[name]


@pytest.fixture(scope="session")
def job() -> Job:
    """Run a command as a user does: `job("ingest", "--source", "digits")`. Never raises; look at returncode."""

    def call(name: str, *flags: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *map(str, flags)]
        return subprocess.run(
            command, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=280, check=False
        )

    return call


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that ended with status 2."""
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    return line


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests that call a command's main()."""
    ray.init(address="local", num_cpus=4, object_store_memory=256 << 20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def digits(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real dataset: 5,000 handwritten digits in 5 shards. Not to be changed; copy it for that."""
    output = tmp_path_factory.mktemp("digits") / "real"
    ingest.main(ingest.IngestSettings(source="digits", output=str(output)))
    return output


def digits_settings() -> dict[str, Any]:
    """digits28's, with networks that are sooner past noise: 40 steps are all that a test has."""
    return {
        **train.TrainSettings.preset({"recipe": "digits28"}),
        **{"network": "dcgan", "width": 16, "batch_size": 64, "label_smoothing": 0.1, "metric_images": 200},
        **{"generator_lr": 5e-4, "discriminator_lr": 5e-4, "ema": 0.998},
    }


@pytest.fixture(scope="session")
def digits_run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two DDP workers over 2,560 digits: a real model, if a poor one. Not to be changed."""
    run = tmp_path_factory.mktemp("run") / "run"
    given = {**digits_settings(), "data": str(digits), "run": str(run)}
    train.main(train.TrainSettings(**given, images=2560, tick=1280, workers=2))
    return run


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """moto on a free port; its URL."""
    with emulators.amazon() as url:
        yield url


def s3_environment(server: str) -> dict[str, str]:
    """The standard variables by which everything finds the server."""
    return {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A fresh bucket on the S3 server, as `s3://...`; the environment has its endpoint and credentials."""
    for name, value in s3_environment(s3_server).items():
        monkeypatch.setenv(name, value)
    bucket = _bucket(request)
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def gs_server() -> Iterator[str]:
    """fake-gcs-server on a free port; its URL."""
    with emulators.google() as url:
        yield url


@pytest.fixture
def gs(gs_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A fresh bucket on it, as `gs://...`."""
    for name, value in emulators.google_environment(gs_server).items():
        monkeypatch.setenv(name, value)
    emulators.make_google_bucket(gs_server, _bucket(request))
    return f"gs://{_bucket(request)}"


@pytest.fixture(scope="session")
def az_server() -> Iterator[str]:
    """Azurite on a free port; its URL."""
    with emulators.azure() as url:
        yield url


@pytest.fixture
def az(az_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A fresh container on it, as `az://...`."""
    for name, value in emulators.azure_environment(az_server).items():
        monkeypatch.setenv(name, value)
    with emulators.azure_client(az_server) as client:
        client.create_container(_bucket(request))
    return f"az://{_bucket(request)}"


def _bucket(request: pytest.FixtureRequest) -> str:
    return f"b{abs(hash(request.node.nodeid)) % 10**12}"


@pytest.fixture
def proxy(s3: str, s3_server: str, point_at: "PointAt") -> Iterator[FaultyProxy]:
    """A proxy without faults, for the time being; the environment has it as the endpoint."""
    with FaultyProxy(s3_server, seed=SEED, stall_s=0.5) as proxy:
        point_at("s3", proxy.url)
        yield proxy


PointAt = Callable[[str, str], None]


@pytest.fixture
def point_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[PointAt]:
    """Have the environment name another server for a scheme: `point_at("s3", url)`. Over when the test is."""
    environments = {"s3": s3_environment, "gs": emulators.google_environment, "az": emulators.azure_environment}

    def point(scheme: str, url: str) -> None:
        for name, value in environments[scheme](url).items():
            monkeypatch.setenv(name, value)
        _forget_connections()

    yield point
    _forget_connections()


def _forget_connections() -> None:
    for store in (S3FileSystem, GCSFileSystem, *GCSFileSystem.__subclasses__(), AzureBlobFileSystem):
        store.clear_instance_cache()
