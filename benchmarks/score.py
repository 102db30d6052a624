#!/usr/bin/env python3
"""How well the discriminator's logit separates images that it has not seen from fakes, and what would separate better.

python benchmarks/score.py --data D/mnist --holdout D/mnist-test --images 3e5 --keep D/score --json score.json

Trains with the project's own step in one process, without Ray, and keeps the networks in `--keep`, so that a second
start only measures. Then the area under the ROC curve of holdout images, and of training images, against as many fakes
of the exported generator, all of 8 bits: for the last discriminator, for averages of its weights, for those of earlier
ticks, each with the batch statistics of training and with statistics taken anew on half real and half fake images; and
for the last one after it was trained on against the exported generator alone.
"""

import argparse
import copy
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from dcgan import model_files, numerics
from dcgan.evaluation import calibration
from dcgan.families import registry
from dcgan.families.networks import Discriminator
from dcgan.model_files import Model
from dcgan.sampling.sampler import Sampler
from dcgan.training import continued
from dcgan.training.step import Training
from jobs.cluster.process import keep_freed_memory
from jobs.training import recorder
from jobs.training.settings import TrainSettings
from pipelines.dataset import reader
from pipelines.loading import loader, order
from pipelines.storage.folder import Folder

DECAYS = (0.9, 0.99, 0.999)  # of the averaged discriminators, a step; at first step / (step + 9), as the generator's
TICKS = 6
FAKE_SEED, STATISTICS_SEED, TRAINING_SEED = 0, 2**40, 2**41  # far from one another
BATCH = 128
State = dict[str, Tensor]


class Run:
    """A training, its data, and the states of discriminators that it left."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.data, self.keep, self.images = Folder(arguments.data), Path(arguments.keep), arguments.images
        self.index = reader.open_sealed(self.data)
        self.settings = TrainSettings(**TrainSettings.preset({"recipe": arguments.recipe}))
        self.network = self.settings.networks(self.index.classes)
        self.method = self.settings.method()
        self.training = Training(self.network, self.method, numerics.choose("auto", "cpu"), arguments.seed)

    def batches(self, seed: int) -> Iterator[loader.Batch]:
        counts = tuple(record.samples for record in self.index.shards)
        plan = order.make_plan(counts, self.settings.batch_size, self.settings.shuffle, seed)
        return loader.batches(self.data, self.index, plan, 0, 1, 0)

    def discriminators(self) -> dict[str, State]:
        """The states by name, from `--keep` or from a training now."""
        if not (self.keep / "training.safetensors").exists():
            self._train()
        self.training.load_state(_load(self.keep / "training.safetensors"))
        return {path.stem: _load(path) for path in sorted(self.keep.glob("discriminator *.safetensors"), reverse=True)}

    def network_of(self, state: State | None = None) -> Discriminator:
        """A discriminator with these weights."""
        _, discriminator = registry.build(self.network)
        discriminator.load_state_dict(state or discriminator.state_dict())
        return discriminator

    def _train(self) -> None:
        self.keep.mkdir(parents=True, exist_ok=True)
        current, batch = self.training.discriminator, self.settings.batch_size
        averages = {decay: copy.deepcopy(current).requires_grad_(False) for decay in DECAYS}
        steps = self.images // batch
        for step, one in enumerate(islice(self.batches(self.training.seed), steps), 1):
            scalars = self.training.step(one.images_BHWC, one.labels_B, (step - 1) * batch)
            for decay, average in averages.items():
                _average(average, current, min(decay, step / (9 + step)))
            if step * TICKS // steps != (step - 1) * TICKS // steps:
                name = f"discriminator after {step * batch:09,}"
                if step < steps:
                    _save(self.keep / f"{name}.safetensors", current.state_dict())
                print(name, {key: round(float(value), 3) for key, value in scalars.items()}, flush=True)
        for decay, average in averages.items():
            _save(self.keep / f"discriminator averaged {decay}.safetensors", average.state_dict())
        _save(self.keep / "discriminator last.safetensors", current.state_dict())
        _save(self.keep / "training.safetensors", self.training.state())


class Images:
    """Holdout images, training images and fakes, as many of each class, and the discriminators' logits of them."""

    def __init__(self, run: Run, holdout: Folder, count: int) -> None:
        self.run = run
        self.generator, _ = run.training.export()
        self.sets = {"holdout": _first(holdout, count), "training": _first(run.data, count)}
        self.fake = {name: self.fakes(labels_N, FAKE_SEED) for name, (_, labels_N) in self.sets.items()}

    def fakes(self, labels_N: np.ndarray, seed: int) -> np.ndarray:
        """images_NHWC of the exported generator."""
        sampler = self.sampler(self.run.network_of())
        labels = labels_N if self.run.network.num_classes else None
        return sampler.sample(range(seed, seed + len(labels_N)), labels).images_NHWC

    def sampler(self, discriminator: Discriminator) -> Sampler:
        """The exported generator and this discriminator."""
        return Sampler(Model(self.generator, discriminator.eval(), None, {}), self.run.training.arithmetic, BATCH)

    def areas(self, discriminator: Discriminator) -> dict[str, float]:
        """The area under the ROC curve of each set of real images against its fakes."""
        sampler = self.sampler(discriminator)
        found = {}
        for name, (images_NHWC, labels_N) in self.sets.items():
            labels = labels_N if self.run.network.num_classes else None
            logits = [sampler.score(one, labels) for one in (images_NHWC, self.fake[name])]
            found[name] = calibration.area(*logits)
        return found

    def halves(self, seed: int) -> Iterator[continued.Batch]:
        """Training images, fresh fakes of the same classes, and the labels."""
        size = continued.HALF
        for n, one in enumerate(self.run.batches(seed)):
            fake_BHWC = self.fakes(one.labels_B, seed + n * len(one.labels_B))
            for start in range(0, len(one.labels_B) - size + 1, size):
                rows = slice(start, start + size)
                yield one.images_BHWC[rows], fake_BHWC[rows], one.labels_B[rows]

    def trained_on(self, state: State, seen: int) -> Discriminator:
        """The discriminator after `seen` more real images, and as many fakes of the exported generator."""
        steps, batches = seen // continued.HALF, self.halves(TRAINING_SEED)
        return continued.train_on(self.run.network_of(state), batches, steps, self.run.training.arithmetic)

    def with_new_statistics(self, state: State) -> Discriminator:
        discriminator = self.run.network_of(state)
        update_bn(islice(self._mixed(), 64), _Unpacked(discriminator))
        return discriminator

    def _mixed(self) -> Iterator[tuple[tuple[Tensor, Tensor | None]]]:
        for real_BHWC, fake_BHWC, label_B in self.halves(STATISTICS_SEED):
            labels = torch.from_numpy(np.tile(label_B, 2)) if self.run.network.num_classes else None
            yield ((_scaled(np.concatenate([real_BHWC, fake_BHWC])), labels),)


class _Unpacked(nn.Module):
    """update_bn gives a network the first of what a batch holds; this one keeps the labels beside the images."""

    def __init__(self, discriminator: Discriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, batch: tuple[Tensor, Tensor | None]) -> Tensor:
        logit_B: Tensor = self.discriminator(*batch)
        return logit_B


@torch.no_grad()
def _average(average: Discriminator, current: Discriminator, decay: float) -> None:
    """Weights and batch statistics alike."""
    for old, new in zip(average.state_dict().values(), current.state_dict().values(), strict=True):
        old.lerp_(new, 1.0 - decay) if old.is_floating_point() else old.copy_(new)


def _first(folder: Folder, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a dataset, which are a fair sample: ingest deals them in random order."""
    return recorder.first_images(folder, reader.open_sealed(folder), count)


def _scaled(images_BHWC: np.ndarray) -> Tensor:
    return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _load(path: Path) -> State:
    return model_files.from_bytes(path.read_bytes())


def _save(path: Path, state: State) -> None:
    path.write_bytes(model_files.to_bytes(state))


def number(text: str) -> int:
    return int(float(text))


def parser(about: str | None) -> argparse.ArgumentParser:
    """The options of this script and of `selecting`."""
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", required=True, help="a sealed dataset of real images to train on")
    options.add_argument("--holdout", required=True, help="a sealed dataset of other real images")
    options.add_argument("--recipe", default="digits28", help="of jobs/train.py")
    options.add_argument("--images", type=number, default=300_000, help="to train on")
    options.add_argument("--measured", type=number, default=4000, help="images of each kind, at most")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--keep", required=True, help="a folder for the trained networks")
    options.add_argument("--json", type=Path, help="write the numbers here")
    return options


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--on", type=number, nargs="*", default=[20_000, 50_000], help="real images, further")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    run = Run(arguments)
    states = run.discriminators()
    images = Images(run, Folder(arguments.holdout), arguments.measured)
    found: dict[str, dict[str, float]] = {}

    def measure(name: str, discriminator: Discriminator) -> None:
        found[name] = images.areas(discriminator)
        print(f"{name:<56}{found[name]['holdout']:>9.3f}{found[name]['training']:>10.3f}", flush=True)

    sizes = " and ".join(f"{len(labels_N):,} {name}" for name, (_, labels_N) in images.sets.items())
    print(f"{run.images:,} images of {run.data}, recipe {arguments.recipe}; {sizes} images, as many fakes")
    print(f"{'area under the ROC curve':<56}{'holdout':>9}{'training':>10}")
    for name, state in states.items():
        measure(name, run.network_of(state))
        measure(f"{name}, statistics anew", images.with_new_statistics(state))
    for seen in arguments.on:
        discriminator = images.trained_on(states["discriminator last"], seen)
        measure(f"last, trained on with {seen:,} more", discriminator)
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name != "json"}
        ratios = {f"{name}: {of}": area for name, areas in found.items() for of, area in areas.items()}
        arguments.json.write_text(json.dumps({"ratios": ratios, "figures": settings}, indent=1))


if __name__ == "__main__":
    main()
