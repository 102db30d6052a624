"""Manifests as the tests see them: rendered by the real kubectl and helm, and held against strict schemas."""

import copy
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.infra import kuberay

TOOLS = ROOT / ".venv" / "infra"
K8S = ROOT / "infra" / "k8s"
OVERLAYS = ("eks", "gke", "aks", "kind")
KUBERNETES = "v1.35.0"  # of the schemas; the oldest that we ask for is newer than any field that we use
Object = dict[str, Any]

# The Prometheus operator's two kinds, as far as we use them: a field that is not here is refused.
_ENDPOINT = ("port", "interval", "path", "scheme", "relabelings", "metricRelabelings", "honorLabels", "scrapeTimeout")
_RULE = ("alert", "expr", "for", "labels", "annotations")
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def _record(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _each(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


_TEXT = {"type": "string"}
_SELECTOR = _record(
    (),
    matchLabels=_TEXTS,
    matchExpressions=_each(_record(("key", "operator"), key=_TEXT, operator=_TEXT, values=_each(_TEXT))),
)
_MONITORING = {
    "PodMonitor": _record(
        ("selector", "podMetricsEndpoints"),
        jobLabel=_TEXT,
        podTargetLabels=_each(_TEXT),
        selector=_SELECTOR,
        podMetricsEndpoints=_each(_record(("port", "interval"), **dict.fromkeys(_ENDPOINT, _TEXT))),
    ),
    "PrometheusRule": _record(
        ("groups",),
        groups=_each(
            _record(
                ("name", "rules"),
                name=_TEXT,
                rules=_each(_record(_RULE, **{**dict.fromkeys(_RULE, _TEXT), "labels": _TEXTS, "annotations": _TEXTS})),
            )
        ),
    ),
}


def tool(name: str) -> str:
    """A command's path. On CI a missing one is a failure, never a skip."""
    found = shutil.which(name, path=f"{TOOLS / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        _missing(name)
    return str(found)


def tool_of_ours(name: str) -> str:
    """A command of the environment that the tests run in."""
    return str(Path(sys.executable).parent / name)


def library(name: str) -> Any:
    """A module from .venv/infra, which is on nobody's path but the tests'."""
    if not (TOOLS / name).exists():
        _missing(name)
    if str(TOOLS) not in sys.path:
        sys.path.append(str(TOOLS))
    return __import__(name)


def _missing(name: str) -> None:
    words = f"{name} is not installed: make infra-tools"
    if os.environ.get("CI"):
        pytest.fail(words)
    pytest.skip(words)


def render(folder: Path) -> list[Object]:
    """What `kubectl apply -k folder` would send. Raises CalledProcessError with kustomize's words."""
    done = subprocess.run([tool("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, check=True)
    return load(done.stdout)


def load(text: str) -> list[Object]:
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


@functools.cache
def _overlay(name: str) -> tuple[Object, ...]:
    return tuple(render(K8S / "overlays" / name))


def overlay(name: str) -> list[Object]:
    """An overlay's objects, to be changed at will."""
    return copy.deepcopy(list(_overlay(name)))


def title(item: Object) -> str:
    return f"{item.get('kind')} {item.get('metadata', {}).get('name')}"


def pod_templates(item: Object) -> Iterator[tuple[str, Object]]:
    """Every pod template of an object, with a name for it."""
    spec, kind = item.get("spec", {}), item.get("kind")
    if kind in ("Deployment", "Job"):
        yield "pod", spec.get("template", {})
    if kind in ("RayCluster", "RayJob"):
        if "submitterPodTemplate" in spec:
            yield "submitter", spec["submitterPodTemplate"]
        cluster = cluster_of(item)
        if cluster:
            yield "head", cluster.get("headGroupSpec", {}).get("template", {})
            for group in cluster.get("workerGroupSpecs", []):
                yield f"group {group.get('groupName')}", group.get("template", {})


def cluster_of(item: Object) -> Object:
    """The Ray cluster that an object describes, {} if it describes none."""
    if item.get("kind") == "RayCluster":
        found: Object = item.get("spec", {})
        return found
    return item.get("spec", {}).get("rayClusterSpec", {}) if item.get("kind") == "RayJob" else {}


class Schemas:
    """Strict validators, one a kind, each built when it is first wanted."""

    def __init__(self) -> None:
        self._library = library("jsonschema_rs")
        # Its code wants other packages; its data are all that we need.
        self._folder = TOOLS / "kubernetes_validate" / "kubernetes-json-schema" / f"{KUBERNETES}-local-strict"
        if not self._folder.exists():
            _missing("kubernetes-validate")
        self._kubernetes = self._read("_definitions.json")["$defs"]
        self._kuberay = json.loads(kuberay.FILE.read_text())
        self._ready: dict[str, Any] = {}

    def errors(self, item: Object) -> Iterator[str]:
        """What an object's schema, and those of its pod templates, have against it."""
        kind, version = str(item.get("kind")), str(item.get("apiVersion"))
        validator = self._validator(f"{version} {kind}")
        if validator is None:
            yield f"{title(item)}: no kind of that name is known in {version}"
            return
        yield from self._told(validator, item, title(item))
        for name, template in pod_templates(item):
            yield from self._told(self._validator("v1 PodTemplateSpec"), template, f"{title(item)}, {name}")

    def _told(self, validator: Any, item: Any, where: str) -> Iterator[str]:
        for error in validator.iter_errors(item):
            yield f"{where}: {'.'.join(map(str, error.instance_path))}: {error.message[:200]}"

    def _validator(self, name: str) -> Any:
        if name not in self._ready:
            schema = self._schema(*name.split(" ", 1))
            self._ready[name] = None if schema is None else self._library.Draft202012Validator(schema)
        return self._ready[name]

    def _schema(self, version: str, kind: str) -> dict[str, Any] | None:
        if version == "ray.io/v1" and kind in self._kuberay["kinds"]:
            return {**self._kuberay["kinds"][kind], "$defs": self._kuberay["$defs"]}
        if version == "monitoring.coreos.com/v1" and kind in _MONITORING:
            properties = {"apiVersion": {"const": version}, "kind": {"const": kind}, "metadata": kuberay.META}
            return _record(("apiVersion", "kind", "metadata", "spec"), **properties, spec=_MONITORING[kind])
        group, _, number = version.rpartition("/")
        name = "-".join(part for part in (kind.lower(), group.split(".")[0], number) if part)
        if not (self._folder / f"{name}.json").exists():
            return None
        schema = self._read(f"{name}.json")
        del schema["$id"]
        if kind != "PodTemplateSpec":  # the body may leave out what the URL says; nobody applies a file that does
            schema["required"] = ["apiVersion", "kind", "metadata"]
        return {**schema, "$defs": self._kubernetes}

    def _read(self, name: str) -> dict[str, Any]:
        text = (self._folder / name).read_text().replace("/api/_definitions.json#", "#")
        found: dict[str, Any] = json.loads(text)
        return found
