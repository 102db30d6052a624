"""KubeRay's own kinds as strict JSON schemas: from the operator's CRDs (v1.7.0) to kuberay.json, which the tests read.

    python -m tests.infra.kuberay ../shared/schemas/kuberay      # writes it anew

kuberay.json holds names and types and no more: no text of the CRDs. Where the CRDs are at hand a test makes it again.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import yaml

KINDS = ("RayCluster", "RayJob")
FILE = Path(__file__).parent / "kuberay.json"
META = {  # bare in a CRD: the API server checks it by itself
    "type": "object",
    "properties": {
        **{name: {"type": "string"} for name in ("name", "generateName", "namespace")},
        **{name: {"type": "object", "additionalProperties": {"type": "string"}} for name in ("labels", "annotations")},
    },
    "additionalProperties": False,
}
_DROPPED = ("description", "default", "format", "nullable", "x-kubernetes-int-or-string")
_SHARED_LENGTH = 200  # a part of a schema that is longer, and comes more than once, is written once


def convert(crds: Path) -> dict[str, Any]:
    """A schema a kind, in one document with shared `$defs`."""
    kinds = {}
    for kind in KINDS:
        text = (crds / f"ray.io_{kind.lower()}s.yaml").read_text()
        versions = yaml.load(text, yaml.CSafeLoader)["spec"]["versions"]  # safe, and ten times as fast as SafeLoader
        [schema] = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"]
        found = strict(schema)
        found["properties"] |= {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": META}
        found["required"] = ["apiVersion", "kind", "metadata", "spec"]
        del found["properties"]["status"]  # the operator's to write
        kinds[kind] = found
    return share(kinds)


def strict(node: Any) -> Any:
    """An OpenAPI schema as the API server applies it, and with fields that it does not know refused."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if key not in _DROPPED and not key.startswith("x-kubernetes")}
    if node.get("x-kubernetes-int-or-string"):
        kept.pop("type", None)
    found = {key: strict(value) for key, value in kept.items() if key != "properties"}
    if "properties" in node:
        found["properties"] = {name: strict(value) for name, value in node["properties"].items()}
        found.setdefault("additionalProperties", False)
        given = {name for name, value in node["properties"].items() if "default" in value}  # the server fills them in
        found["required"] = [name for name in node.get("required", []) if name not in given]
    if node.get("nullable"):
        return {"anyOf": [found, {"type": "null"}]}
    return found


def share(kinds: dict[str, Any]) -> dict[str, Any]:
    """Write each large part once, under `$defs`: pod templates are most of a CRD, several times over."""
    seen: dict[str, int] = {}

    def count(node: Any) -> None:
        if isinstance(node, dict) and len(text := json.dumps(node, sort_keys=True)) > _SHARED_LENGTH:
            seen[_name(text)] = seen.get(_name(text), 0) + 1
            if seen[_name(text)] > 1:
                return
        for value in _values(node):
            count(value)

    definitions: dict[str, Any] = {}

    def link(node: Any) -> Any:
        if isinstance(node, list):
            return [link(value) for value in node]
        if not isinstance(node, dict):
            return node
        linked = {key: link(value) for key, value in node.items()}
        name = _name(json.dumps(node, sort_keys=True))
        if "type" in node and seen.get(name, 0) > 1:
            definitions[name] = linked
            return {"$ref": f"#/$defs/{name}"}
        return linked

    count(kinds)
    return {"kinds": {kind: link(schema) for kind, schema in kinds.items()}, "$defs": dict(sorted(definitions.items()))}


def _values(node: Any) -> list[Any]:
    return list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []


def _name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def encode(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"), sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(encode(convert(Path(sys.argv[1]))))
