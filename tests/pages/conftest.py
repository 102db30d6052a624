"""Pages of every kind, made of real files by the code that makes them, without Ray and without a training."""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcgan.evaluation.distances import Answers, Sums
from jobs.evaluation import metrics, report
from jobs.evaluation.feature_pass import DatasetFeatures
from jobs.evaluation.metrics import ClassifierTest
from jobs.evaluation.report import Pair
from jobs.presentation.main import main
from jobs.presentation.settings import ShowSettings
from jobs.training import run_store
from jobs.training.report import REPORT, Report
from jobs.training.settings import TrainSettings
from pipelines import images
from pipelines.dataset import layout, manifest, writer
from pipelines.dataset.identity import from_json
from pipelines.dataset.manifest import Reject
from pipelines.dataset.shards import Sample
from pipelines.storage.folder import Folder


def drawing(seed: int, size: int, channels: int) -> np.ndarray:
    """A picture with some structure: a disc on noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    centre, radius = rng.uniform(0.3, 0.7, 2) * size, rng.uniform(0.15, 0.4) * size
    disc = np.hypot(x - centre[0], y - centre[1]) < radius
    colour = rng.integers(120, 256, channels)
    return np.where(disc[:, :, None], colour, rng.integers(0, 60, (size, size, channels))).astype(np.uint8)


def run_of(folder: Path, ticks: int, *, size: int = 28, channels: int = 1, wrong: bool = False) -> Folder:
    """A run's directory after some ticks, its weights apart. `wrong`: one whose discriminator is too strong."""
    run = Folder(str(folder))
    settings = TrainSettings(**{**TrainSettings.preset({"recipe": "digits28"}), "run": str(folder)}).stored()
    network = {"network": "dcgan", "image_size": size, "channels": channels, "num_classes": 3}
    identity = {"data": "ab" * 32, "network": network, "method": {"loss": "log"}}
    run_store.claim_run(run, identity, settings)
    run.write("reals.png", images.encode(_grid(0, size, channels)))
    made = []
    for number in range(1, ticks + 1):
        seen = 20_000 * number
        run.write(f"grids/{seen:012d}.png", images.encode(_grid(number, size, channels)))
        right = 0.99 if wrong else 0.6 + 0.1 / number
        made.append(
            {
                **{"images": seen, "loss_d": 1.3 + 0.1 / number, "loss_g": 0.8 - 0.1 / number, "real_accuracy": right},
                **{"fake_accuracy": right, "gradient_d": 1.0, "gradient_g": 0.4, "images_per_second": 200.0 + number},
                **{"kernel_distance": 0.5 / number, "diversity": 1 - 0.5 / number, "protocol": "squared MMD"},
            }
        )
    run_store.write_stats(run, made)
    best = made[-1]
    run_store.write_best(
        run,
        {"model": f"models/{best['images']:012d}", "images": best["images"], "metric": "kernel_distance"}
        | {"value": best["kernel_distance"], "protocol": "squared MMD"},
    )
    return run


def _grid(seed: int, size: int, channels: int) -> np.ndarray:
    rows = [[drawing(100 * seed + 10 * row + column, size, channels) for column in range(10)] for row in range(3)]
    return images.grid(rows, images.grid_scale(size))


def write_run_page(run: Folder, total: int) -> Path:
    ticks, best = run_store.read_progress(run)
    Report(run, total).write(ticks, best)
    return Path(str(run)) / REPORT


@pytest.fixture(scope="session")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that goes on, with a warning."""
    return write_run_page(run_of(tmp_path_factory.mktemp("page") / "run", 7, wrong=True), 300_000)


def measured(images_NHWC: np.ndarray, label_N: np.ndarray) -> DatasetFeatures:
    """All images of a dataset by their pixels."""
    features_NF = images_NHWC.reshape(len(label_N), -1) / np.float32(255)
    position_N = np.arange(len(label_N))
    sums, none = Sums.of(features_NF), Answers.none(0)
    return DatasetFeatures(sums, (), features_NF, label_N, position_N, none, features_NF, position_N)


def evaluation_of(fake_first: int, *, holdout: bool = True, count: int = 60) -> bytes:
    """The page of an evaluation of drawings: fakes from the seed `fake_first` on, real ones from 0."""
    starts = {"real": 0, "fake": fake_first, **({"holdout": count} if holdout else {})}
    label_N = np.arange(count) % 2
    shown = {role: np.stack([drawing(first + n, 12, 1) for n in range(count)]) for role, first in starts.items()}
    sets = {role: measured(one, label_N) for role, one in shown.items()}
    rng = np.random.default_rng(0)
    tests = [
        ClassifierTest("accuracy_score", role, "holdout", count, rng.random(200) < right, "share of right labels")
        for role, right in (("real", 0.97), ("fake", 0.9))
    ]
    samples = metrics.samples(sets)
    rows = metrics.rows(sets, samples, 2, 3, 0, tests if holdout else ())
    pairs = [
        Pair(distance, f"{fake:012d}", f"{real:012d}", shown["fake"][fake], shown["real"][real])
        for distance, fake, real in metrics.closest(samples["fake"], sets["fake"].position_N, 12)
    ]
    grids = {role: images.grid([list(shown[role][row : row + 5]) for row in (0, 5)]) for role in ("real", "fake")}
    datasets = {role: {"url": f"/data/{role}", "root": "ab" * 32, "images": count, "searched": count} for role in shown}
    protocol = {
        **{"datasets": datasets, "features": {"name": "pixels", "size": 144}, "seed": 0, "repeats": 3},
        "software": {"numpy": np.__version__},
    }
    bins = [{"predicted": 0.1 + 0.2 * n, "real": 0.15 + 0.17 * n, "images": 10} for n in range(5)]
    score = {
        **{"against": "holdout", "images": 60, "calibrated": True, "auc": 0.57, "brier": 0.246},
        **{"calibration_error": 0.01, "reliability": bins},
    }
    distances = metrics.nearest_distances(samples)
    return report.render_html(protocol, ["a", "b"], rows, distances, grids, pairs, score if holdout else None)


@pytest.fixture(scope="session")
def evaluation_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("page") / "evaluation.html"
    page.write_bytes(evaluation_of(1000))
    return page


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets of an earlier version."""
    root = tmp_path_factory.mktemp("golden")
    with tarfile.open(Path(__file__).parent.parent / "golden" / "golden.tar.xz") as tar:
        tar.extractall(root, filter="data")
    return root


def real_dataset(place: Path, size: int = 16, count: int = 30, classes: tuple[str, ...] = ("a<b", "c")) -> Path:
    """A sealed dataset of drawings in shards of ten. Every index that ends with 7 was not taken."""
    folder = Folder(str(place))
    fields = {
        **{"producer": "ingest", "count": count, "shard_size": 10, "image_size": size, "channels": 3},
        **{"classes": [*classes] or None, "image": {"format": "png"}, "arithmetic": {}, "source": "cd" * 32},
    }
    identity = from_json(fields)
    writer.claim(folder, identity, {"source": "/pictures"})
    records, rejects = {}, []
    for shard in range(layout.num_shards(identity)):
        owned = layout.shard_range(identity, shard)
        taken = [n for n in owned if n % 10 != 7]
        gone = [Reject(n, f"{n}.txt", "not an image" if n > 9 else "duplicate: of 3.png") for n in owned if n % 10 == 7]
        samples = [Sample(n, images.encode(drawing(n, size, 3)), n % len(classes) if classes else None) for n in taken]
        records[shard] = writer.commit(folder, shard, "ingest", samples, {"source": [f"{n}.png" for n in taken]}, gone)
        rejects += gone
    writer.seal(folder, identity, records, {layout.REJECTS: manifest.encode_rejects(rejects)})
    return place


def write_dataset_page(dataset: Path, **settings: Any) -> Path:
    main(ShowSettings(dataset=str(dataset), **settings))
    return dataset.with_name(f"{dataset.name}.html")


@pytest.fixture(scope="session")
def real_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset_page(real_dataset(tmp_path_factory.mktemp("page") / "real"))


@pytest.fixture(scope="session")
def synthetic_page(golden: Path) -> Path:
    return write_dataset_page(golden / "synthetic" / "cdcgan")


@pytest.fixture(scope="session")
def pages(run_page: Path, evaluation_page: Path, real_page: Path, synthetic_page: Path) -> dict[str, Path]:
    """Every kind of page."""
    return {"run": run_page, "evaluation": evaluation_page, "real": real_page, "synthetic": synthetic_page}
