"""The Kubernetes manifests: strict schemas, the operator's rules, pod security, and references that must meet."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from jobs import generate, train, verify
from jobs.command import settings
from jobs.command.errors import UsageError
from tests.conftest import ROOT
from tests.infra import kuberay, links, network, rules
from tests.infra.manifests import K8S, OVERLAYS, Object, Schemas, cluster_of, overlay, pod_templates, render

CRDS = ROOT.parent / "shared" / "schemas" / "kuberay"
SPOT = {  # what sends a pod to machines that may be taken away
    "eks": {"karpenter.sh/capacity-type": "spot"},
    "gke": {"cloud.google.com/gke-spot": "true"},
    "aks": {"kubernetes.azure.com/scalesetpriority": "spot"},
}


@pytest.fixture(scope="module")
def schemas() -> Schemas:
    return Schemas()


def problems(schemas: Schemas, items: list[Object]) -> list[str]:
    found = [line for item in items for line in schemas.errors(item)]
    return found + [line for item in items for line in rules.all_of(item)] + list(links.broken(items))


def test_our_schemas_are_those_of_the_operators_crds() -> None:
    if not CRDS.exists():
        assert not os.environ.get("CI"), f"no {CRDS}"
        pytest.skip("the operator's CRDs are not at hand")
    assert kuberay.FILE.read_text() == kuberay.encode(kuberay.convert(CRDS))


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_has_nothing_wrong(name: str, schemas: Schemas) -> None:
    items = overlay(name)
    assert problems(schemas, items) == []
    kinds = [item["kind"] for item in items]
    assert (kinds.count("RayCluster"), kinds.count("RayJob")) == (1, 2)
    assert ("PrometheusRule" in kinds) == (name != "kind")


@pytest.mark.parametrize("name", ["eks", "gke", "aks"])
def test_any_cloud_goes_without_gpus(name: str, schemas: Schemas, tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    file = tmp_path / "k8s" / "overlays" / name / "kustomization.yaml"
    text = file.read_text()
    assert "  # - ../../components/cpu\n" in text
    file.write_text(text.replace("  # - ../../components/cpu", "  - ../../components/cpu"))
    items = render(file.parent)
    assert problems(schemas, items) == []
    clusters = [cluster_of(item) for item in items if cluster_of(item)]
    assert "nvidia.com/gpu" not in json.dumps([group["template"]["spec"]["containers"] for c in clusters for group in
                                               c["workerGroupSpecs"]])  # fmt: skip
    assert all(" --device cpu" in item["spec"]["entrypoint"] for item in items if item["kind"] == "RayJob")


@pytest.mark.parametrize("name", sorted(SPOT))
def test_gpus_come_from_spot_first_and_heads_never(name: str) -> None:
    for item in overlay(name):
        cluster = cluster_of(item)
        if not cluster:
            continue
        spot, demand, *_ = cluster["workerGroupSpecs"]
        assert spot["groupName"] == "gpu-spot"
        assert demand["groupName"] == "gpu-on-demand"
        chosen = [part["template"]["spec"].get("nodeSelector", {}) for part in (cluster["headGroupSpec"], spot, demand)]
        assert [SPOT[name].items() <= selector.items() for selector in chosen] == [False, True, False]


@pytest.mark.parametrize("name", OVERLAYS)
def test_one_version_of_ray_and_of_the_s3_server(name: str) -> None:
    locked = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None
    version = locked[1]
    assert version == ray.__version__
    for item in overlay(name):
        cluster = cluster_of(item)
        assert not cluster or cluster["rayVersion"] == version
        for _, template in pod_templates(item):
            [container] = template["spec"]["containers"]
            repository, tag = container["image"].rsplit(":", 1)
            if "moto" in repository:
                assert f"moto=={tag} " in (ROOT / "requirements-dev.lock").read_text()
            else:
                assert tag.endswith(f"-ray{version}")
                assert repository.rpartition("/")[2] == "ganmill"


SETTINGS = {
    "train.py": train.TrainSettings,
    "generate.py": generate.GenerateSettings,
    "verify.py": verify.VerifySettings,
}


@pytest.mark.parametrize("name", OVERLAYS)
def test_jobs_are_commands_of_ours_with_flags_that_they_take(name: str) -> None:
    workdir = re.search(r"^WORKDIR (\S+)", (ROOT / "infra" / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    assert workdir is not None
    for item in overlay(name):
        if item["kind"] == "RayJob":
            script, *flags = item["spec"]["entrypoint"].split()
            assert os.access(ROOT / Path(script).relative_to(workdir[1]), os.X_OK)
            # As the command itself reads them: an unknown flag or a value that is not allowed is an error.
            taken = settings.load(SETTINGS[Path(script).name], flags)
            assert taken.describe()["device"] == ("cpu" if name == "kind" else "cuda")


def test_a_flag_that_a_command_does_not_know_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown flag --wrokers; did you mean --workers\?"):
        settings.load(generate.GenerateSettings, ["--count", "1", "--wrokers", "8"])


def change(item: Object, path: str, value: Any) -> None:
    """Set what `path` leads to; None removes it."""
    *way, last = path.split(".")
    node: Any = item
    for step in way:
        node = node[int(step)] if step.isdigit() else node.setdefault(step, {})
    if value is None:
        del node[last]
    else:
        node[last] = value


CLUSTER, TRAIN = "RayCluster ganmill", "RayJob train"
HEAD, POD = "headGroupSpec.template.spec", "spec.submitterPodTemplate.spec"
WRONG = [
    (CLUSTER, "metadata.name", "Ganmill", "name 'Ganmill'"),
    (CLUSTER, "metadata.name", "a" * 54, "at most 53"),
    (TRAIN, "metadata.name", "a" * 48, "at most 47"),
    (CLUSTER, "spec.workerGroupSpecs.0.minReplicas", 9, "replicas must be between"),
    (CLUSTER, "spec.workerGroupSpecs.1.groupName", "gpu-spot", "comes twice"),
    (CLUSTER, "spec.workerGroupSpecs.0.resources", {"CPU": "1"}, None),
    (CLUSTER, "spec.workerGroupSpecs.0.rayStartParams", {"labels": "a=b"}, "labels is not for here"),
    (CLUSTER, "spec.workerGroupSpecs.0.rayStartParams", {"num-cpu": "1"}, "num-cpu is not for here"),
    (CLUSTER, f"spec.{HEAD}.restartPolicy", "Always", "autoscaler v2 wants Never"),
    (CLUSTER, "spec.autoscalerOptions.version", "v1", "must be v2"),
    (CLUSTER, f"spec.{HEAD}.containers.0.env", [{"name": "RAY_enable_autoscaler_v2", "value": "1"}], "says it"),
    (CLUSTER, f"spec.{HEAD}.containers.0.env", [{"name": "RAY_REDIS_ADDRESS", "value": "r"}], "gcsFaultTolerance"),
    (CLUSTER, f"spec.{HEAD}.containers.0.env", [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}], "plain text"),
    (CLUSTER, "spec.authOptions.mode", "disabled", "must be token"),
    (CLUSTER, "spec.rayVersion", "2.46.0", "need rayVersion 2.52"),
    (TRAIN, "spec.rayClusterSpec.authOptions.enableK8sTokenAuth", True, "enableK8sTokenAuth"),
    (CLUSTER, "spec.headGroupSpec.rayStartParams.num-cpus", "2", "num-cpus must be 0"),
    (CLUSTER, "spec.headGroupSpec.serviceType", "LoadBalancer", "outside the cluster"),
    (CLUSTER, "spec.networkPolicy", {"mode": "DenyAll"}, "feature gate"),
    (TRAIN, "spec.submissionMode", "K8SJobMode", "submissionMode"),
    (TRAIN, "spec.submissionMode", "SidecarMode", "SidecarMode takes neither"),
    (TRAIN, "spec.shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished needs"),
    (TRAIN, "spec.deletionStrategy", {"deletionRules": []}, "not both"),
    (TRAIN, "spec.clusterSelector", {"ray.io/cluster": "ganmill"}, "either rayClusterSpec or"),
    (TRAIN, "spec.runtimeEnvYAML", "a: [", "not a YAML mapping"),
    (TRAIN, "spec.activeDeadlineSeconds", 0, "must be above 0"),
    (TRAIN, "spec.activeDeadlineSeconds", None, "nothing bounds"),
    (TRAIN, "spec.submitterPodTemplate", None, "refused by the namespace"),
    (TRAIN, f"{POD}.securityContext.runAsNonRoot", False, "not root"),
    (TRAIN, f"{POD}.securityContext.seccompProfile", None, "seccompProfile"),
    (TRAIN, f"{POD}.hostNetwork", True, "hostNetwork"),
    (TRAIN, f"{POD}.automountServiceAccountToken", True, "has a token of the API server"),
    (TRAIN, f"{POD}.containers.0.securityContext.capabilities", {"drop": ["ALL"], "add": ["SYS_PTRACE"]}, "capabil"),
    (TRAIN, f"{POD}.containers.0.securityContext.allowPrivilegeEscalation", None, "allowPrivilegeEscalation"),
    (TRAIN, f"{POD}.containers.0.image", "ganmill:latest", "not `latest`"),
    (TRAIN, f"{POD}.containers.0.image", "ganmill", "needs a digest"),
    (TRAIN, f"{POD}.containers.0.volumeMounts", [{"name": "a", "mountPath": "/a"}], "no volume of its pod"),
    (TRAIN, f"{POD}.volumes", [{"name": "a", "hostPath": {"path": "/"}}], "not of a kind that is allowed"),
    (CLUSTER, "spec.autoscalerOptions.securityContext", None, "autoscaler: needs allowPrivilegeEscalation"),
    (CLUSTER, "spec.workerGroupSpecs.0.template.spec.tolerations.0.effect", "NoSchedul", "not one that exists"),
    (CLUSTER, "spec.workerGroupSpecs.0.template.spec.containers.0.resources.limits", {"memory": "24Gi"}, "GPUs"),
    (CLUSTER, f"spec.{HEAD}.serviceAccountName", "nobody", "no ServiceAccount nobody"),
    (CLUSTER, f"spec.{HEAD}.terminationGracePeriodSeconds", 60, "killed before"),
    (CLUSTER, f"spec.{HEAD}.containers.0.ports.3.containerPort", 8081, "what others look for"),
    (CLUSTER, "spec.workerGroupSpecs.0.priority", 5, "higher priority"),
    (CLUSTER, "spec.workerGroupSpecs.0.template.metadata.labels", {"ganmill/cluster": "train"}, "one label"),
    ("PodDisruptionBudget train-head", "spec", {"maxUnavailable": 0, "selector": {}}, "must keep one pod"),
    ("NetworkPolicy jobs-api", "spec.podSelector.matchLabels", {"ray.io/node-type": "haed"}, "selects no pod"),
    ("PodMonitor ray", "spec.podMetricsEndpoints.0.port", "metric", "no pod has a port"),
    ("ServiceAccount submitter", "metadata.namespace", "default", "not in namespace"),
    ("ConfigMap ganmill", "data", {"RAY_USAGE_STATS_ENABLED": "0"}, "no GANMILL_ROOT"),
    ("Namespace ganmill", "metadata.labels", {"pod-security.kubernetes.io/enforce": "baseline"}, "pod security"),
]


@pytest.mark.parametrize(
    ("what", "path", "value", "words"), WRONG, ids=[f"{w[1][-40:]}-{n}" for n, w in enumerate(WRONG)]
)
def test_what_the_operator_or_the_cluster_would_refuse_is_refused_here(
    what: str, path: str, value: Any, words: str | None, schemas: Schemas
) -> None:
    items = overlay("eks")
    [item] = [item for item in items if f"{item['kind']} {item['metadata']['name']}" == what]
    change(item, path, value)
    if words is None:  # right by itself, wrong beside a parameter of the same meaning
        assert problems(schemas, items) == []
        change(item, "spec.workerGroupSpecs.0.rayStartParams", {"num-cpus": "1"})
        words = "not in both"
    assert any(words in line for line in problems(schemas, items)), problems(schemas, items)


def test_secrets_and_doors_to_the_world_are_refused(schemas: Schemas) -> None:
    base = {"apiVersion": "v1", "metadata": {"name": "x", "namespace": "ganmill"}}
    secret = {**base, "kind": "Secret", "stringData": {"auth_token": "x"}}
    service = {**base, "kind": "Service", "spec": {"type": "LoadBalancer", "ports": [{"port": 8265}]}}
    assert any("do not belong" in line for line in rules.all_of(secret))
    assert any("outside the cluster" in line for line in rules.all_of(service))


def pod_named(items: list[Object], words: str) -> links.Pod:
    [pod] = [pod for pod in links.pods(items) if str(pod) == words]
    return pod


OPERATOR = links.Pod("operator", "", {"app.kubernetes.io/name": "kuberay-operator"}, {}, "kuberay-system")
PROMETHEUS = links.Pod("prometheus", "", {}, {}, "monitoring")
STRANGER = links.Pod("stranger", "", {"ganmill/role": "submitter", "ganmill/cluster": "train"}, {}, "default")
INSIDER = links.Pod("insider", "", {}, {})
DNS = links.Pod("dns", "", {"k8s-app": "kube-dns"}, {}, "kube-system")
INTERNET, METADATA, POD_IDENTITY = "52.216.1.1", "169.254.169.254", "169.254.170.23"


@pytest.mark.parametrize("name", OVERLAYS)
def test_needed_packets_pass_and_others_do_not(name: str) -> None:
    items = overlay(name)
    group = "cpu-spot" if name == "kind" else "gpu-spot"
    head, worker = pod_named(items, f"{TRAIN}, head"), pod_named(items, f"{TRAIN}, group {group}")
    submitter, other = pod_named(items, f"{TRAIN}, submitter"), pod_named(items, "RayJob generate, head")
    passes: Callable[..., bool] = lambda *flow: network.allowed(items, *flow)  # noqa: E731
    needed = [
        (worker, head, 6379),  # the GCS
        (head, worker, 23456),  # Ray's own ports, and NCCL's, are of their choosing
        (worker, worker, 34567),
        (worker, DNS, 53, "UDP"),
        (worker, INTERNET, 443),  # object storage
        (head, INTERNET, 443),
        (head, "10.96.0.1", 6443),  # the API server, for the autoscaler
        (submitter, head, 8265),
        (submitter, DNS, 53, "UDP"),
        (OPERATOR, head, 8265),
        (PROMETHEUS, head, 44217),
        (PROMETHEUS, worker, 8080),
    ]
    denied = [
        (STRANGER, head, 8265),
        (INSIDER, head, 8265),
        ("203.0.113.9", head, 8265),
        ("203.0.113.9", head, 10001),
        (PROMETHEUS, head, 8265),
        (submitter, head, 6379),
        (submitter, INTERNET, 443),
        (other, head, 6379),  # two clusters
        (other, worker, 34567),
        (STRANGER, worker, 34567),
        (OPERATOR, worker, 8080),
        (worker, INTERNET, 80),
        (worker, "10.96.0.1", 6443),
        (INSIDER, INTERNET, 443),
    ]
    if name != "gke":  # GKE's metadata server gives out no node's credentials
        denied += [(worker, METADATA, 80), (head, METADATA, 80)]
    if name == "eks":
        needed += [(worker, POD_IDENTITY, 80)]
    if name == "kind":
        store = pod_named(items, "Deployment s3, pod")
        needed += [(worker, store, 5000), (head, store, 5000), (pod_named(items, "Job bucket, pod"), store, 5000)]
        denied += [(INSIDER, store, 5000), (STRANGER, store, 5000), (store, INTERNET, 443)]
    assert [(str(flow[0]), str(flow[1]), *flow[2:]) for flow in needed if not passes(*flow)] == []
    assert [(str(flow[0]), str(flow[1]), *flow[2:]) for flow in denied if passes(*flow)] == []


def test_nothing_in_infra_looks_like_a_secret() -> None:
    shapes = re.compile(
        r"AKIA[0-9A-Z]{16}|-----BEGIN|ghp_\w{20}|eyJ[\w-]{20}|xox[bp]-|"
        r"(?i:password|secret_access_key|auth_token)\s*[:=]\s*['\"]?[A-Za-z0-9/+]{16}"
    )
    assert shapes.search("AWS_SECRET_ACCESS_KEY=" + "a1B/" * 10)
    for file in (ROOT / "infra").rglob("*"):
        if file.is_file():
            assert shapes.search(file.read_text(errors="replace")) is None, file


def test_rights_in_the_bucket_are_as_small_as_the_work() -> None:
    """EKS's policies: what may be written where; everything else may be read at most."""
    writes = {"train": {"run"}, "generate": {"synthetic"}, "cluster": {""}}
    for name, prefixes in writes.items():
        policy = json.loads((K8S / "overlays" / "eks" / "policies" / f"{name}.json").read_text())
        may_write: set[str] = set()
        for statement in policy["Statement"]:
            assert statement["Effect"] == "Allow"
            assert all(re.fullmatch(r"s3:[A-Z]\w+", action) for action in statement["Action"]), "no wildcards"
            assert all(re.fullmatch(r"arn:aws:s3:::my-bucket(/ganmill/.*)?", r) for r in statement["Resource"])
            if {"s3:PutObject", "s3:DeleteObject"} & {*statement["Action"]}:
                may_write |= {
                    r.removeprefix("arn:aws:s3:::my-bucket/ganmill/").rstrip("/*") for r in statement["Resource"]
                }
        assert may_write == prefixes
    assert yaml.safe_load((K8S / "base" / "kustomization.yaml").read_text())["namespace"] == "ganmill"
