"""The Dockerfile, as far as it can be held without a Docker engine: a linter, what it copies, what it pins."""

import re
import subprocess

import ray

from tests.conftest import ROOT
from tests.infra.manifests import tool

DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text()


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", TEXT.replace("\\\n", " "), re.MULTILINE)


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [tool("hadolint"), "--failure-threshold", "style", DOCKERFILE], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_its_base_is_rays_of_our_version_and_python() -> None:
    [base] = instructions("ARG")
    assert base == f"BASE=docker.io/rayproject/ray:{ray.__version__}-py311-gpu"
    assert instructions("FROM") == ["${BASE}"]


def test_its_packages_are_those_that_are_tested() -> None:
    """The image's lock has no other version of anything that is in the tests' environment."""
    pins = [
        dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))
        for name in ("infra/docker/requirements.lock", "requirements.lock")
    ]
    assert {name: version for name, version in pins[1].items() if pins[0].get(name) != version} == {}
    assert {"gcsfs", "adlfs", "s3fs"} <= {*pins[0]}
    [install, link] = instructions("RUN")
    assert "--require-hashes" in install
    assert "--no-deps" in link


def test_it_runs_as_nobodys_root_and_holds_no_secret() -> None:
    users = instructions("USER")
    assert users == ["1000:100"]
    environment = dict(re.findall(r"(\w+)=(\S+)", " ".join(instructions("ENV"))))
    assert environment.pop("WDS_SECURE") == "1"
    assert not [name for name in environment if re.search("SECRET|TOKEN|PASSWORD|KEY", name)]


def test_what_it_copies_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"  # all but what is named
    named = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {word for line in instructions("COPY") for word in line.split()[1:-1]}
    assert copied == named
    assert all((ROOT / name).exists() for name in copied)
    assert {"pipelines", "dcgan", "jobs"} <= copied
