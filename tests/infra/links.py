"""What must meet across the objects of an overlay: names, selectors, ports, accounts."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.infra.manifests import Object, cluster_of, pod_templates, title

NAMESPACE = "ganmill"
STORAGE_SECRET = "storage"  # made by the user: the keys of a store that knows no roles


@dataclass(frozen=True)
class Pod:
    """A pod as the network and selectors see it: with the labels that KubeRay adds."""

    owner: str
    role: str
    labels: dict[str, str]
    template: Object
    namespace: str = NAMESPACE

    def __str__(self) -> str:
        return f"{self.owner}, {self.role}"


def pods(items: list[Object]) -> list[Pod]:
    found = []
    for item in items:
        for name, template in pod_templates(item):
            labels = dict(template.get("metadata", {}).get("labels", {}))
            if name == "head" or name.startswith("group "):
                node = "head" if name == "head" else "worker"
                group = "headgroup" if name == "head" else name.removeprefix("group ")
                # The cluster of a RayJob has a name of the operator's making.
                labels |= {"ray.io/node-type": node, "ray.io/group": group, "ray.io/cluster": f"{title(item)}'s"}
            found.append(Pod(title(item), name, labels, template))
    return found


def selects(selector: Object | None, labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels. An empty one takes all, none takes nothing."""
    if selector is None:
        return False
    for expression in selector.get("matchExpressions", []):
        value, listed = labels.get(expression["key"]), expression.get("values", [])
        if not {
            "Exists": value is not None,
            "DoesNotExist": value is None,
            "In": value in listed,
            "NotIn": value not in listed,
        }.get(expression["operator"], False):
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def broken(items: list[Object]) -> Iterator[str]:
    """References that lead nowhere."""
    everyone = pods(items)
    have = {(item["kind"], item["metadata"].get("name")) for item in items}
    settings: dict[str, str] = {}
    for item in items:
        if item["kind"] not in ("Namespace",) and item["metadata"].get("namespace") != NAMESPACE:
            yield f"{title(item)}: not in namespace {NAMESPACE}"
        if (item["kind"], item["metadata"].get("name")) == ("ConfigMap", "ganmill"):
            settings = item.get("data", {})
    if ("Namespace", NAMESPACE) not in have:
        yield f"there is no namespace {NAMESPACE}"
    if "GANMILL_ROOT" not in settings:
        yield "ConfigMap ganmill has no GANMILL_ROOT: what a cluster makes would go with it"
    drain = int(settings.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0"))
    for pod in everyone:
        yield from (f"{pod}: {line}" for line in _of_pod(pod, have, drain))
    for item in items:
        yield from (f"{title(item)}: {line}" for line in _of_object(item, items, everyone))


def _of_pod(pod: Pod, have: set[tuple[Any, Any]], drain: int) -> Iterator[str]:
    spec = pod.template.get("spec", {})
    account, ray = spec.get("serviceAccountName"), "ray.io/node-type" in pod.labels
    if (ray or pod.role == "submitter") and ("ServiceAccount", account) not in have:
        yield f"no ServiceAccount {account}"
    if pod.role != "head" and spec.get("automountServiceAccountToken") is not False:
        yield "has a token of the API server, and needs none"
    if pod.role == "head" and spec.get("automountServiceAccountToken") is not True:
        yield "its autoscaler has no token of the API server"
    sources = [source for container in spec.get("containers", []) for source in container.get("envFrom", [])]
    for source in sources:
        name = source.get("configMapRef", {}).get("name")
        if name and ("ConfigMap", name) not in have:
            yield f"no ConfigMap {name}"
        if source.get("secretRef", {}).get("name", STORAGE_SECRET) != STORAGE_SECRET:
            yield f"no Secret {source['secretRef']['name']}"
    if not ray:
        return
    if not any("configMapRef" in source for source in sources):
        yield "does not read the ConfigMap"
    if not 0 < drain < spec.get("terminationGracePeriodSeconds", 30):
        yield f"is killed before its {drain} s of draining are over"
    ports = {port.get("name"): port.get("containerPort") for port in spec["containers"][0].get("ports", [])}
    wanted = {"metrics": 8080} | ({"dashboard": 8265, "gcs-server": 6379} if pod.role == "head" else {})
    if wanted.items() - ports.items():
        yield f"ports {wanted} are what others look for, not {ports}"


def _of_object(item: Object, items: list[Object], everyone: list[Pod]) -> Iterator[str]:
    if item["kind"] in _RULES:
        yield from _RULES[item["kind"]](item, items, everyone)
    if cluster_of(item):
        yield from _cluster(item, everyone)


def _policy(item: Object, items: list[Object], everyone: list[Pod]) -> Iterator[str]:
    spec = item["spec"]
    selectors = [spec.get("podSelector")]
    for rule in [*spec.get("ingress", []), *spec.get("egress", [])]:
        for peer in [*rule.get("from", []), *rule.get("to", [])]:
            selectors += [] if "namespaceSelector" in peer or "ipBlock" in peer else [peer.get("podSelector")]
    for selector in selectors:
        if not any(selects(selector, pod.labels) for pod in everyone):
            yield f"selects no pod: {selector}"
    ways = {"Ingress" if "ingress" in spec else "", "Egress" if "egress" in spec else ""} - {""}
    if ways - {*spec.get("policyTypes", [])}:
        yield "policyTypes do not name what it rules"


def _budget(item: Object, items: list[Object], everyone: list[Pod]) -> Iterator[str]:
    chosen = [pod for pod in everyone if selects(item["spec"].get("selector"), pod.labels)]
    if [pod.role for pod in chosen] != ["head"] or item["spec"].get("minAvailable") != 1:
        yield "must keep one pod, a head: an operator's pods are counted by an integer minAvailable alone"


def _monitor(item: Object, items: list[Object], everyone: list[Pod]) -> Iterator[str]:
    spec = item["spec"]
    chosen = [pod for pod in everyone if selects(spec.get("selector"), pod.labels)]
    if {id(pod) for pod in chosen} != {id(pod) for pod in everyone if "ray.io/node-type" in pod.labels}:
        yield "must select the Ray pods and no others"
    ports = _port_names(chosen)
    for endpoint in spec.get("podMetricsEndpoints", []):
        if endpoint.get("port") not in ports:
            yield f"no pod has a port {endpoint.get('port')}"
    for label in [spec.get("jobLabel"), *spec.get("podTargetLabels", [])]:
        if label not in {"ray.io/node-type", "ray.io/cluster", "ray.io/group"}:
            yield f"{label} is no label that KubeRay gives"


def _service(item: Object, items: list[Object], everyone: list[Pod]) -> Iterator[str]:
    spec = item["spec"]
    chosen = [pod for pod in everyone if selects({"matchLabels": spec.get("selector", {})}, pod.labels)]
    if not spec.get("selector") or len(chosen) != 1:
        yield "selects no pod, or several kinds of them"
    for port in spec.get("ports", []):
        if port.get("targetPort") not in _port_names(chosen):
            yield f"no port {port.get('targetPort')} behind it"


def _deployment(item: Object, items: list[Object], everyone: list[Pod]) -> Iterator[str]:
    [pod] = [pod for pod in everyone if pod.owner == title(item)]
    if not selects(item["spec"].get("selector"), pod.labels):
        yield "does not select its own pods"
    if not pod.template["spec"]["containers"][0].get("readinessProbe"):
        yield "has no readinessProbe"


def _job(item: Object, items: list[Object], everyone: list[Pod]) -> Iterator[str]:
    wanted = item["spec"].get("clusterSelector", {}).get("ray.io/cluster")
    if wanted and ("RayCluster", wanted) not in {(o["kind"], o["metadata"].get("name")) for o in items}:
        yield f"no RayCluster {wanted}"
    if item["metadata"].get("labels", {}).get("ganmill/job") != item["metadata"].get("name"):
        yield "needs its name as label ganmill/job: by it, it is applied alone"


def _account(item: Object, items: list[Object], everyone: list[Pod]) -> Iterator[str]:
    name = item["metadata"].get("name")
    if not any(pod.template["spec"].get("serviceAccountName") == name for pod in everyone):
        yield "nobody uses it"
    if item.get("automountServiceAccountToken") is not False:
        yield "gives a token of the API server to whoever does not ask for it"
    storage = item["metadata"].get("labels", {}).get("ganmill/storage")
    if storage != (None if name == "submitter" else str(name).rpartition("-")[0]):
        yield "its label ganmill/storage, by which overlays bind rights to it, is not its job's"


def _namespace(item: Object, items: list[Object], everyone: list[Pod]) -> Iterator[str]:
    labels = item["metadata"].get("labels", {})
    for level in ("enforce", "audit", "warn"):
        if labels.get(f"pod-security.kubernetes.io/{level}") != "restricted":
            yield f"pod security: {level} must be restricted"
    if not re.fullmatch(r"v1\.\d+", labels.get("pod-security.kubernetes.io/enforce-version", "")):
        yield "pod security: enforce-version must be one version"


def _cluster(item: Object, everyone: list[Pod]) -> Iterator[str]:
    nodes = [pod for pod in everyone if pod.owner == title(item) and pod.role != "submitter"]
    if len({pod.labels.get("ganmill/cluster") for pod in nodes}) != 1 or "ganmill/cluster" not in nodes[0].labels:
        yield "its pods need one label ganmill/cluster, by which they may talk to each other"
    groups = cluster_of(item).get("workerGroupSpecs", [])
    spot = [group.get("priority", 0) for group in groups if str(group.get("groupName")).endswith("-spot")]
    others = [group.get("priority", 0) for group in groups if not str(group.get("groupName")).endswith("-spot")]
    if not spot or (others and min(spot) <= max(others)):
        yield "spot groups must have the higher priority"


def _port_names(chosen: list[Pod]) -> set[str]:
    containers = [container for pod in chosen for container in pod.template["spec"]["containers"]]
    return {port["name"] for container in containers for port in container.get("ports", [])}


_RULES = {
    "NetworkPolicy": _policy,
    "PodDisruptionBudget": _budget,
    "PodMonitor": _monitor,
    "Service": _service,
    "Deployment": _deployment,
    "RayJob": _job,
    "ServiceAccount": _account,
    "Namespace": _namespace,
}
