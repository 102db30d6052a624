"""What runs on each training worker: the loop, and what rank 0 writes at every tick."""

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train.torch import get_device
from torch.utils.tensorboard import SummaryWriter

from dcgan import metrics
from dcgan.arithmetic import Arithmetic
from dcgan.model_files import Model
from dcgan.networks import NetworkConfig
from dcgan.sampling import Sampler
from dcgan.training import MethodConfig, NonFiniteError, Training, check_finite
from jobs import models, monitoring, runs, symptoms
from jobs.board import Post
from jobs.cluster import keep_freed_memory
from jobs.scratch import Scratch
from pipelines import dataset, images, loader, selection
from pipelines.order import Plan
from pipelines.storage import Folder

POST_EVERY_S = 1.0
LOOK_EVERY_S = 2.0  # for a node that is to be taken away: clouds give 30 s or more
GRID_COLUMNS = 10
GRID_SEED = 2**62  # far from the seeds that people generate from


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """All that a worker needs to know."""

    data: str
    selection: str | None
    run: str
    network: NetworkConfig
    method: MethodConfig
    plan: Plan
    arithmetic: Arithmetic
    total: int
    tick: int
    keep: int
    metric_images: int
    threads: int
    provenance: dict[str, Any]


def train(config: dict[str, Any]) -> None:
    """One rank, from the newest checkpoint to the end. `config` holds `job` and the driver's `board`."""
    job: Job = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if job.arithmetic.device == "cuda":
        torch.cuda.set_device(get_device())
    else:
        torch.set_num_threads(job.threads)
        keep_freed_memory()
    run, data = Folder(job.run), Folder(job.data)
    index = selection.open_through(data, job.selection)
    training = Training(job.network, job.method, job.arithmetic, job.plan.seed, world)
    checkpoint = runs.newest(run)
    seen = 0
    if checkpoint is not None:
        training.load_state(checkpoint.state)
        seen = checkpoint.images
    recorder = Recorder(job, run, data, index, seen) if rank == 0 else None
    if rank == 0 and ray.get(config["board"].started.remote()) > 1:
        monitoring.RESTARTS.inc(1, {"worker": "train"})

    history: list[dict[str, torch.Tensor]] = []
    waited, since = 0.0, time.monotonic()
    posted = since
    batches = loader.batches(data, index, job.plan, rank, world, seen // job.plan.batch)
    notice = Notice()
    while seen < job.total:
        before = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - before
        history.append(training.step(batch.images_BHWC, batch.labels_B, seen, batch.first, job.plan.batch))
        seen += job.plan.batch
        if notice.given() and recorder is not None:
            recorder.save(training, seen)
            config["board"].write.remote(Post(seen, "a node is to be taken away: checkpoint saved", ""))
        if rank == 0 and time.monotonic() - posted > POST_EVERY_S:
            posted = time.monotonic()
            config["board"].write.remote(Post(seen, _note(history), ""))
        if seen // job.tick == (seen - job.plan.batch) // job.tick and seen < job.total:
            continue
        # A tick: every rank has taken the same steps, so that each of them comes here.
        seconds = time.monotonic() - since
        error = _first_bad(history, seen - len(history) * job.plan.batch, job.plan.batch)
        if _any_rank(bool(error)):
            if recorder is not None:
                config["board"].write.remote(
                    Post(seen, "", f"{error or 'a loss is not finite'}; {recorder.last_good()}")
                )
            break
        if recorder is not None:
            scalars = {name: float(np.mean([float(step[name]) for step in history])) for name in history[0]}
            scalars["images_per_second"] = len(history) * job.plan.batch / seconds
            scalars["data_wait_share"] = waited / seconds
            note = recorder.tick(training, seen, scalars)
            monitoring.IMAGES.inc(len(history) * job.plan.batch, {"command": "train"})
            monitoring.tick(recorder.ticks[-1])
            config["board"].write.remote(Post(seen, note, "", recorder.warnings()))
        ray.train.report({"images": seen})  # also a barrier: no rank runs ahead of a checkpoint
        history, waited, since = [], 0.0, time.monotonic()
    batches.close()
    if recorder is not None:
        recorder.close()


class Notice:
    """Looks every few seconds whether a node is about to be taken away (Ray Train's preemption info).

    Ray's answer is a collective, so all ranks must look after the same steps: they agree on how many by the slowest.
    """

    def __init__(self) -> None:
        self._every = self._left = 1
        self._since = time.monotonic()
        self._given = False

    def given(self) -> bool:
        """To be called after every step. True once, when the first notice has come: then there is time for one save."""
        self._left -= 1
        if self._left or self._given:
            return False
        seconds = _largest((time.monotonic() - self._since) / self._every)
        self._every = self._left = max(1, round(LOOK_EVERY_S / seconds))
        self._since = time.monotonic()
        self._given = ray.train.get_preemption_info() is not None
        return self._given


class Recorder:
    """What rank 0 keeps of a run: statistics, pictures, the checkpoint, the model and which one is best."""

    def __init__(self, job: Job, run: Folder, data: Folder, index: dataset.Index, seen: int) -> None:
        self.job, self.run, self.classes = job, run, index.classes if job.network.num_classes else None
        # A run that was interrupted wrote ticks after its last checkpoint; they will be made again.
        self.ticks = [tick for tick in runs.read_stats(run) if tick["images"] <= seen]
        self.saved = seen
        self.real, self.labels = _first_images(data, index, job.metric_images)
        self.features = metrics.RandomFeatures(job.network.channels)
        self.real_features = self.features(self.real)
        self.protocol = f"{metrics.PROTOCOL}; {len(self.real)} real and as many fake, seeds from {GRID_SEED}"
        self.scratch = Scratch("tensorboard")
        self.board = SummaryWriter(self.scratch.name)
        if not self.ticks:
            rows = _rows(self.real, self.labels, self.classes)
            run.write("reals.png", images.encode(images.grid(rows, scale=_scale(job))))

    def tick(self, training: Training, seen: int, scalars: dict[str, float]) -> str:
        """Measure, draw and save after `seen` images. Returns a few words on how it goes."""
        model = Model(*training.export(), self.classes, self._provenance(seen))
        sampler = Sampler(model, self.job.arithmetic, 128)
        labels = self.labels if self.classes else None
        fake = sampler.sample(range(GRID_SEED, GRID_SEED + len(self.real)), labels)
        fake_features = self.features(fake.images_NHWC)
        distance = metrics.kernel_distance(self.real_features, fake_features)
        label_N = None if labels is None else torch.from_numpy(labels)
        diversity = metrics.diversity(self.real_features, fake_features, label_N)
        scalars = {**scalars, "kernel_distance": distance, "diversity": diversity, **_memory()}
        rows = _rows(fake.images_NHWC, self.labels, self.classes)
        grid = images.grid(rows, scale=_scale(self.job))
        self.run.write(f"grids/{seen:012d}.png", images.encode(grid))
        self.ticks.append({"images": seen, **scalars, "protocol": self.protocol})
        self._curves(seen, scalars, grid, training.logits)
        self._keep_best(model, seen, distance)
        # The checkpoint last: a crash before it makes the whole tick again, to the same result.
        runs.write_stats(self.run, self.ticks)
        self.save(training, seen)
        return f"D {scalars['loss_d']:.2f}, G {scalars['loss_g']:.2f}, distance {distance:.4f}"

    def save(self, training: Training, seen: int) -> None:
        """Commit a checkpoint."""
        runs.save(self.run, seen, training.state(), self.job.keep)
        self.saved = seen

    def close(self) -> None:
        """Leave nothing on this machine."""
        self.board.close()
        self.scratch.cleanup()

    def warnings(self) -> tuple[str, ...]:
        """What looks wrong by the ticks so far."""
        return tuple(symptoms.warnings(self.ticks, self.job.method.loss))

    def last_good(self) -> str:
        """Where to go back to, for the message of a run that had to stop."""
        return f"last good checkpoint: {self.saved:,} images in {self.run}" if self.saved else "no checkpoint yet"

    def _provenance(self, seen: int) -> dict[str, Any]:
        return {**self.job.provenance, "images": seen}

    def _keep_best(self, model: Model, seen: int, distance: float) -> None:
        """Publish the model if none was better, and drop the one that it replaces."""
        best = runs.read_best(self.run)
        if best is not None and best["images"] < seen and best["value"] <= distance:
            return
        name = f"models/{seen:012d}"
        models.save(model, self.run / name)
        best_now = {"model": name, "images": seen, "metric": "kernel_distance", "value": distance}
        runs.write_best(self.run, {**best_now, "protocol": self.protocol})
        if best is not None and best["model"] != name:
            runs.delete(self.run, best["model"], models.FILES)

    def _curves(
        self, seen: int, scalars: dict[str, float], grid: np.ndarray, logits: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        """TensorBoard's event file, copied to the run as it grows."""
        for name, value in scalars.items():
            self.board.add_scalar(name, value, seen)
        for name, logits_B in zip(("real", "fake"), logits, strict=True):
            self.board.add_histogram(f"logits/{name}", logits_B.float().cpu(), seen)
        self.board.add_image("samples", grid, seen, dataformats="HWC")
        self.board.flush()
        for file in Path(self.scratch.name).iterdir():
            self.run.write(f"tensorboard/{file.name}", file.read_bytes())


def _first_images(data: Folder, index: dataset.Index, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The dataset's first images and labels: ingest deals them in random order, so they are a fair sample."""
    found: list[np.ndarray] = []
    labels: list[int] = []
    for record in index.shards:
        for sample in dataset.samples(data, index, record):
            found.append(images.decode(sample.image, index.image_shape[2]))
            labels.append(sample.label or 0)
            if len(found) == count:
                return np.stack(found), np.array(labels, np.int64)
    return np.stack(found), np.array(labels, np.int64)


def _rows(pictures: np.ndarray, labels: np.ndarray, classes: list[str] | None) -> list[list[np.ndarray]]:
    """Pictures for a grid: a row a class (the first ten), or ten rows."""
    if classes is None:
        return [list(pictures[i : i + GRID_COLUMNS]) for i in range(0, min(len(pictures), 100), GRID_COLUMNS)]
    rows = [list(pictures[labels == label][:GRID_COLUMNS]) for label in range(min(len(classes), 10))]
    return [row for row in rows if row]


def _memory() -> dict[str, float]:
    """The most memory that this rank has held so far, in MiB, and on its GPU."""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # macOS counts bytes, Linux KiB
    held = {"memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if torch.cuda.is_available():
        held["gpu_memory_mib"] = torch.cuda.max_memory_allocated() / (1 << 20)
    return held


def _scale(job: Job) -> int:
    return max(1, 64 // job.network.image_size)


def _note(history: list[dict[str, torch.Tensor]]) -> str:
    last = history[-1]
    return f"D {float(last['loss_d']):.2f}, G {float(last['loss_g']):.2f}"


def _first_bad(history: list[dict[str, torch.Tensor]], start: int, batch: int) -> str:
    """The first step whose losses are not finite, in words; looked for once a tick, so that no step waits for a GPU."""
    for number, step in enumerate(history):
        try:
            check_finite({name: float(step[name]) for name in ("loss_d", "loss_g")}, start + (number + 1) * batch)
        except NonFiniteError as error:
            return f"step {start // batch + number + 1}: {error}"
    return ""


def _any_rank(flag: bool) -> bool:
    """Whether any rank has the flag up, so that all of them stop together."""
    return _largest(float(flag)) > 0.0


def _largest(value: float) -> float:
    """The largest of the ranks' values, the same float on each of them."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return value
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    values = torch.tensor([value], device=device, dtype=torch.float64)
    torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
    return float(values.item())
