#!/usr/bin/env python3
"""Images a second that one core reads, decodes and batches: our loader beside what people use.

Each reader has a process of its own, held to one core, and makes batches of 128 uint8 images with labels; rounds
alternate.
The floor is OpenCV's decoding and numpy's stacking of PNGs that are in memory already. Peers that are not installed are
left out, and said so.

    python benchmarks/loader.py                                  # 5,000 digits at 28x28
    python benchmarks/loader.py --source twemoji64.zip --size 64 --channels 3
    python benchmarks/loader.py --s3                             # ours, from a local S3 server too (needs moto)
"""

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import images
from pipelines.dataset import reader, shards
from pipelines.loading import loader, order
from pipelines.storage.folder import Folder

BATCH = 128
SECONDS = 4.0
ROOT = Path(__file__).resolve().parent.parent
Reader = Callable[[Path, int], Iterator[Any]]


def ours(place: Path, channels: int) -> Iterator[Any]:
    return _ours(Folder(str(place / "dataset")))


def ours_s3(place: Path, channels: int) -> Iterator[Any]:
    return _ours(Folder("s3://bench/dataset"))


def _ours(folder: Folder) -> Iterator[Any]:
    index = reader.open_sealed(folder)
    plan = order.make_plan(tuple(record.samples for record in index.shards), BATCH, 16_384, 0)
    return loader.batches(folder, index, plan, 0, 1, 0)


def imagefolder(place: Path, channels: int) -> Iterator[Any]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, Grayscale, PILToTensor

    grey = [Grayscale()] if channels == 1 else []
    data = ImageFolder(str(place / "files"), transform=Compose([*grey, PILToTensor()]))
    while True:
        yield from DataLoader(data, BATCH, shuffle=True, drop_last=True)


def webdataset(place: Path, channels: int) -> Iterator[Any]:
    import webdataset as wds

    urls = sorted(str(path) for path in (place / "dataset" / "shards").iterdir())
    data = wds.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000).decode("l8" if channels == 1 else "rgb8")
    while True:
        yield from data.to_tuple("png", "cls").batched(BATCH, partial=False)


def huggingface(place: Path, channels: int) -> Iterator[Any]:
    from datasets import load_dataset

    files = str(place / "dataset" / "shards" / "*.tar")
    data = load_dataset("webdataset", data_files=files, split="train", cache_dir=str(place / "hf"))
    while True:
        for batch in data.shuffle().iter(BATCH, drop_last_batch=True):
            yield np.stack([np.asarray(image) for image in batch["png"]]), np.array(batch["cls"])


def litdata(place: Path, channels: int) -> Iterator[Any]:
    from litdata import StreamingDataLoader, StreamingDataset

    while True:
        yield from StreamingDataLoader(StreamingDataset(str(place / "litdata"), shuffle=True), batch_size=BATCH)


def streaming(place: Path, channels: int) -> Iterator[Any]:
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    data = StreamingDataset(local=str(place / "streaming"), shuffle=True, batch_size=BATCH)
    while True:
        yield from DataLoader(data, BATCH, collate_fn=lambda rows: np.stack([np.asarray(row["png"]) for row in rows]))


def floor(place: Path, channels: int) -> Iterator[Any]:
    encoded = [sample.image for sample, _ in _samples(place)]
    while True:
        for start in range(0, len(encoded) - BATCH + 1, BATCH):
            yield np.stack([images.decode(data, channels) for data in encoded[start : start + BATCH]])


READERS: dict[str, Reader] = {
    "ours": ours,
    "ImageFolder": imagefolder,
    "webdataset": webdataset,
    "Hugging Face": huggingface,
    "litdata": litdata,
    "streaming": streaming,
    "floor": floor,
}
PACKAGES = {"litdata": "litdata", "streaming": "streaming", "Hugging Face": "datasets"}


def _samples(place: Path) -> Iterator[tuple[shards.Sample, str]]:
    """Every image of the dataset, and its class's name."""
    folder = Folder(str(place / "dataset"))
    index = reader.open_sealed(folder)
    for record in index.shards:
        for sample in shards.unpack(reader.read_shard(folder, record), record.tar):
            yield sample, str(sample.label or 0)


def prepare(place: Path, names: list[str]) -> None:
    """The same PNGs in each peer's own form."""
    for sample, label in _samples(place):
        folder = place / "files" / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{sample.index}.png").write_bytes(sample.image)
    if "litdata" in names:
        from litdata import optimize

        files = [str(path) for path in sorted((place / "files").rglob("*.png"))]
        optimize(_lit_sample, files, str(place / "litdata"), chunk_bytes="64MB", num_workers=1)
    if "streaming" in names:
        from streaming import MDSWriter

        with MDSWriter(out=str(place / "streaming"), columns={"png": "png", "cls": "int"}) as writer:
            from PIL import Image

            for path in sorted((place / "files").rglob("*.png")):
                writer.write({"png": Image.open(path), "cls": int(path.parent.name)})


def _lit_sample(path: str) -> dict[str, Any]:
    from PIL import Image

    return {"png": Image.open(path), "cls": int(Path(path).parent.name)}


def rate(name: str, place: Path, channels: int, environment: dict[str, str]) -> float:
    """Images a second on one core, after a first batch."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    reader = {**READERS, "ours, S3": ours_s3}[name](place, channels)
    next(reader)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        count += len(list(islice(reader, 4))) * BATCH
    return count / (time.perf_counter() - start)


@contextlib.contextmanager
def s3_copy(place: Path) -> Iterator[dict[str, str]]:
    """The dataset on moto's server, in a process of its own; the environment that finds it."""
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", "5999"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    environment = {"AWS_ENDPOINT_URL": "http://127.0.0.1:5999", "AWS_DEFAULT_REGION": "us-east-1"}
    environment |= dict.fromkeys(names, "bench")
    os.environ.update(environment)
    try:
        import boto3

        time.sleep(3)
        boto3.client("s3").create_bucket(Bucket="bench")
        for path in (place / "dataset").rglob("*"):
            if path.is_file():
                Folder("s3://bench/dataset").write(str(path.relative_to(place / "dataset")), path.read_bytes())
        yield environment
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="digits", help="what jobs/ingest.py takes")
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--channels", type=int, choices=(1, 3), default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--s3", action="store_true", help="ours from a local S3 server too")
    parser.add_argument("--json", type=Path, help="write ratios and figures here")
    arguments = parser.parse_args()
    missing = [name for name, package in PACKAGES.items() if not importlib.util.find_spec(package)]
    names = [name for name in READERS if name not in missing]
    print(f"not installed, left out: {', '.join(missing)}" if missing else "all peers are installed", flush=True)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="ganmill-bench-") as folder, contextlib.ExitStack() as stack:
        place = Path(folder)
        flags = ["--output", str(place / "dataset"), "--image-size", str(arguments.size)]
        flags += ["--source", arguments.source, "--channels", str(arguments.channels)]
        subprocess.run([sys.executable, str(ROOT / "jobs" / "ingest.py"), *flags], check=True)
        prepare(place, names)
        environment: dict[str, str] = {}
        if arguments.s3:
            environment = stack.enter_context(s3_copy(place))
            names.append("ours, S3")
        for number in range(arguments.rounds):
            for name in names:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    value = process.submit(rate, name, place, arguments.channels, environment).result()
                rates.setdefault(name, []).append(value)
            print(f"round {number + 1}: " + ", ".join(f"{k} {v[-1]:,.0f} img/s" for k, v in rates.items()), flush=True)
    ratios = {
        f"ours/{name}": statistics.median(a / b for a, b in zip(rates["ours"], values, strict=True))
        for name, values in rates.items()
        if name != "ours"
    }
    figures = {f"{name} img/s": statistics.median(values) for name, values in rates.items()}
    print("\nratio (median of the rounds)")
    for name, value in ratios.items():
        print(f"  {name:30}{value:10.2f}")
    print("images a second and core")
    for name, value in figures.items():
        print(f"  {name:30}{value:10,.0f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"ratios": ratios, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
