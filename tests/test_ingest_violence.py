"""Ingest that is killed and cut off: the same bytes as of the run that nobody disturbed, holdout and duplicates too."""

import io
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from pipelines.storage.folder import Folder
from tests.faults import RATES, FaultyProxy
from tests.processes import Run, cluster_of, until, workers

pytestmark = pytest.mark.slow

IMAGES, TARS, SHARD_SIZE = 360, 6, 24
FLAGS = ("--image-size", 64, "--shard-size", SHARD_SIZE, "--holdout", 0.2, "--dedupe", "near", "--workers", 2)
Start = Callable[..., Run]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WebDataset shards of large pictures, so that there are moments to kill in; some are there twice, some damaged."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for number in range(TARS):
        with tarfile.open(folder / f"{number:03d}.tar", "w") as target:
            for n in range(IMAGES // TARS):
                small = rng.integers(0, 256, (7, 7, 3), np.uint8)
                if n % 10 == 7:
                    small = np.full((7, 7, 3), 40 * number, np.uint8)
                picture = Image.fromarray(small).resize((700, 600))
                sink = io.BytesIO()
                picture.save(sink, "PNG", compress_level=1)
                data = sink.getvalue()[: None if n % 30 else 900]
                for ending, content in (("png", data), ("cls", b"%d" % (n % 3))):
                    info = tarfile.TarInfo(f"{n:04d}.{ending}")
                    info.size = len(content)
                    target.addfile(info, io.BytesIO(content))
    return folder


@pytest.fixture
def start(source: Path, tmp_path: Path) -> Iterator[Start]:
    ray.shutdown()
    begun: list[Run] = []

    def call(output: str | Path, data: str | Path = source) -> Run:
        begun.append(Run("ingest", tmp_path / f"log{len(begun)}", "--source", data, "--output", output, *FLAGS))
        return begun[-1]

    yield call
    for run in begun:
        run.end()


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    place = tmp_path_factory.mktemp("undisturbed")
    ray.shutdown()
    run = Run("ingest", place / "log", "--source", source, "--output", place / "out", *FLAGS)
    run.wait()
    run.end()
    return contents(place / "out")


def contents(output: str | Path) -> dict[str, bytes]:
    """Every file of the dataset and of its holdout, but for what names the place."""
    found = {}
    for part in ("", "-holdout"):
        folder = Folder(f"{output}{part}")
        for name in folder.tree():
            if name not in ("dataset.json", "index.json", "README.md", "croissant.json"):
                found[f"{part}/{name}"] = folder.read(name)
        found[f"{part}/root"] = folder.read("index.json").split(b'"root":"')[1][:64]
    return found


def assert_same(output: str | Path, undisturbed: dict[str, bytes]) -> None:
    mine = contents(output)
    assert sorted(mine) == sorted(undisturbed)
    assert [name for name in mine if mine[name] != undisturbed[name]] == []


def test_the_undisturbed_run_holds_what_these_tests_need(undisturbed: dict[str, bytes]) -> None:
    names = sorted(undisturbed)
    assert sum(name.startswith("/shards/") for name in names) > 10
    assert sum(name.startswith("-holdout/shards/") for name in names) > 1
    for part in ("", "-holdout"):
        reasons = pq.read_table(io.BytesIO(undisturbed[f"{part}/rejects.parquet"]))["reason"].to_pylist()
        assert any(reason.startswith("near duplicate: of ") for reason in reasons)
    assert not any(name.split("/")[1] in ("catalogue", "codes", "journal") for name in names)


@pytest.mark.parametrize(("seed", "kills"), [(0, 1), *(pytest.param(n, 3, marks=pytest.mark.long) for n in range(5))])
def test_a_driver_killed_at_random_moments(
    seed: int, kills: int, start: Start, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """While images are compared, while they are taken, while the holdout is; or the last alone, with most to go by."""
    rng, output = random.Random(seed), tmp_path / "out"
    shards = sum(name.startswith("/shards/") for name in undisturbed)
    moments = [
        ("out/codes", rng.randrange(1, shards)),
        ("out/manifest", rng.randrange(1, shards)),
        ("out-holdout/manifest", 1),
    ]
    with cluster_of(2):
        for folder, count in moments[-kills:]:
            run = start(output)

            def reached(folder: str = folder, count: int = count, run: Run = run) -> bool:
                assert run.process.poll() is None, run.log()
                return len(list((tmp_path / folder).glob("0*.parquet"))) >= count

            until(reached, f"{count} files in {folder}")
            run.kill()
            run.end()
        run = start(output)
        run.wait()
    assert_same(output, undisturbed)


@pytest.mark.long  # test_line.py ingests under the same faults; killed actors are the pool's, and generate's test's
def test_actors_killed_and_a_failing_store(
    start: Start, undisturbed: dict[str, bytes], source: Path, s3: str, proxy: FaultyProxy
) -> None:
    """The source on the store too: images are read through the same faults as they are written."""
    for path in source.iterdir():
        Folder(f"{s3}/in").write(path.name, path.read_bytes())
    proxy.kinds = RATES
    run = start(f"{s3}/out", f"{s3}/in")
    for kind in ("codes", "manifest"):
        until(lambda kind=kind: len(Folder(f"{s3}/out").list(kind)) > 2, f"files in {kind}")
        [*actors] = workers(psutil.Process(run.process.pid), "ShardRunner")
        assert actors
        actors[0].kill()
    run.wait()
    assert sum(proxy.counts.values()) > 10, proxy.counts
    proxy.kinds = {}
    assert_same(f"{s3}/out", undisturbed)
