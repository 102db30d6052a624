"""The `ray up` files: Ray's own schema made strict, EC2's own model of a machine, and one Ray version."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import boto3
import pytest
import ray
import yaml
from botocore.validate import ParamValidator

from tests.conftest import ROOT
from tests.infra.kuberay import strict
from tests.infra.manifests import library
from tests.infra.rules import ray_start_flags
from tests.infra.test_mutations import mutated, places

FILES = sorted((ROOT / "infra" / "vms").glob("*.yaml"))
# A machine of Compute Engine, as far as we describe one: its API's model is in no package that we have.
GCP_MACHINE = {
    "machineType",
    "disks.boot",
    "disks.autoDelete",
    "disks.type",
    "disks.initializeParams.diskSizeGb",
    "disks.initializeParams.sourceImage",
    "serviceAccounts.email",
    "serviceAccounts.scopes",
    "scheduling.provisioningModel",
    "scheduling.instanceTerminationAction",
    "scheduling.onHostMaintenance",
}
RESOURCES, VARIABLES = {"CPU", "GPU"}, r"GANMILL_ROOT|AWS_REGION|RAY_AUTH_MODE|RAY_enable_autoscaler_v2"


@functools.cache
def validator() -> Any:
    """Ray's schema with unknown names refused, at every depth."""
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    schema = strict(schema)
    schema["properties"]["provider"]["additionalProperties"] = False  # each kind of provider has these names
    del schema["properties"]["available_node_types"]["additionalProperties"]  # its names are ours
    node = schema["properties"]["available_node_types"]["patternProperties"][".*"]
    del node["properties"]["node_config"]  # the cloud's own: below
    node["properties"]["node_config"] = {"type": "object"}
    return library("jsonschema_rs").Draft7Validator(schema)


def problems(config: dict[str, Any]) -> list[str]:
    found = [error.message for error in validator().iter_errors(config)]
    if found:
        return found
    types = config["available_node_types"]
    if config.get("head_node_type") not in types or types[config["head_node_type"]]["resources"] != {"CPU": 0}:
        found.append("the head must be a node type, and have no CPU for work")
    for name, node in types.items():
        found += [f"{name}: {resource}" for resource in {*node["resources"]} - RESOURCES]
        if config["provider"]["type"] == "aws":
            found += _not_of_ec2(node["node_config"])
        else:
            found += sorted({_flat(place) for place in places(node["node_config"])} - GCP_MACHINE - _parents())
    for mount, source in config.get("file_mounts", {}).items():
        if (mount, source) != ("/home/ray/.ray/auth_token", "~/.ray/auth_token"):
            found.append(f"file_mounts: {mount}: {source}: not the token")
    if len(config.get("file_mounts", {})) != 1:
        found.append("the token is not mounted")
    return found


def _not_of_ec2(machine: dict[str, Any]) -> list[str]:
    """What EC2's RunInstances would not know."""
    report = ParamValidator().validate({**machine, "MinCount": 1, "MaxCount": 1}, _run_instances())
    return [report.generate_report()] if report.has_errors() else []


@functools.cache
def _run_instances() -> Any:
    model = boto3.client("ec2", region_name="us-east-1").meta.service_model
    return model.operation_model("RunInstances").input_shape


def _flat(place: tuple[Any, ...]) -> str:
    return ".".join(step for step in place if isinstance(step, str))


def _parents() -> set[str]:
    return {".".join(name.split(".")[:n]) for name in GCP_MACHINE for n in range(1, 3)}


def read(file: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    return config


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_has_nothing_wrong(file: Path) -> None:
    config = read(file)
    assert problems(config) == []
    image = config["docker"]["image"]
    assert image.endswith(f":0.1.0-ray{ray.__version__}")
    variables = dict(option.removeprefix("--env=").split("=", 1) for option in config["docker"]["run_options"])
    assert all(re.fullmatch(VARIABLES, name) for name in variables)
    assert variables["RAY_AUTH_MODE"] == "token"
    spot, demand = (config["available_node_types"][name] for name in ("gpu-spot", "gpu-on-demand"))
    assert spot["priority"] > demand["priority"]
    assert "spot" in str(spot["node_config"]).lower()
    assert "spot" not in str(demand["node_config"]).lower()
    [start] = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--num-cpus=0" in start


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_flags_of_ray_start_are_flags(file: Path) -> None:
    config = read(file)
    for line in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        if "ray start" in line:
            assert {*re.findall(r"--[a-z][a-z-]+", line)} <= ray_start_flags()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_misspelt_key_is_refused_wherever_it_is(file: Path) -> None:
    config = read(file)
    names = {*config["available_node_types"]} - {config["head_node_type"]}  # free: a group may be called anything
    keys = [place for place in places(config) if not (len(place) == 2 and place[-1] in names)]
    passed = [place for place in keys if not problems(mutated(config, place))]
    assert len(keys) > 60
    assert passed == []
