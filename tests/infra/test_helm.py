"""The chart for one more job: rendered by the real helm, held to the same rules, its own values checked by helm."""

import json
import subprocess
from typing import Any

import pytest
import yaml

from jobs.command import settings
from tests.conftest import ROOT
from tests.infra import links, network, rules
from tests.infra.manifests import Object, Schemas, load, overlay, tool
from tests.infra.test_manifests import SETTINGS
from tests.infra.test_mutations import misspelt

HELM = ROOT / "infra" / "helm"
CHART = HELM / "ganmill-job"
# What KubeRay's chart v1.7.0 has at the top of its values, as far as we set it.
OPERATOR_VALUES = {"singleNamespaceInstall", "watchNamespace", "resources"}


def helm(*words: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    given = json.dumps(values) if values is not None else ""
    command = [tool("helm"), *words, *(["--values", "-"] if given else [])]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


def template(values: dict[str, Any]) -> list[Object]:
    done = helm("template", "faces-2", str(CHART), "--namespace", "ganmill", values=values)
    assert done.returncode == 0, done.stderr
    return load(done.stdout)


def test_the_chart_lints() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("command", "flags"),
    [("verify", ["--regenerate", "64"]), ("generate", ["--count", "1e6", "--output", "s3://b/faces-2"])],
)
def test_a_job_on_the_long_lived_cluster_has_nothing_wrong(command: str, flags: list[str]) -> None:
    [job] = template({"command": command, "flags": flags})
    schemas = Schemas()
    assert [*schemas.errors(job), *rules.all_of(job)] == []
    assert list(links.broken([*overlay("eks"), job])) == []
    script, *words = job["spec"]["entrypoint"].split()
    assert script == f"/home/ray/ganmill/jobs/{command}.py"
    assert settings.load(SETTINGS[f"{command}.py"], words)
    # The policies of the overlay are its own too.
    items = [*overlay("eks"), job]
    [submitter] = [pod for pod in links.pods(items) if pod.owner == "RayJob faces-2"]
    [head] = [pod for pod in links.pods(items) if str(pod) == "RayCluster ganmill, head"]
    assert network.allowed(items, submitter, head, 8265)


@pytest.mark.parametrize("key", list(yaml.safe_load((CHART / "values.yaml").read_text())))
def test_helm_refuses_a_misspelt_value(key: str) -> None:
    assert helm("template", "x", str(CHART), values={misspelt(key): "x"}).returncode != 0


@pytest.mark.parametrize(
    "values",
    [
        {"command": "curate"},
        {"image": "ganmill:latest"},
        {"image": "ganmill"},
        {"flags": ["--output", "x; curl evil"]},
        {"flags": ["$(id)"]},
        {"activeDeadlineSeconds": 0},
    ],
)
def test_helm_refuses_a_value_that_is_not_allowed(values: dict[str, Any]) -> None:
    assert "don't meet the specifications" in helm("template", "x", str(CHART), values=values).stderr


def test_the_operators_values_are_names_of_its_chart() -> None:
    values = yaml.safe_load((HELM / "kuberay-operator-values.yaml").read_text())
    assert {*values} == OPERATOR_VALUES
    assert values["watchNamespace"] == [links.NAMESPACE]
