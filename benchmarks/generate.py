#!/usr/bin/env python3
"""How near generation is to the machine's limit, and how far ahead of what people write today.

Four ways to make the same images, alternating, a ratio a round:
  bare    one process, no Ray: the same networks, arithmetic, encoder, tar writer and part, on all cores
  ours    the job's own actors on Ray; start-up is reported apart
  loop    float32 NCHW, batch 64, generator then discriminator, one PNG file an image by torchvision's save_image
  stock   Ray Data as its documentation has it: range -> map_batches -> write_webdataset + write_parquet

    python benchmarks/generate.py --model ganmill-demo/run --json digits28.json
    python benchmarks/generate.py --shape dcgan64 --images 4e3        # random weights, width 64
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.utils import save_image

from dcgan import numerics
from dcgan.families import registry
from dcgan.families.registry import build
from dcgan.model_files import Model
from dcgan.sampling import latents
from dcgan.sampling.sampler import Sampler
from jobs.cluster import batch_plan, connection, process
from jobs.command import model_store
from jobs.generation.worker import GenerateShard, fingerprint
from pipelines import images
from pipelines.dataset import manifest, shards, writer
from pipelines.dataset.identity import from_json
from pipelines.dataset.shards import Sample
from pipelines.storage.folder import Folder

CORES = 2
BATCH = 128
SHAPES = {
    "digits28": registry.configure("cdcgan", {"image_size": 28, "channels": 1, "width": 64, "num_classes": 10}),
    "dcgan64": registry.configure("dcgan", {"image_size": 64, "channels": 3, "width": 64}),
}


class TimedShard(GenerateShard):
    """The job's worker, which also tells when it began and ended a shard."""

    def __call__(self, shard: int) -> dict[str, Any]:
        began = time.time()
        return {**super().__call__(shard), "began": began, "ended": time.time()}


class Bench:
    """One model, one place on the local disk, and the four ways to make images with it there."""

    def __init__(self, model: Model, place: Path, shard_size: int) -> None:
        self.model, self.place, self.shard_size = model, place, shard_size
        self.chosen = numerics.choose("auto", "cpu")
        self.source = Folder(str(place / "model"))
        self.digest = model_store.save(model, self.source)

    def _fresh(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.place)) / "output"

    def _claimed(self, count: int) -> Folder:
        """A fresh dataset, claimed and with its model."""
        folder, config = Folder(str(self._fresh())), self.model.config
        fields = {
            "producer": "generate",
            "model": self.digest,
            "seed_start": 0,
            "count": count,
            "shard_size": self.shard_size,
            "image": {"format": "png"},
            "image_size": config.image_size,
            "channels": config.channels,
            "classes": self.model.classes,
            "labels": {"cycle": list(range(config.num_classes))} if config.num_classes else None,
            "batch": BATCH,
            "arithmetic": fingerprint(self.chosen),
        }
        writer.claim(folder, from_json(fields), {})
        model_store.store_files(model_store.read(self.source)[1].files, folder / model_store.IN_DATASET)
        return folder

    def bare(self, count: int) -> float:
        worker = GenerateShard(self._claimed(count).url, self.chosen)
        process.keep_freed_memory()
        torch.set_num_threads(CORES)
        start = time.perf_counter()
        for shard in range(-(-count // self.shard_size)):
            worker(shard)
        return count / (time.perf_counter() - start)

    def ours(self, count: int) -> tuple[float, float]:
        """Images a second from the first shard's begin to the last one's end, and the seconds before that."""
        arguments = {"output": self._claimed(count).url, "chosen": self.chosen}
        start = time.time()
        numbers = range(-(-count // self.shard_size))
        done = list(batch_plan.map_shards(TimedShard, arguments, numbers, connection.Pool(CORES, 0.0)))
        assert not any(one.error for one in done), done[0].trace
        began = min(one.result["began"] for one in done)
        return count / (max(one.result["ended"] for one in done) - began), began - start

    @torch.no_grad()
    def loop(self, count: int) -> float:
        torch.set_num_threads(CORES)
        folder, config = self._fresh(), self.model.config
        folder.mkdir()
        generator = self.model.generator.to(memory_format=torch.contiguous_format)
        discriminator = self.model.discriminator.to(memory_format=torch.contiguous_format)
        start = time.perf_counter()
        for first in range(0, count, 64):
            labels = torch.randint(config.num_classes, (64,)) if config.num_classes else None
            fake = generator(torch.randn(64, config.z_dim), labels)
            discriminator(fake, labels)
            for n, image in enumerate(fake):
                save_image(image, folder / f"{first + n}.png", normalize=True, value_range=(-1, 1))
        return count / (time.perf_counter() - start)

    def stock(self, count: int) -> float:
        folder, url, chosen = self._fresh(), self.source.url, self.chosen

        class Map:
            def __init__(self) -> None:
                torch.set_num_threads(1)
                self.sampler = Sampler(model_store.load(Folder(url))[0], chosen, BATCH)

            def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
                seeds = batch["id"]
                classes = self.sampler.config.num_classes
                made = self.sampler.sample(range(seeds[0], seeds[-1] + 1), seeds % classes if classes else None)
                pixels = made.images_NHWC[..., 0] if self.sampler.config.channels == 1 else made.images_NHWC
                keys = [f"{seed:012d}" for seed in seeds]  # write_webdataset encodes what is named png
                return {"__key__": keys, "png": pixels, "seed": seeds, "logit": made.logits_N}

        start = time.perf_counter()
        # One actor: a pool that holds every CPU would leave none to the write operator, which then never starts.
        rows = ray.data.range(count, override_num_blocks=-(-count // 1000)).map_batches(
            Map, batch_size=1000, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1
        )
        rows = rows.materialize()
        rows.select_columns(["__key__", "png"]).write_webdataset(str(folder / "shards"))
        rows.drop_columns(["png"]).write_parquet(str(folder / "manifest"))
        return count / (time.perf_counter() - start)

    def networks(self) -> tuple[float, float]:
        """GFLOP/s of both networks as bare runs them, and of a matrix product of the same dtype, on all cores."""
        torch.set_num_threads(CORES)
        config = self.model.config
        label = torch.zeros(1, dtype=torch.long) if config.num_classes else None
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.model.discriminator(self.model.generator(torch.zeros(1, config.z_dim), label), label)
        sampler = Sampler(self.model, self.chosen, BATCH)
        z_BZ = latents.normal(0, BATCH, config.z_dim)
        labels_B = np.zeros(BATCH, np.int64) if config.num_classes else None
        rate = _per_second(lambda: sampler.decode(z_BZ, labels_B)) * BATCH
        a = torch.randn(2048, 2048).to(self.chosen.dtype)
        return rate * counter.get_total_flops() / 1e9, _per_second(lambda: a @ a) * 2 * 2048**3 / 1e9

    def parts(self) -> dict[str, float]:
        """Microseconds an image on one core, piece by piece."""
        torch.set_num_threads(1)
        count, config = 1024, self.model.config
        sampler = Sampler(self.model, self.chosen, BATCH)
        labels = np.arange(count) % config.num_classes if config.num_classes else None
        made = sampler.sample(range(count), labels)
        encoded = [images.encode(image) for image in made.images_NHWC]
        samples = [Sample(n, image, 0 if config.num_classes else None) for n, image in enumerate(encoded)]
        packed = shards.pack(samples, "png")
        extra = {"seed": np.arange(count), "logit": made.logits_N, "score": manifest.sigmoid(made.logits_N)}
        folder = Folder(str(self.place / "parts"))
        calls: dict[str, Callable[[], object]] = {
            "latents": lambda: latents.normal(0, count, config.z_dim),
            "networks, with latents": lambda: sampler.sample(range(count), labels),
            "PNG": lambda: [images.encode(image) for image in made.images_NHWC],
            "tar, hash of each image": lambda: shards.pack(samples, "png"),
            "part, hash of the tar": lambda: manifest.encode("generate", 0, packed, extra),
            "write, sync, rename": lambda: folder.write("x.tar", packed.data),
        }
        return {name: 1e6 / (_per_second(call) * count) for name, call in calls.items()}


def _alone(call: Callable[[int], float], count: int) -> float:
    """In a process of its own: with its own threads, and none of our settings where it has not asked for them."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(call, count).result()


def _per_second(call: Callable[[], object], seconds: float = 1.5) -> float:
    call()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        call()
        calls += 1
    return calls / (time.perf_counter() - start)


def _model(arguments: argparse.Namespace) -> Model:
    if arguments.model:
        return model_store.open_model(Folder(arguments.model))[0]
    torch.manual_seed(0)
    config = SHAPES[arguments.shape]
    generator, discriminator = build(config)
    return Model(generator.eval(), discriminator.eval(), [str(n) for n in range(config.num_classes)] or None, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model or a run; else random weights of --shape")
    parser.add_argument("--shape", choices=SHAPES, default="digits28")
    parser.add_argument("--images", type=lambda text: int(float(text)), default=100_000, help="for ours, a round")
    parser.add_argument("--shard-size", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write ratios and figures here")
    arguments = parser.parse_args()
    connection.connect(CORES, "cpu")
    rates: dict[str, list[float]] = {"bare": [], "ours": [], "loop": [], "stock": []}
    starts: list[float] = []
    shares: list[float] = []
    with tempfile.TemporaryDirectory(prefix="ganmill-bench-") as place:
        bench = Bench(_model(arguments), Path(place), arguments.shard_size)
        few = max(arguments.shard_size * CORES, arguments.images // 5)
        for number in range(arguments.rounds):
            rates["bare"].append(_alone(bench.bare, few))
            ours, start = bench.ours(arguments.images)
            rates["ours"].append(ours)
            starts.append(start)
            rates["loop"].append(_alone(bench.loop, max(512, arguments.images // 25)))
            rates["stock"].append(bench.stock(few))
            networks, product = bench.networks()
            shares.append(networks / product)
            line = ", ".join(f"{name} {values[-1]:,.0f} img/s" for name, values in rates.items())
            print(f"round {number + 1}: {line}; networks {networks:,.0f} of {product:,.0f} GFLOP/s", flush=True)
        pieces = bench.parts()
    ratios = {
        f"ours/{name}": statistics.median(a / b for a, b in zip(rates["ours"], rates[name], strict=True))
        for name in ("bare", "loop", "stock")
    }
    ratios["networks/matrix product"] = statistics.median(shares)
    figures = {f"{name} img/s": statistics.median(values) for name, values in rates.items()}
    figures["ours start-up s"] = statistics.median(starts)
    figures |= {f"{name}, us an image and core": value for name, value in pieces.items()}
    print("\nratio (median of the rounds)")
    for name, value in ratios.items():
        print(f"  {name:45}{value:10.2f}")
    print("figure")
    for name, value in figures.items():
        print(f"  {name:45}{value:10,.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"ratios": ratios, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
