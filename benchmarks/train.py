#!/usr/bin/env python3
"""How fast a training step is: against the loop that everybody knows, against no data to read, and on two workers.

dcgan64 at width 64, batch 128. Each way has a process of its own, which waits while the others have their turn:
  ours     Training.step, fed by our loader from a sealed dataset, in the precision that this machine is fast in
  memory   the same process and networks, on one batch that stays in memory
  float32  ours in float32
  loop     the well-known PyTorch example, written anew: float32, NCHW, the discriminator forward and backward on the
           real and then on the fake batch, two losses read each step, ImageFolder with Pillow in two worker processes
  ranks    a worker a core, of one thread each, who share the batch and average gradients by gloo (DDP), from memory

A rate is taken from the wall clock; on a machine that others use, look at the CPU seconds of one thread too:

    python benchmarks/train.py                               # on pictures made on the spot
    python benchmarks/train.py --images twemoji64.zip --json train.json
    python benchmarks/train.py --cores 1                     # one thread: CPU seconds that waiting cannot blur
    python benchmarks/train.py --beside 1                    # each turn once more beside a process that is always busy
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import busy
import cv2
import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from dcgan import numerics
from dcgan.families import registry
from dcgan.families.family import FamilyConfig
from dcgan.training.configuration import MethodConfig
from dcgan.training.step import Training
from jobs.cluster.process import keep_freed_memory
from jobs.training import checkpoints
from pipelines.dataset import reader
from pipelines.loading import loader, order
from pipelines.storage.folder import Folder

BATCH = 128
ROOT = Path(__file__).resolve().parent.parent
NETWORK = registry.configure("dcgan", {"image_size": 64, "channels": 3, "width": 64})


@dataclass(frozen=True, slots=True)
class Place:
    """Where the same pictures lie twice: as files in folders, and as a sealed dataset. And how to compute."""

    path: Path
    threads: int
    precision: str = "auto"
    rank: int = 0
    world: int = 1

    @property
    def files(self) -> Path:
        return self.path / "files"

    @property
    def data(self) -> Folder:
        return Folder(str(self.path / "dataset"))


@dataclass(frozen=True, slots=True)
class Took:
    """What some steps took."""

    seconds: float
    cpu: float
    faults: int


class Way(Protocol):
    def steps(self, count: int, memory: bool = False) -> Took: ...


class Ours:
    """One rank of a training, as jobs/training/loop.py sets it up."""

    def __init__(self, place: Place, network: FamilyConfig = NETWORK) -> None:
        torch.set_num_threads(place.threads)
        keep_freed_memory()
        if place.world > 1:
            meet = f"file://{place.path / 'meet'}"
            torch.distributed.init_process_group("gloo", meet, rank=place.rank, world_size=place.world)
        chosen = numerics.choose(place.precision, "cpu")
        self.training = Training(network, MethodConfig(), chosen, 0, place.world)
        index = reader.open_sealed(place.data)
        plan = order.make_plan(tuple(record.samples for record in index.shards), BATCH, 16_384, 0)
        self.epoch = plan.steps_per_epoch
        share = BATCH // place.world
        rng = np.random.default_rng(0)
        shape = (share, network.image_size, network.image_size, network.channels)
        self.kept = loader.Batch(rng.integers(0, 256, shape, np.uint8), np.zeros(share, np.int64), place.rank * share)
        self.batches = loader.batches(place.data, index, plan, 0, 1, 0)
        self.seen = 0

    def steps(self, count: int, memory: bool = False) -> Took:
        def step() -> None:
            batch = self.kept if memory else next(self.batches)
            self.training.step(batch.images_BHWC, batch.labels_B, self.seen, batch.first, BATCH)
            self.seen += BATCH

        return _timed(step, count)

    def checkpoint(self, path: Path) -> tuple[float, float]:
        """Seconds that committing one to a local disk takes, and its megabytes."""
        state = self.training.state()
        start = time.perf_counter()
        checkpoints.save(Folder(str(path)), self.seen, state, 1)
        return time.perf_counter() - start, sum(value.nbytes for value in state.values()) / 1e6


class Loop:
    """The loop of PyTorch's DCGAN tutorial and examples/dcgan: what it does, none of its text."""

    def __init__(self, place: Place) -> None:
        torch.set_num_threads(place.threads)
        prepare = [transforms.Resize(64), transforms.CenterCrop(64), transforms.ToTensor()]
        prepare += [transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]
        folder = ImageFolder(str(place.files), transform=transforms.Compose(prepare))
        self.loader = DataLoader(folder, BATCH, shuffle=True, num_workers=2, drop_last=True)
        self.batches = self._batches()
        ups: list[nn.Module] = []
        for wide, narrow, stride, padding in ((100, 512, 1, 0), (512, 256, 2, 1), (256, 128, 2, 1), (128, 64, 2, 1)):
            ups += [nn.ConvTranspose2d(wide, narrow, 4, stride, padding, bias=False), nn.BatchNorm2d(narrow)]
            ups += [nn.ReLU(inplace=True)]
        self.generator = nn.Sequential(*ups, nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), nn.Tanh())
        downs: list[nn.Module] = [nn.Conv2d(3, 64, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
        for narrow, wide in pairwise((64, 128, 256, 512)):
            downs += [nn.Conv2d(narrow, wide, 4, 2, 1, bias=False), nn.BatchNorm2d(wide)]
            downs += [nn.LeakyReLU(0.2, inplace=True)]
        self.discriminator = nn.Sequential(*downs, nn.Conv2d(512, 1, 4, 1, 0, bias=False), nn.Sigmoid())
        self.adams = [
            torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999))
            for network in (self.generator, self.discriminator)
        ]
        self.loss = nn.BCELoss()

    def steps(self, count: int, memory: bool = False) -> Took:
        return _timed(self._step, count)

    def _step(self) -> None:
        adam_g, adam_d = self.adams
        self.discriminator.zero_grad()
        real = self._judge(next(self.batches), 1.0)
        real.backward()
        made = self.generator(torch.randn(BATCH, 100, 1, 1))
        fake = self._judge(made.detach(), 0.0)
        fake.backward()
        adam_d.step()
        self.generator.zero_grad()
        fooled = self._judge(made, 1.0)
        fooled.backward()
        adam_g.step()
        (real + fake).item(), fooled.item()

    def _judge(self, images: Tensor, target: float) -> Tensor:
        loss: Tensor = self.loss(self.discriminator(images).view(-1), torch.full((BATCH,), target))
        return loss

    def _batches(self) -> Iterator[Tensor]:
        while True:
            for images, _ in self.loader:
                yield images


class Turns:
    """One way in processes of its own, a rank each, that live from its first turn to the end."""

    def __init__(self, way: Callable[[Place], Way], places: list[Place]) -> None:
        context = get_context("spawn")
        self.processes = [
            ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(way, place)) for place in places
        ]

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return [future.result() for future in [one.submit(_call, method, arguments) for one in self.processes]]

    def steps(self, count: int, memory: bool = False) -> Took:
        ranks: list[Took] = self.call("steps", count, memory)
        return max(ranks, key=lambda took: took.seconds)


_here: dict[str, Any] = {}


def _begin(way: Callable[[Place], Way], place: Place) -> None:
    _here["way"] = way(place)


def _call(method: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_here["way"], method)(*arguments)


def _timed(step: Callable[[], None], count: int) -> Took:
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return Took(seconds / count, cpu / count, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) // count)


def _memory_over_epochs(place: Place, epochs: int) -> tuple[float, float]:
    """This process's own memory in MB after the second epoch and after the last; networks of width 4."""
    ours, own = Ours(place, replace(NETWORK, width=4)), []
    for _ in range(max(2, epochs)):
        ours.steps(ours.epoch)
        own.append(psutil.Process().memory_full_info().uss / 1e6)
    return own[1], own[-1]


def _alone(call: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(call, *arguments).result()


def _prepare(place: Place, source: Path | None) -> None:
    """The pictures as files, and ingested."""
    if source is None:
        rng = np.random.default_rng(0)
        (place.files / "made").mkdir(parents=True)
        for number in range(2048):
            picture = cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(place.files / "made" / f"{number}.png"), picture)
    elif source.is_dir():
        place.files.symlink_to(source.resolve())
    else:
        with zipfile.ZipFile(source) as archive:
            archive.extractall(place.files)
    command = [sys.executable, str(ROOT / "jobs" / "ingest.py"), "--source", str(place.files)]
    command += ["--output", place.data.url, "--image-size", "64"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _ways(place: Place) -> tuple[Turns, dict[str, Callable[[int], Took]]]:
    """The processes of ours, which can also commit a checkpoint, and the ways by name. All are warm."""
    ours = Turns(Ours, [place])
    ways: dict[str, Callable[[int], Took]] = {
        "ours": ours.steps,
        "memory": lambda count: ours.steps(count, True),
        "float32": Turns(Ours, [replace(place, precision="fp32")]).steps,
        "loop": Turns(Loop, [place]).steps,
    }
    if place.threads > 1:
        places = [replace(place, threads=1, rank=rank, world=place.threads) for rank in range(place.threads)]
        ranks = Turns(Ours, places)
        ways["ranks"] = lambda count: ranks.steps(count, True)
    for steps in ways.values():
        steps(2)  # kernels are chosen, memory is taken, the loaders run ahead
    return ours, ways


def _rounds(ways: dict[str, Callable[[int], Took]], arguments: argparse.Namespace) -> dict[str, list[Took]]:
    """What each way took, a turn a round; with --beside each turn once more beside busy processes."""
    took: dict[str, list[Took]] = {}
    for number in range(arguments.rounds):
        for name, steps in ways.items():
            took.setdefault(name, []).append(steps(arguments.steps))
            if arguments.beside:
                with busy.processes(arguments.beside):
                    took.setdefault(f"{name} beside {arguments.beside}", []).append(steps(arguments.steps))
        line = ", ".join(f"{name} {BATCH / turns[-1].seconds:,.1f}" for name, turns in took.items())
        print(f"round {number + 1}, img/s: {line}", flush=True)
    return took


def _ratios(took: dict[str, list[Took]], beside: int) -> dict[str, float]:
    """The median over rounds of how much longer the second way took than the first."""

    def ratio(name: str, other: str, what: str = "seconds") -> float:
        pairs = zip(took[name], took[other], strict=True)
        return statistics.median(getattr(b, what) / getattr(a, what) for a, b in pairs)

    ratios = {
        "ours/loop": ratio("ours", "loop"),
        "ours/loop, CPU": ratio("ours", "loop", "cpu"),
        "float32/loop": ratio("float32", "loop"),
        "float32/loop, CPU": ratio("float32", "loop", "cpu"),
        "ours/memory, time a step": ratio("memory", "ours"),
        "ours/memory, CPU a step": ratio("memory", "ours", "cpu"),
    }
    if "ranks" in took:
        ratios["ranks/memory"] = ratio("ranks", "memory")
    suffix = f" beside {beside}"
    beside_names = [name for name in took if name.endswith(suffix)]
    return ratios | {f"{name}/alone": ratio(name, name.removesuffix(suffix)) for name in beside_names}


def _figures(took: dict[str, list[Took]]) -> dict[str, float]:
    figures = {f"{name} img/s": BATCH / statistics.median(t.seconds for t in turns) for name, turns in took.items()}
    figures |= {f"{name} CPU s a step": statistics.median(t.cpu for t in turns) for name, turns in took.items()}
    return figures | {
        f"{name} page faults a step": statistics.median(t.faults for t in turns) for name, turns in took.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a zip or a folder of pictures, a folder a class; else made here")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="threads; with 1, no ranks")
    parser.add_argument("--steps", type=int, default=8, help="in a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12, help="over which memory is watched; at least 2")
    parser.add_argument("--beside", type=int, default=0, help="each turn once more beside so many busy processes")
    parser.add_argument("--json", type=Path, help="write ratios and figures here")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands have it; the processes of all ways inherit it
    with tempfile.TemporaryDirectory(prefix="ganmill-bench-") as scratch:
        place = Place(Path(scratch), arguments.cores)
        _prepare(place, arguments.images)
        ours, ways = _ways(place)
        took = _rounds(ways, arguments)
        (checkpoint,) = ours.call("checkpoint", place.path / "run")
        early, late = _alone(_memory_over_epochs, place, arguments.epochs)
    ratios = _ratios(took, arguments.beside)
    ratios[f"memory in use, epoch {arguments.epochs}/epoch 2"] = late / early
    figures = _figures(took)
    figures |= {"checkpoint s": checkpoint[0], "checkpoint MB": checkpoint[1], "memory in use MB": late}
    print(f"\nratio (median of the rounds), {arguments.cores} cores, {numerics.choose('auto', 'cpu').dtype_name}")
    for name, value in ratios.items():
        print(f"  {name:45}{value:10.3f}")
    print("figure")
    for name, value in figures.items():
        print(f"  {name:45}{value:10,.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"ratios": ratios, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
