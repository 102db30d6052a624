"""The records of a run, written by rank 0: statistics, pictures, checkpoints, and the best model."""

import resource
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from dcgan.evaluation import calibration
from dcgan.evaluation.calibration import CalibrationError
from dcgan.evaluation.features import efficientnet_lite0
from dcgan.evaluation.tick_metric import TickMetric
from dcgan.model_files import Model
from dcgan.sampling.sampler import Sampler
from dcgan.training.state import check_finite, check_weights
from dcgan.training.step import Training
from jobs.command import feature_weights, model_store
from jobs.command.scratch import Scratch
from jobs.training import checkpoints, diagnostics, run_store
from jobs.training.report import Report
from jobs.training.training_job import TrainingJob
from pipelines import images
from pipelines.dataset import layout, reader
from pipelines.storage.folder import Folder

GRID_COLUMNS = 10
GRID_SEED = 2**62  # far from the seeds that people generate from
CALIBRATION_SEED = GRID_SEED + 2**61
_SAMPLE_BATCH = 128


class Recorder:
    """Measures, draws and saves a run at each tick."""

    def __init__(self, job: TrainingJob, run: Folder, data: Folder, index: layout.Index, seen: int) -> None:
        self.job, self.run, self.classes = job, run, index.classes if job.network.num_classes else None
        self.ticks, _ = run_store.read_progress(run, seen)
        self.saved = seen
        self.real, self.labels = first_images(data, index, job.metric_images)
        self.holdout = self._open_holdout(index.root)
        learned = efficientnet_lite0(feature_weights.read(), job.arithmetic.device) if job.learned_metric else None
        self.metric = TickMetric(self.real, learned)
        self.protocol = f"{self.metric.protocol}, seeds from {GRID_SEED}"
        self.scratch = Scratch("tensorboard")
        self.tensorboard = SummaryWriter(self.scratch.name)
        self.report = Report(run, job.total)
        if not self.ticks:
            run.write("reals.png", images.encode(self._grid(self.real)))

    def tick(self, training: Training, seen: int, scalars: dict[str, float]) -> str:
        """Measure, draw and save after `seen` images. Returns a note for the progress line.

        Raises: NonFiniteError, with nothing written, if a value to be published or compared is not finite.
        """
        model = Model(*training.export(), self.classes, {**self.job.provenance, "images": seen})
        for name, network in (("average", model.generator), ("discriminator", model.discriminator)):
            check_weights({f"exported {name}.{key}": value for key, value in network.state_dict().items()}, seen)
        fake, measured = self._measure(model)
        scalars = {**scalars, **measured, **_memory()}
        check_finite(scalars, seen)
        grid = self._grid(fake)
        self.run.write(f"grids/{seen:012d}.png", images.encode(grid))
        self.ticks.append({"images": seen, **scalars, "protocol": self.protocol})
        self._write_curves(seen, scalars, grid, training.logits)
        self._keep_best(model, seen, scalars["kernel_distance"])
        # After a crash before the checkpoint, the whole tick is made again with the same result.
        run_store.write_stats(self.run, self.ticks)
        self.save(training, seen)
        self.report.tick(self.ticks)
        return f"D {scalars['loss_d']:.2f}, G {scalars['loss_g']:.2f}, distance {scalars['kernel_distance']:.4f}"

    def save(self, training: Training, seen: int, history: dict[str, Tensor] | None = None) -> None:
        """Commit a checkpoint; between two ticks with the `history` of the steps since the last tick."""
        checkpoints.save(self.run, seen, training.state(), self.job.keep, history)
        self.saved = seen

    def close(self) -> None:
        """Remove the temporary files on this machine."""
        self.tensorboard.close()
        self.scratch.cleanup()

    def warnings(self) -> tuple[str, ...]:
        """The warnings from the ticks so far."""
        return tuple(diagnostics.warnings(self.ticks, self.job.method.loss))

    def last_good(self) -> str:
        """The last good checkpoint, for the message of a run that had to stop."""
        return f"last good checkpoint: {self.saved:,} images in {self.run}" if self.saved else "no checkpoint yet"

    def _measure(self, model: Model) -> tuple[np.ndarray, dict[str, float]]:
        """images_NHWC of the fixed latents, and the tick metrics of them."""
        labels = self.labels if self.classes else None
        seeds = range(GRID_SEED, GRID_SEED + len(self.real))
        fake = Sampler(model, self.job.arithmetic, _SAMPLE_BATCH).sample(seeds, labels).images_NHWC
        return fake, self.metric.measure(fake, labels)

    def _keep_best(self, model: Model, seen: int, distance: float) -> None:
        """Publish the model if it is the best so far."""
        if not run_store.replaces_best(distance, seen, self.protocol, run_store.read_best(self.run)):
            return
        name = f"models/{seen:012d}"
        model_store.save(replace(model, calibration=self._calibration(model)), self.run / name)
        best_now = {"model": name, "images": seen, "metric": "kernel_distance", "value": distance}
        run_store.write_best(self.run, {**best_now, "protocol": self.protocol})

    def _open_holdout(self, root: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """The real images and labels that calibrate the score, and the facts about them that a model states."""
        if self.job.holdout is None:
            return self.real, self.labels, {"root": root, "images": len(self.real), "trained_on": True}
        folder = Folder(self.job.holdout)
        index = reader.open_sealed(folder)
        real, labels = first_images(folder, index, self.job.metric_images)
        return real, labels, {"root": index.root, "images": len(real), "trained_on": False}

    def _calibration(self, model: Model) -> dict[str, Any] | None:
        """What makes the model's logits probabilities; None if they are higher for fakes, or too few were measured."""
        real, label_N, facts = self.holdout
        labels = label_N if self.classes else None
        sampler = Sampler(model, self.job.arithmetic, _SAMPLE_BATCH)
        fake = sampler.sample(range(CALIBRATION_SEED, CALIBRATION_SEED + len(real)), labels)
        try:
            fit = calibration.calibrate(sampler.score(real, labels), fake.logits_N, 0)
        except CalibrationError:
            return None
        return {**asdict(fit), "real": facts}

    def _write_curves(
        self, seen: int, scalars: dict[str, float], grid: np.ndarray, logits: tuple[Tensor, Tensor]
    ) -> None:
        """Add to TensorBoard's event file, and copy it to the run."""
        for name, value in scalars.items():
            self.tensorboard.add_scalar(name, value, seen)
        for name, logits_B in zip(("real", "fake"), logits, strict=True):
            self.tensorboard.add_histogram(f"logits/{name}", logits_B.float().cpu(), seen)
        self.tensorboard.add_image("samples", grid, seen, dataformats="HWC")
        self.tensorboard.flush()
        for file in Path(self.scratch.name).iterdir():
            self.run.write(f"tensorboard/{file.name}", file.read_bytes())

    def _grid(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures as a grid: a row a class (the first ten), or ten rows."""
        if self.classes is None:
            starts = range(0, min(len(pictures), GRID_COLUMNS**2), GRID_COLUMNS)
            rows = [list(pictures[start : start + GRID_COLUMNS]) for start in starts]
        else:
            labels = range(min(len(self.classes), 10))
            rows = [list(pictures[self.labels == label][:GRID_COLUMNS]) for label in labels]
        return images.grid([row for row in rows if row], images.grid_scale(self.job.network.image_size))


def first_images(data: Folder, index: layout.Index, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The dataset's first images and labels. Ingest deals images in random order, so they are a fair sample."""
    found: list[np.ndarray] = []
    labels: list[int] = []
    for record in index.shards:
        for sample in reader.samples(data, index, record):
            found.append(reader.pixels(data, index, sample))
            labels.append(sample.label or 0)
            if len(found) == count:
                return np.stack(found), np.array(labels, np.int64)
    return np.stack(found), np.array(labels, np.int64)


def _memory() -> dict[str, float]:
    """The peak memory of this rank so far, in MiB, and that of its GPU."""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # macOS counts bytes, Linux KiB
    peak = {"memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if torch.cuda.is_available():
        peak["gpu_memory_mib"] = torch.cuda.max_memory_allocated() / (1 << 20)
    return peak
