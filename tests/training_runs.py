"""Short training runs for tests: small networks, methods, batches and steps."""

from typing import Any

import numpy as np

from dcgan import model_files
from dcgan.arithmetic import Arithmetic
from dcgan.families.family import FamilyConfig
from dcgan.training.configuration import MethodConfig
from dcgan.training.step import Training
from tests.families import configure

FLOAT, BFLOAT = Arithmetic("cpu", "float32"), Arithmetic("cpu", "bfloat16")
BATCH = 8
NETWORKS = {
    "dcgan": configure("dcgan", image_size=28, channels=1, width=4, z_dim=6),
    "dcgan with classes": configure("dcgan", image_size=32, channels=3, width=2, z_dim=6, num_classes=3),
    "cdcgan": configure("cdcgan", image_size=28, channels=1, width=8, z_dim=6, num_classes=2),
    "keras": configure("keras", image_size=28, channels=1, width=1, z_dim=6, num_classes=2),  # has dropout
    "gan": configure("gan", image_size=28, channels=3, z_dim=6),
}
# The means of real and fake logits differ from the first step on.
WITH_MEANS = [kind for kind in NETWORKS if kind != "cdcgan"]
METHODS: list[dict[str, Any]] = [
    {},
    {"augment": "color,translation,cutout"},
    {"loss": "wgan"},
    {"loss": "wgan-gp", "augment": "cutout"},
]


def start(kind: str = "dcgan", arithmetic: Arithmetic = FLOAT, seed: int = 3, **method: Any) -> Training:
    return Training(NETWORKS[kind], MethodConfig(**method), arithmetic, seed)


def batch(network: FamilyConfig, number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    shape = (BATCH, network.image_size, network.image_size, network.channels)
    return rng.integers(0, 256, shape, np.uint8), rng.integers(0, max(1, network.num_classes), BATCH)


def run(training: Training, steps: range) -> list[dict[str, float]]:
    """Run the steps and return their scalars."""
    results = [training.step(*batch(training.network, step), step * BATCH) for step in steps]
    return [{name: value.item() for name, value in result.items()} for result in results]


def saved(training: Training) -> bytes:
    """The state as the bytes of a checkpoint."""
    return model_files.to_bytes(training.state())
