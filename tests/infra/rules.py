"""What no schema knows of one object: KubeRay's own rules (its validation.go, v1.7.0), pod security, and ours.

Each rule yields lines that say what is wrong; none is no line.
"""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml

from tests.infra.manifests import Object, cluster_of, pod_templates, title, tool_of_ours

RAY_FROM = (2, 52)  # token authentication
NAME_LENGTHS = {"RayJob": 47, "RayCluster": 53}  # KubeRay makes longer names of them
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")  # any text, says the CRD
RESOURCES = {"cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"}
GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")  # off in KubeRay unless its feature gates are opened
EFFECTS, OPERATORS = ("NoSchedule", "PreferNoSchedule", "NoExecute"), ("Exists", "Equal")
LABELS = re.compile(
    r"app\.kubernetes\.io/(name|part-of)|ganmill/(job|cluster|role|storage)|ray\.io/(cluster|node-type|group)|"
    r"pod-security\.kubernetes\.io/(enforce|enforce-version|audit|warn)|kubernetes\.io/metadata\.name|"
    r"azure\.workload\.identity/use|grafana_dashboard|severity"
)
ANNOTATIONS = re.compile(
    r"karpenter\.sh/do-not-disrupt|eks\.amazonaws\.com/role-arn|iam\.gke\.io/gcp-service-account|"
    r"azure\.workload\.identity/client-id|summary|description"
)
NODE_LABELS = re.compile(
    r"karpenter\.sh/capacity-type|cloud\.google\.com/gke-spot|kubernetes\.azure\.com/scalesetpriority|nvidia\.com/gpu"
)
ENVIRONMENT = re.compile(
    r"GANMILL_ROOT|AWS_(ENDPOINT_URL|REGION)|AZURE_STORAGE_(ACCOUNT_NAME|ANON)|RAY_USAGE_STATS_ENABLED|"
    r"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S|RAY_AUTH_(MODE|TOKEN)"
)


def all_of(item: Object) -> Iterator[str]:
    for rule in (ours, names, operator, job, pods):
        for line in rule(item):
            yield f"{title(item)}: {line}"


def ours(item: Object) -> Iterator[str]:
    """What may not be here at all, and names that are free text to every schema."""
    kind, spec = item.get("kind"), item.get("spec", {})
    if kind == "Secret":
        yield "a Secret's values do not belong in a repository"
    if kind == "Ingress" or (kind == "Service" and spec.get("type", "ClusterIP") != "ClusterIP"):
        yield "nothing here is reachable from outside the cluster"
    for where, key, known in _free_names(item):
        if not known.fullmatch(key):
            yield f"{where}: {key} is not a name that anything reads"


def _free_names(item: Any) -> Iterator[tuple[str, str, re.Pattern[str]]]:
    """Keys of maps that a schema leaves open, each with the pattern of those that mean something."""
    if item.get("kind") == "ConfigMap" and "grafana_dashboard" not in item["metadata"].get("labels", {}):
        yield from (("data", key, ENVIRONMENT) for key in item.get("data", {}))
    maps = {"labels": LABELS, "matchLabels": LABELS, "annotations": ANNOTATIONS, "nodeSelector": NODE_LABELS}

    def walk(node: Any) -> Iterator[tuple[str, str, re.Pattern[str]]]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key in maps and isinstance(value, dict):
                    yield from ((key, name, maps[key]) for name in value)
                else:
                    yield from walk(value)
            if {"key", "operator"} == {*node} - {"values"}:
                yield "matchExpressions", str(node["key"]), LABELS
        elif isinstance(node, list):
            for value in node:
                yield from walk(value)

    yield from walk({name: value for name, value in item.items() if name != "data"})


def names(item: Object) -> Iterator[str]:
    kind, metadata = str(item.get("kind")), item.get("metadata", {})
    name = metadata.get("name", metadata.get("generateName", "").rstrip("-"))
    limit = NAME_LENGTHS.get(kind, 63)
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > limit:
        yield f"name {name!r}: lower-case letters, digits and dashes, a letter first, at most {limit}"


def operator(item: Object) -> Iterator[str]:
    """A Ray cluster's description, in a RayCluster or a RayJob."""
    cluster = cluster_of(item)
    if not cluster:
        return
    head, groups = cluster.get("headGroupSpec", {}), cluster.get("workerGroupSpecs", [])
    scaled, options = cluster.get("enableInTreeAutoscaling", False), cluster.get("autoscalerOptions", {})
    for field in GATED:
        if field in cluster:
            yield f"{field} needs a feature gate that our operator values do not open"
    version = tuple(int(part) for part in re.findall(r"\d+", str(cluster.get("rayVersion", "0")))[:2])
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode must be token: the Jobs API runs whatever it is sent"
    elif version < RAY_FROM:
        yield f"authOptions need rayVersion 2.52 or later, not {cluster.get('rayVersion')}"
    if cluster.get("authOptions", {}).get("enableK8sTokenAuth") and (version < (2, 55) or item["kind"] == "RayJob"):
        yield "enableK8sTokenAuth: rayVersion 2.55 or later, and a RayCluster of its own"
    yield from _head(head)
    yield from _groups(head, groups, scaled and options.get("version") == "v2")
    if scaled and options.get("version") != "v2":
        yield "autoscalerOptions.version must be v2: priorities are its"
    for group in groups:
        yield from (f"{group.get('groupName')}: {line}" for line in _replicas(group, scaled))


def _head(head: Object) -> Iterator[str]:
    if head.get("rayStartParams", {}).get("num-cpus") != "0":
        yield "head: num-cpus must be 0, so that no work goes with it"
    if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
        yield "head: reachable from outside the cluster"
    variables = {variable["name"] for variable in _containers(head.get("template", {}))[0].get("env", [])}
    if "RAY_enable_autoscaler_v2" in variables:
        yield "RAY_enable_autoscaler_v2: autoscalerOptions.version says it"
    if {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"} & variables:
        yield "Redis is named in gcsFaultToleranceOptions, not in the environment"


def _groups(head: Object, groups: list[Object], v2: bool) -> Iterator[str]:
    seen: set[str] = set()
    for name, group in [("head", head), *((str(group.get("groupName")), group) for group in groups)]:
        yield from (f"{name}: {line}" for line in _group(group))
        if name in seen or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
            yield f"group name {name!r} comes twice or is not a name"
        seen.add(name)
        restart = group.get("template", {}).get("spec", {}).get("restartPolicy", "Never")
        if v2 and restart != "Never":
            yield f"{name}: restartPolicy {restart}; autoscaler v2 wants Never"


def _replicas(group: Object, scaled: bool) -> Iterator[str]:
    low, high = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
    if not 0 <= low <= group.get("replicas", low) <= high or high < 1:
        yield f"replicas must be between {low} and {high}"
    if scaled and group.get("suspend"):
        yield "cannot be suspended while the autoscaler runs"
    if not scaled and not {"minReplicas", "maxReplicas"} <= {*group}:
        yield "without autoscaling both minReplicas and maxReplicas"


def _group(group: Object) -> Iterator[str]:
    parameters = group.get("rayStartParams", {})
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & {*parameters}:
        yield "resources in the group or in rayStartParams, not in both"
    for name in parameters:
        if name == "labels" or name.startswith("redis-") or f"--{name}" not in ray_start_flags():
            yield f"rayStartParams: {name} is not for here, or `ray start` does not know it"


@cache
def ray_start_flags() -> frozenset[str]:
    done = subprocess.run([tool_of_ours("ray"), "start", "--help"], capture_output=True, text=True, check=True)
    return frozenset(re.findall(r"--[a-z][a-z-]+", done.stdout))


def job(item: Object) -> Iterator[str]:
    """A RayJob's own fields."""
    if item.get("kind") != "RayJob":
        return
    spec = item.get("spec", {})
    selected, mode = spec.get("clusterSelector"), spec.get("submissionMode")
    deletion = spec.get("deletionStrategy", {})
    if mode not in SUBMISSION_MODES:
        yield f"submissionMode {mode!r} is not one of {', '.join(SUBMISSION_MODES)}"
    if mode == "SidecarMode" and ("submitterPodTemplate" in spec or "submitterConfig" in spec or selected):
        yield "SidecarMode takes neither submitterPodTemplate nor submitterConfig nor clusterSelector"
    if bool(selected) == ("rayClusterSpec" in spec):
        yield "either rayClusterSpec or clusterSelector"
    if selected and {*selected} != {"ray.io/cluster"}:
        yield "clusterSelector knows ray.io/cluster alone"
    if selected and (spec.get("suspend") or spec.get("backoffLimit") or spec.get("shutdownAfterJobFinishes")):
        yield "with clusterSelector there is no cluster to suspend, to try again on or to shut down"
    if mode == "InteractiveMode" and spec.get("backoffLimit"):
        yield "backoffLimit does not go with InteractiveMode"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "suspend needs shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if deletion and spec.get("shutdownAfterJobFinishes"):
        yield "deletionStrategy or shutdownAfterJobFinishes, not both"
    policies = [rule.get("policy") for rule in deletion.get("deletionRules", [])]
    policies += [deletion.get(when, {}).get("policy") for when in ("onSuccess", "onFailure")]
    if "DeleteWorkers" in policies and cluster_of(item).get("enableInTreeAutoscaling"):
        yield "DeleteWorkers does not go with autoscaling"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(field, 1) <= 0:
            yield f"{field} must be above 0"
    if "activeDeadlineSeconds" not in spec:
        yield "activeDeadlineSeconds is missing: nothing bounds what a job that hangs costs"
    if not selected and not spec.get("shutdownAfterJobFinishes") and not deletion:
        yield "its cluster would stay, and cost, when it is done"
    try:
        runtime = yaml.safe_load(spec.get("runtimeEnvYAML", "{}"))
    except yaml.YAMLError:
        runtime = None
    if not isinstance(runtime, dict):
        yield "runtimeEnvYAML is not a YAML mapping"


def pods(item: Object) -> Iterator[str]:
    """Every pod template: the Pod Security Standard `restricted`, and references inside it that must meet."""
    for name, template in pod_templates(item):
        yield from (f"{name}: {line}" for line in _pod(template))
    options = cluster_of(item).get("autoscalerOptions")
    if options is not None:  # its container is made by KubeRay, in the head's pod
        yield from (f"autoscaler: {line}" for line in _security(options, {}))
        yield from (f"autoscaler: {line}" for line in _resources(options.get("resources", {})))
    made_by_kuberay = item.get("kind") == "RayJob" and "submitterPodTemplate" not in item.get("spec", {})
    if made_by_kuberay and item["spec"].get("submissionMode") == "K8sJobMode":
        yield "submitter: KubeRay's own pod template is refused by the namespace"


def _pod(template: Object) -> Iterator[str]:
    spec = template.get("spec", {})
    user = spec.get("securityContext", {})
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"{field} is not allowed"
    if user.get("runAsNonRoot") is not True or user.get("runAsUser", 0) == 0:
        yield "must run as a user that is not root: runAsNonRoot and runAsUser"
    if user.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "needs seccompProfile RuntimeDefault"
    volumes = spec.get("volumes", [])
    for volume in volumes:
        if not {*volume} <= {"name", "emptyDir", "configMap", "secret", "projected", "persistentVolumeClaim", "csi"}:
            yield f"volume {volume.get('name')}: not of a kind that is allowed"
    containers = _containers(template)
    if len({container.get("name") for container in containers}) != len(containers):
        yield "two containers of one name"
    ports = [port.get("name") for container in containers for port in container.get("ports", [])]
    if len({*ports}) != len(ports) or None in ports:
        yield "ports need names, each its own"
    for container in containers:
        yield from (f"{container.get('name')}: {line}" for line in _security(container, user))
        yield from (f"{container.get('name')}: {line}" for line in _resources(container.get("resources", {})))
        for mount in container.get("volumeMounts", []):
            if mount.get("name") not in {volume.get("name") for volume in volumes}:
                yield f"{container.get('name')}: mounts {mount.get('name')}, which is no volume of its pod"
        image = str(container.get("image", ""))
        if not re.search(r"@sha256:[0-9a-f]{64}$|:(?!latest$)[\w.-]+$", image):
            yield f"{container.get('name')}: image {image!r} needs a digest, or a tag that is not `latest`"
        for variable in container.get("env", []):
            if re.search(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY", variable.get("name", "")) and "value" in variable:
                yield f"{container.get('name')}: {variable['name']} is a secret in plain text"
    for toleration in spec.get("tolerations", []):
        if toleration.get("effect") not in EFFECTS or toleration.get("operator") not in OPERATORS:
            yield f"toleration {toleration}: effect or operator is not one that exists"
        if not NODE_LABELS.fullmatch(str(toleration.get("key"))):
            yield f"toleration {toleration}: no node has such a taint"
        if (toleration.get("operator") == "Equal") != ("value" in toleration):
            yield f"toleration {toleration}: Equal takes a value, Exists none"


def _containers(template: Object) -> list[Object]:
    spec = template.get("spec", {})
    found: list[Object] = spec.get("containers", [{}]) + spec.get("initContainers", [])
    return found


def _security(container: Object, pod: Object) -> Iterator[str]:
    own = container.get("securityContext", {})
    if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
        yield "needs allowPrivilegeEscalation: false"
    if own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add"):
        yield "must drop ALL capabilities"
    if own.get("runAsNonRoot", True) is not True or own.get("runAsUser", 1) == 0:
        yield "must not run as root"


def _resources(resources: Object) -> Iterator[str]:
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for name, quantity in [*requests.items(), *limits.items()]:
        if name not in RESOURCES:
            yield f"resource {name} does not exist"
        if not re.fullmatch(r"\d+(\.\d+)?(m|[KMGT]i?)?", str(quantity)):
            yield f"{name}: {quantity} is not a quantity"
    if requests.get("nvidia.com/gpu") != limits.get("nvidia.com/gpu"):
        yield "GPUs are asked for and limited alike"
    if "cpu" not in requests or requests.get("memory") is None or requests.get("memory") != limits.get("memory"):
        yield "needs a request of cpu and memory, and a limit of memory equal to it: Ray plans by the limit"
