#!/usr/bin/env python3
"""Which features see damage: the kernel distance between real images and damaged ones, for several features.

python benchmarks/damage.py --data D/emoji --images 1500

The real images are cut into two halves, in random order. One is the reference; the other is damaged, ever more. Each
number is the distance in units of its noise, which is its root mean square between two undamaged halves: below 3 the
damage is not seen. Features see a kind of damage if the distance grows with every strength.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import torch

from dcgan.evaluation import distances, features, tick_metric
from jobs.command import feature_weights
from pipelines.dataset import reader
from pipelines.loading import loader
from pipelines.storage.folder import Folder

SEED = 0
NOISE_PAIRS = 10
SEEN = 3.0  # standard deviations
FEATURES = (features.LITE, "vgg16-random", "pixels", "tick")
Damage = Callable[[np.ndarray, np.ndarray, float], np.ndarray]  # images_NHWC, label_N, strength


def blur(images_NHWC: np.ndarray, label_N: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian blur; pixels."""
    return each(lambda image: cv2.GaussianBlur(image, (0, 0), sigma), images_NHWC)


def noise(images_NHWC: np.ndarray, label_N: np.ndarray, deviation: float) -> np.ndarray:
    """White noise; its standard deviation in grey levels."""
    shift = np.random.default_rng(SEED).normal(0.0, deviation, images_NHWC.shape)
    return np.clip(np.rint(images_NHWC + shift), 0, 255).astype(np.uint8)


def jpeg(images_NHWC: np.ndarray, label_N: np.ndarray, quality: float) -> np.ndarray:
    """JPEG and back; its quality."""

    def squeeze(image: np.ndarray) -> np.ndarray:
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED))

    return each(squeeze, images_NHWC)


def checkerboard(images_NHWC: np.ndarray, label_N: np.ndarray, height: float) -> np.ndarray:
    """A pattern of single pixels, as transposed convolutions leave it; its height in grey levels."""
    rows, columns = np.indices(images_NHWC.shape[1:3])
    pattern_HW1 = np.where((rows + columns) % 2, height, -height)[..., None]
    return np.clip(images_NHWC + pattern_HW1, 0, 255).astype(np.uint8)


def patches(images_NHWC: np.ndarray, label_N: np.ndarray, cells: float) -> np.ndarray:
    """Cells of an image in another order, so that nothing is whole; cells a side."""
    size = images_NHWC.shape[1] // int(cells)
    rng, found = np.random.default_rng(SEED), np.empty_like(images_NHWC)
    places = [(y * size, x * size) for y in range(int(cells)) for x in range(int(cells))]
    for image, other in zip(images_NHWC, found, strict=True):
        for (y, x), (v, u) in zip(places, rng.permutation(places).tolist(), strict=True):
            other[y : y + size, x : x + size] = image[v : v + size, u : u + size]
    return found


def fewer_kinds(images_NHWC: np.ndarray, label_N: np.ndarray, share: float) -> np.ndarray:
    """Modes are dropped: of 20 groups of similar images (k-means of the pixels) a share is gone; others stand in."""
    from sklearn.cluster import KMeans

    group_N = KMeans(20, random_state=SEED, n_init=1).fit_predict(images_NHWC.reshape(len(images_NHWC), -1) / 255.0)
    return without(images_NHWC, group_N, share)


def fewer_classes(images_NHWC: np.ndarray, label_N: np.ndarray, share: float) -> np.ndarray:
    """A share of the classes is gone, in random order; images of the others stand in."""
    return without(images_NHWC, label_N, share)


def copies(images_NHWC: np.ndarray, label_N: np.ndarray, share: float) -> np.ndarray:
    """A share of the images is replaced by copies of a hundredth of them."""
    rng = np.random.default_rng(SEED)
    found, count = images_NHWC.copy(), int(share * len(images_NHWC))
    found[:count] = images_NHWC[-len(images_NHWC) // 100 :][rng.integers(0, len(images_NHWC) // 100, count)]
    return found


def without(images_NHWC: np.ndarray, group_N: np.ndarray, share: float) -> np.ndarray:
    rng = np.random.default_rng(SEED)
    groups = rng.permutation(np.unique(group_N))
    kept = np.flatnonzero(~np.isin(group_N, groups[: round(share * len(groups))]))
    return images_NHWC[rng.choice(kept, len(images_NHWC))]


def each(change: Callable[[np.ndarray], np.ndarray], images_NHWC: np.ndarray) -> np.ndarray:
    return np.stack([change(image).reshape(images_NHWC.shape[1:]) for image in images_NHWC])


@dataclass(frozen=True, slots=True)
class Series:
    """One kind of damage, from weak to strong."""

    damage: Damage
    strengths: tuple[float, ...]


SERIES = {
    "blur": Series(blur, (0.4, 0.7, 1.0, 2.0)),
    "noise": Series(noise, (4, 8, 16, 32)),
    "JPEG": Series(jpeg, (80, 50, 25, 10)),
    "checkerboard": Series(checkerboard, (4, 8, 16, 32)),
    "shuffled cells": Series(patches, (2, 4, 8)),
    "missing classes": Series(fewer_classes, (0.2, 0.4, 0.6, 0.8)),
    "dropped modes": Series(fewer_kinds, (0.1, 0.3, 0.5, 0.8)),
    "repeated images": Series(copies, (0.1, 0.3, 0.5, 0.9)),
}


def read(url: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """images_NHWC and label_N of the first images of a sealed dataset, which are in random order."""
    folder = Folder(url)
    index = reader.open_sealed(folder)
    batches = chain.from_iterable(loader.in_order(folder, index, record, 100) for record in index.shards)
    images, labels = zip(*islice(batches, -(-count // 100)), strict=True)
    return np.concatenate(images)[:count], np.concatenate(labels)[:count]


@dataclass(frozen=True, slots=True)
class Space:
    """Features, and the kernel distance in them: of `evaluate`, or of a tick of training."""

    compute: Callable[[np.ndarray], np.ndarray]  # images_NHWC to features_NF
    distance: Callable[[np.ndarray, np.ndarray], float]

    def noise(self, real_NF: np.ndarray) -> float:
        """The root mean square of the distance between random halves of undamaged images."""
        rng = np.random.default_rng(SEED)
        halves = [np.array_split(real_NF[rng.permutation(len(real_NF))], 2) for _ in range(NOISE_PAIRS)]
        return float(np.sqrt(np.mean([self.distance(one, other) ** 2 for one, other in halves])))


def space(name: str, image_shape: tuple[int, int, int]) -> Space:
    if name != "tick":
        weights = feature_weights.read() if name == features.LITE else None
        return Space(features.make(name, image_shape, weights), distances.kernel_distance)
    network = tick_metric.RandomFeatures(image_shape[2])

    def distance(real_NF: np.ndarray, fake_NF: np.ndarray) -> float:
        return tick_metric.kernel_distance(torch.from_numpy(real_NF), torch.from_numpy(fake_NF))

    return Space(lambda images_NHWC: network(images_NHWC).numpy(), distance)


def measure(where: Space, images_NHWC: np.ndarray, label_N: np.ndarray) -> dict[str, list[float]]:
    """For each kind of damage the distances at its strengths, in units of the noise."""
    half = len(images_NHWC) // 2
    real_NF = where.compute(images_NHWC)
    noise = where.noise(real_NF)
    found = {}
    for name, series in SERIES.items():
        changed = (series.damage(images_NHWC[half:], label_N[half:], strength) for strength in series.strengths)
        found[name] = [where.distance(real_NF[:half], where.compute(images)) / noise for images in changed]
    return found


def grows(values: Sequence[float]) -> bool:
    """Whether each stronger damage is farther, and the strongest is seen."""
    return all(weak < strong for weak, strong in pairwise(values)) and values[-1] > SEEN


def print_table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    print(f"| damage | strength | {' | '.join(found)} |\n|---|---|{'---|' * len(found)}")
    for name, series in SERIES.items():
        for number, strength in enumerate(series.strengths):
            cells = " | ".join(f"{values[name][number]:,.1f}" for values in found.values())
            print(f"| {name if number == 0 else ''} | {strength:g} | {cells} |")
    strengths = sum(len(series.strengths) for series in SERIES.values())
    seen = {name: sum(value > SEEN for row in values.values() for value in row) for name, values in found.items()}
    print(f"| **strengths that it sees** | | {' | '.join(f'{number} of {strengths}' for number in seen.values())} |")
    cells = " | ".join(f"{sum(map(grows, values.values()))} of {len(SERIES)}" for values in found.values())
    print(f"| **kinds that grow** | | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="sealed dataset of real images, with classes for one of the rows")
    parser.add_argument("--images", type=lambda text: int(float(text)), default=1200, help="half of them are damaged")
    parser.add_argument("--features", nargs="+", choices=FEATURES, default=list(FEATURES))
    parser.add_argument("--json", help="file for the numbers")
    given = parser.parse_args()
    images_NHWC, label_N = read(given.data, given.images)
    found = {}
    for name in given.features:
        found[name] = measure(space(name, images_NHWC.shape[1:]), images_NHWC, label_N)
        print(f"damage: {name}: {sum(map(grows, found[name].values()))} of {len(SERIES)} kinds grow", flush=True)
    print_table(found)
    if given.json:
        Path(given.json).write_text(json.dumps({"figures": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
