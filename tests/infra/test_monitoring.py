"""Dashboard and alert rules: every metric that they name is exported by a running job, and promtool runs the rules."""

import json
import re
import subprocess
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
import yaml

from jobs.cluster import monitoring
from tests.infra.manifests import K8S, library, overlay, tool
from tests.processes import Run, head_node, until

pytestmark = pytest.mark.slow

MONITORING = K8S / "components" / "monitoring"
FAILED, COUNT, SHARD = 3, 20_000, 500
# What a machine without a GPU does not export; Ray's own dashboard names them.
GPU = {"ray_node_gpus_utilization", "ray_node_gram_used"}


def named(query: str) -> set[str]:
    """The metrics of a PromQL query, as its own parser sees them."""
    parser = library("promql_parser")

    def walk(node: object) -> Iterator[str]:
        if isinstance(node, parser.VectorSelector):
            yield node.name
        elif isinstance(node, parser.MatrixSelector):
            yield from walk(node.vector_selector)
        elif isinstance(node, parser.BinaryExpr):
            yield from walk(node.lhs)
            yield from walk(node.rhs)
        elif isinstance(node, parser.Call):
            for argument in node.args:
                yield from walk(argument)
        elif hasattr(node, "expr"):
            yield from walk(node.expr)

    return set(walk(parser.parse(query)))


def queries() -> dict[str, list[str]]:
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]["groups"][0]["rules"]
    found = {rule["alert"]: [rule["expr"]] for rule in rules}
    for panel in json.loads((MONITORING / "dashboards" / "ganmill.json").read_text())["panels"]:
        found[panel["title"]] = [target["expr"] for target in panel["targets"]]
    return found


@pytest.fixture(scope="module")
def exported(
    digits: Path, digits_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, dict[str, float]]]:
    """What a node exports of a training run and a generation that each lost a worker: name -> label -> value."""
    place = tmp_path_factory.mktemp("monitored")
    output = place / "synthetic"
    (output / "shards" / f"{FAILED:06d}.tar").mkdir(parents=True)  # in the way of one shard, which then fails
    flags = ("--count", COUNT, "--shard-size", SHARD, "--workers", 2)
    train = ("--images", 2560, "--tick", 1280, "--width", 16, "--metric-images", 200, "--workers", 2)
    with head_node(cpus=4, RAY_AUTH_MODE="disabled") as head, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", head.gcs)
        training = Run("train", place / "train.log", "--data", digits, "--run", place / "run", *train)
        making = Run("generate", place / "generate.log", "--model", digits_run, "--output", output, *flags)
        try:
            until(lambda: len(list(output.glob("manifest/*"))) > 2, "some shards are done")
            _kill("MapWorker")
            until(lambda: any(place.glob("run/checkpoints/*/checkpoint.json")), "a checkpoint is there")
            _kill("RayTrainWorker")
            training.wait()
            making.wait(status=1)
        finally:
            training.end()
            making.end()
        wanted = {f"ray_{metric.info['name']}" for metric in _ours()}
        found: dict[str, dict[str, float]] = {}

        def scraped() -> bool:
            found.clear()
            found.update(_scrape(head.metrics))
            return wanted <= {*found} and found["ray_ganmill_shards_total"].get("generate") == COUNT // SHARD - 1

        until(scraped, "the node exports all that its workers counted", within_s=30)
        yield found


def _ours() -> list[monitoring.Counter | monitoring.Gauge]:
    counters = [monitoring.IMAGES, monitoring.SHARDS, monitoring.FAILURES, monitoring.RESTARTS]
    return [*counters, *monitoring.TICK.values()]


def _kill(name: str) -> None:
    [victim, *_] = [p for p in psutil.process_iter() if "".join(_words(p)[:1]).startswith(f"ray::{name}")]
    victim.kill()


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _scrape(url: str) -> dict[str, dict[str, float]]:
    """Values by metric and by its label `command` or `worker`, added up over processes."""
    text = urllib.request.urlopen(url, timeout=10).read().decode()
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name, labels, value in re.findall(r"^(\w+)(\{.*\})? (\S+)$", text, re.MULTILINE):
        ours = re.search(r'[{,](?:command|worker)="(\w+)"', labels)
        found[name][ours[1] if ours else ""] += float(value)
    return found


def test_every_metric_of_dashboard_and_rules_is_exported_by_a_running_job(
    exported: dict[str, dict[str, float]],
) -> None:
    panels = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    rays_own = (panels / "default_dashboard_panels.py").read_text()
    for title, expressions in queries().items():
        for expression in expressions:
            metrics = named(expression)
            assert metrics, title
            assert metrics - GPU <= {*exported}, title
    assert all(metric in rays_own for metric in GPU)
    assert {f"ray_{metric.info['name']}" for metric in _ours()} <= {*exported}


def test_what_jobs_count_is_what_happened(exported: dict[str, dict[str, float]]) -> None:
    shards = COUNT // SHARD - 1
    assert exported["ray_ganmill_shards_total"]["generate"] == shards
    assert exported["ray_ganmill_images_total"]["generate"] == shards * SHARD
    assert exported["ray_ganmill_shard_failures_total"]["generate"] == 1
    assert exported["ray_ganmill_worker_restarts_total"] == {"GenerateShard": 1, "train": 1}
    # Rank 0 counts at its ticks; what a killed worker counted in its last seconds is lost with it.
    assert exported["ray_ganmill_images_total"]["train"] in (1280, 2560, 3840)
    assert 0 <= exported["ray_ganmill_data_wait_share"][""] <= 1
    assert exported["ray_ganmill_discriminator_loss"][""] > 0


def test_a_misspelt_metric_is_seen() -> None:
    assert named('sum by (a) (rate(x_total{b="c"}[5m])) / 2 > 0 or y unless y offset 5m') == {"x_total", "y"}


def test_promtool_takes_the_rules_and_each_alert_comes_and_goes(tmp_path: Path) -> None:
    [rules] = [item["spec"] for item in overlay("eks") if item["kind"] == "PrometheusRule"]
    file = tmp_path / "alerts.yaml"
    (tmp_path / "test.yaml").write_text((Path(__file__).parent / "alerts_test.yaml").read_text())

    def promtool(*words: str) -> int:
        file.write_text(yaml.safe_dump(rules))
        return subprocess.run([tool("promtool"), *words], cwd=tmp_path, capture_output=True, check=False).returncode

    assert promtool("check", "rules", "alerts.yaml") == 0
    assert promtool("test", "rules", "test.yaml") == 0
    alerts = rules["groups"][0]["rules"]
    for number in range(len(alerts)):  # and the test needs each of them
        removed = alerts.pop(number)
        assert promtool("test", "rules", "test.yaml") != 0, removed["alert"]
        alerts.insert(number, removed)
