"""The calculator: its counts of requests against a real job's, its times against measured ones, its page against it."""

import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from infra import sizing
from jobs import generate
from jobs.command import model_store
from pipelines.storage.folder import Folder
from tests.conftest import ROOT
from tests.faults import FaultyProxy
from tests.processes import ray_here

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "scaling.md").read_text()


def requests(proxy: FaultyProxy) -> Counter[str]:
    """What has gone through the proxy, by kind; and forget it."""
    found: Counter[str] = Counter()
    for method, path in proxy.passed:
        listing = method == "GET" and urlsplit(path).query.startswith(("list-type", "uploads"))
        found["LIST" if listing else method] += 1
    proxy.passed.clear()
    return found


def test_the_requests_of_a_real_job_are_those_of_the_formula(digits_run: Path, s3: str, proxy: FaultyProxy) -> None:
    with ray_here():
        model_store.store_files(model_store.open_model(Folder(str(digits_run)))[1].files, Folder(f"{s3}/model"))
        requests(proxy)
        for shards, workers in ((3, 1), (260, 2)):
            output = f"{s3}/{shards}"
            generate.main(
                generate.GenerateSettings(
                    model=f"{s3}/model", output=output, count=2 * shards, shard_size=2, workers=workers
                )
            )
            found, formula = requests(proxy), sizing.generate_requests(shards, workers, 1000.0)
            assert found["HEAD"] < found.pop("GET") <= formula.pop("GET")  # the preview reads what it needs, up to 120
            assert {name: found[name] for name in formula} == formula


def test_a_large_tar_goes_up_in_parts(s3: str, proxy: FaultyProxy) -> None:
    folder = Folder(f"{s3}/large")
    for size in (sizing.SINGLE - 1, sizing.SINGLE + 1):
        folder.write("000000.tar", bytes(size))
        found = requests(proxy)
        expected = sizing.generate_requests(1, 1, size)["PUT"] - sizing.generate_requests(1, 1, 0)["PUT"] + 1
        assert found["PUT"] + found["POST"] == expected


def test_it_gives_the_times_that_were_measured() -> None:
    """A million digits28 images, 100 shards, two workers of 2 cores in all: 137 s (docs/experiments)."""
    job = sizing.Job(images=10**6, rate=4220.0, workers=2)
    found = sizing.estimate(job, sizing.Prices(worker_hour=0.05))
    assert found.limit == "workers"
    assert found.hours * 3600 == pytest.approx(137, rel=0.15)


def test_the_driver_is_what_breaks_first_with_small_shards() -> None:
    large = sizing.Job(images=10**9, rate=4220.0, workers=2000, shard_size=100_000)
    small = sizing.Job(images=10**9, rate=4220.0, workers=2000, shard_size=10_000)
    prices = sizing.Prices(worker_hour=0.05)
    assert sizing.estimate(large, prices).limit == "workers"
    assert sizing.estimate(small, prices).limit == "driver"
    assert sizing.estimate(small, prices).hours > 2 * sizing.estimate(large, prices).hours


def test_an_estimate_grows_with_its_job() -> None:
    prices = sizing.Prices(worker_hour=1.0)
    for workers in (1, 7, 64):
        hours = [
            sizing.estimate(sizing.Job(images=n, rate=100.0, workers=workers), prices).hours
            for n in (1, 10**4, 10**5 + 1, 10**7)
        ]
        assert hours == sorted(hours)
        assert hours[-1] * 3600 >= 10**7 / 100 / workers


def test_the_page_shows_what_the_calculator_prints() -> None:
    examples = re.findall(r"    \$ (infra/sizing\.py .*)\n((?:    .*\n)+)", PAGE)
    assert len(examples) >= 2
    for command, shown in examples:
        words = [sys.executable, str(ROOT / "infra" / "sizing.py"), *shlex.split(command)[1:]]
        printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert [line.strip() for line in shown.splitlines()] == [line.strip() for line in printed.splitlines()]
