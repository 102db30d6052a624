"""The calibration that a kept model holds. A recorder needs no Ray."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcgan import configuration
from dcgan.arithmetic import Arithmetic
from dcgan.evaluation import calibration
from dcgan.evaluation.calibration import CalibrationError
from dcgan.sampling.sampler import Sampler
from dcgan.training.configuration import MethodConfig
from dcgan.training.step import Training
from jobs.command import model_store
from jobs.command.model_store import find_model
from jobs.training import run_store
from jobs.training.recorder import CALIBRATION_SEED, Recorder, first_images
from jobs.training.training_job import TrainingJob
from pipelines import images
from pipelines.dataset import reader, writer
from pipelines.dataset.identity import from_json
from pipelines.dataset.shards import Sample
from pipelines.loading import order
from pipelines.storage.folder import Folder
from tests.families import configure

FP32 = Arithmetic("cpu", "float32")
NETWORK = configure("dcgan", image_size=28, channels=1, width=2, z_dim=3)
COUNT = 240


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    """Two small datasets of grey noise: one that is trained on, one that is not."""
    root = tmp_path_factory.mktemp("recorder")
    return {name: noise(Folder(str(root / name)), seed) for seed, name in enumerate(("data", "holdout"))}


def noise(folder: Folder, seed: int) -> Folder:
    pixels_NHWC = np.random.default_rng(seed).integers(0, 256, (COUNT, 28, 28, 1), np.uint8)
    identity = from_json({
        "producer": "ingest", "count": COUNT, "shard_size": COUNT, "image_size": 28, "channels": 1, "classes": None,
        "image": {"format": "png"}, "arithmetic": {},
    })  # fmt: skip
    writer.claim(folder, identity, {})
    samples = [Sample(n, images.encode(one), None) for n, one in enumerate(pixels_NHWC)]
    record = writer.commit(folder, 0, "ingest", samples, {"source": ["x"] * COUNT})
    writer.seal(folder, identity, {0: record}, {})
    return folder


def recorded(sets: dict[str, Folder], run: Path, holdout: str | None) -> Recorder:
    """A recorder after one tick of one step."""
    data, index = sets["data"], reader.open_sealed(sets["data"])
    plan = order.make_plan((COUNT,), 8, 16, 0)
    given: dict[str, Any] = {"selection": None, "plan": plan, "total": 8, "tick": 8, "keep": 1, "threads": 1}
    job = TrainingJob(
        data=data.url, holdout=holdout, run=str(run), network=NETWORK, method=MethodConfig(), arithmetic=FP32,
        metric_images=220, learned_metric=False, provenance={"data": index.root}, claim="", **given,
    )  # fmt: skip
    network = {"network": NETWORK.family, **configuration.identity(NETWORK)}
    claimed = {"data": index.root, "network": network, "method": configuration.identity(job.method)}
    run_store.claim_run(Folder(job.run), claimed, {"data": data.url, "recipe": "none"})
    training = Training(NETWORK, job.method, FP32, 0)
    real_NHWC, label_N = first_images(data, index, 8)
    scalars = {name: float(value) for name, value in training.step(real_NHWC, label_N, 0).items()}
    recorder = Recorder(job, Folder(str(run)), data, index, 0)
    recorder.tick(training, 8, {**scalars, "images_per_second": 1.0, "data_wait_share": 0.0})
    recorder.close()
    return recorder


@pytest.mark.parametrize("holdout", [True, False])
def test_a_kept_model_holds_the_calibration_of_its_logits(
    sets: dict[str, Folder], tmp_path: Path, holdout: bool
) -> None:
    """On the holdout, else on training images; it says which. Where fakes have the higher logits it holds none."""
    place = sets["holdout" if holdout else "data"]
    recorded(sets, tmp_path, place.url if holdout else None)
    model, _ = model_store.load(find_model(Folder(str(tmp_path))))
    index = reader.open_sealed(place)
    real_NHWC, _ = first_images(place, index, 220)
    sampler = Sampler(model, FP32, 128)
    fake = sampler.sample(range(CALIBRATION_SEED, CALIBRATION_SEED + 220), None)
    real_N = sampler.score(real_NHWC, None)
    try:
        fit = asdict(calibration.calibrate(real_N, fake.logits_N, 0))
    except CalibrationError:
        assert model.calibration is None
        return
    assert model.calibration == {**fit, "real": {"root": index.root, "images": 220, "trained_on": not holdout}}


def test_a_discriminator_that_prefers_fakes_has_no_calibration(sets: dict[str, Folder], tmp_path: Path) -> None:
    recorder = recorded(sets, tmp_path, None)
    model, _ = model_store.load(find_model(Folder(str(tmp_path))))
    found = recorder._calibration(model)
    weights = model.discriminator.head
    weights.weight.data.neg_()  # its logits, and so its preference, the other way round
    weights.bias.data.neg_()
    other = recorder._calibration(model)
    assert (found is None) != (other is None)
