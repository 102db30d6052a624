"""Latent traversal: interpolation, arithmetic and directions in latent space, with the nearest training images."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dcgan.arithmetic import Arithmetic
from dcgan.evaluation import distances
from dcgan.exploration import latent_space
from dcgan.numerics import choose
from dcgan.sampling import latents
from dcgan.sampling.sampler import Sampler
from jobs.command.progress import Progress
from jobs.exploration import figure
from jobs.exploration.figure import Row
from jobs.exploration.inputs import Images, Inputs
from pipelines.images import Pixels

ROWS = 10  # of a picture; classes, where there are any
STEPS = 11
DIRECTION_STEPS = 9
POPULATION = 200  # latents that a triple is chosen from
POPULATIONS = 4  # a class
DIRECTED = 32  # latents a class that a direction is tried on
_FAR = 1.5  # length of a direction's path, in distances between the means of its ends
_REFERENCE = 500  # holdout images, as a reference for distances
_BATCH = 64
_CHUNK = 4096
_AROUND = 3  # images with a little noise around a result
_NOISE = 0.25  # the paper's


@dataclass(frozen=True, slots=True)
class LatentPool:
    """The latents of one class (or of all) and the images they make."""

    label: int | None
    z_NZ: np.ndarray
    images_NHWC: np.ndarray
    value_N: dict[str, np.ndarray]  # by attribute


class LatentTraversal:
    """Makes images from latents, and compares them with the training images."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.config = inputs.model.config
        self.sampler = Sampler(inputs.model, _arithmetic(), _BATCH)
        self.attributes = latent_space.attributes(self.config.channels)
        self.first = 1 + inputs.seed * (1 << 32)  # seeds of latents; each seed of an exploration has its own
        rows = min(ROWS, self.config.num_classes or ROWS)
        self.labels: list[int | None] = list(range(rows)) if self.config.num_classes else [None] * rows

    def images(self, z_NZ: np.ndarray, label: int | None) -> np.ndarray:
        """images_NHWC of any number of latents, all of one class."""
        found = []
        for start in range(0, len(z_NZ), _BATCH):
            z_BZ = np.ascontiguousarray(z_NZ[start : start + _BATCH], np.float32)
            label_B = None if label is None else np.full(len(z_BZ), label, np.int64)
            found.append(self.sampler.decode(z_BZ, label_B).images_NHWC)
        images_NHWC: np.ndarray = np.concatenate(found)
        return images_NHWC

    def latents(self, place: int, count: int) -> np.ndarray:
        """z_NZ of consecutive seeds, none of them in use elsewhere: places are a million apart."""
        return latents.normal(self.first + place * 1_000_000, count, self.config.z_dim)

    def caption(self, label: int | None) -> str:
        names = self.inputs.model.classes
        return "" if label is None or not names else names[label][:24]


def explore(inputs: Inputs) -> tuple[dict[str, Any], dict[str, Pixels]]:
    """The result as JSON types, and the figures by name."""
    traversal = LatentTraversal(inputs)
    pools = list(_pools(traversal))
    results: dict[str, Any] = {}
    pictures = {}
    for name, part in (
        ("interpolation", _interpolation),
        ("arithmetic", _arithmetic_rows),
        ("directions", _directions),
    ):
        results[name], pictures[name] = part(traversal, pools)
    return {"format": 1, "protocol": _protocol(traversal), "results": results}, pictures


def _protocol(traversal: LatentTraversal) -> dict[str, Any]:
    return {
        **traversal.inputs.protocol(),
        "latent_seed_start": traversal.first,
        "arithmetic": "float32 on the CPU",
        "nearest": f"by Euclidean distance of pixels in 0..1, among {len(traversal.inputs.real):,} training images",
        "population": POPULATION,
        "populations_a_class": POPULATIONS,
        "attributes": {name: words[1:] for name, words in traversal.attributes.items()},
    }


def _arithmetic() -> Arithmetic:
    return choose("fp32", "cpu")


def _pools(traversal: LatentTraversal) -> Iterator[LatentPool]:
    """For each class its latents and images; without classes, as many pools as a picture has rows."""
    count = POPULATION * POPULATIONS
    with Progress("explore: latents", count * len(traversal.labels), "images") as progress:
        for number, label in enumerate(traversal.labels):
            z_NZ = traversal.latents(number, count)
            images_NHWC = traversal.images(z_NZ, label)
            values = {name: measure(images_NHWC) for name, (measure, _, _) in traversal.attributes.items()}
            yield LatentPool(label, z_NZ, images_NHWC, values)
            progress.update((number + 1) * count)


def _nearest(real: Images, images_NHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """distance_N and the nearest training images themselves."""
    query_NF = _flat(images_NHWC)
    best_N, at_N = np.full(len(query_NF), np.inf), np.zeros(len(query_NF), np.int64)
    for start in range(0, len(real), _CHUNK):
        distance_N, position_N = distances.nearest(_flat(real.images_NHWC[start : start + _CHUNK]), query_NF)
        nearer = distance_N < best_N
        best_N[nearer], at_N[nearer] = distance_N[nearer], start + position_N[nearer]
    return best_N, real.images_NHWC[at_N]


def _flat(images_NHWC: np.ndarray) -> np.ndarray:
    features_NF: np.ndarray = images_NHWC.reshape(len(images_NHWC), -1) / np.float32(255)
    return features_NF


def _interpolation(traversal: LatentTraversal, pools: list[LatentPool]) -> tuple[dict[str, Any], Pixels]:
    """Interpolation of two latents: along the arc (slerp), its nearest training images, and along the line (lerp)."""
    t_T = np.linspace(0.0, 1.0, STEPS)
    rows, distances = [], []
    for pool in pools:
        a_Z, b_Z = pool.z_NZ[:2]
        arc = traversal.images(latent_space.slerp(a_Z, b_Z, t_T), pool.label)
        line = traversal.images(latent_space.lerp(a_Z, b_Z, t_T), pool.label)
        distance_T, nearest = _nearest(traversal.inputs.real, arc)
        distances.append(distance_T)
        rows += [Row(f"{traversal.caption(pool.label)} slerp".strip(), list(arc)), Row("nearest real", list(nearest))]
        rows += [Row("straight", list(line)), Row("")]
    found: dict[str, Any] = {"nearest_distance_median": float(np.median(distances))}
    holdout = traversal.inputs.holdout
    if holdout is not None:
        distance_N, _ = _nearest(traversal.inputs.real, holdout.images_NHWC[:_REFERENCE])
        found["nearest_distance_median_of_holdout"] = float(np.median(distance_N))
    title = (
        "Interpolation between two latents. slerp: along the arc; nearest real: the training image nearest to the "
        "image above;\nstraight: along the line between the same two latents"
    )
    return found, figure.draw(title, rows, {}, _scale(traversal))


def _arithmetic_rows(traversal: LatentTraversal, pools: list[LatentPool]) -> tuple[dict[str, Any], Pixels]:
    """(much of both) - (little of the first) + (little of both) = little of the second, much of the first.

    As the paper's smiling woman - neutral woman + neutral man, with attributes that can be measured.
    """
    (first, (_, much_1, little_1)), (second, (_, much_2, little_2)) = traversal.attributes.items()
    rows, landed = [], []
    for pool in pools:
        for number in range(POPULATIONS):
            mine = slice(number * POPULATION, (number + 1) * POPULATION)
            rank_1, rank_2 = (latent_space.ranks(pool.value_N[name][mine]) for name in (first, second))
            chosen = [(rank_1, rank_2), (1 - rank_1, rank_2), (1 - rank_1, 1 - rank_2)]
            triples = [latent_space.exemplars(a, b) + mine.start for a, b in chosen]
            mean_3Z = np.stack([pool.z_NZ[triple].mean(0) for triple in triples])
            result_Z = mean_3Z[0] - mean_3Z[1] + mean_3Z[2]
            made = traversal.images(np.concatenate([mean_3Z, result_Z[None]]), pool.label)
            landed.append(_where(traversal, pool, made[3:]) | {"start": _where(traversal, pool, made[2:3])})
            if number == 0:
                rng = np.random.default_rng([traversal.inputs.seed, 4])
                noise_NZ = rng.uniform(-_NOISE, _NOISE, (_AROUND, len(result_Z)))
                around = traversal.images(result_Z + noise_NZ, pool.label)
                rows.append(_equation(traversal, pool, triples, made, around))
    words = [f"{much_1}, {much_2}", f"{little_1}, {much_2}", f"{little_1}, {little_2}"]
    columns = {
        0: f"  {words[0]}: three, mean",
        5: f"- {words[1]}: three, mean",
        10: f"+ {words[2]}: three, mean",
        15: f"= {much_1}, {little_2}?",
        20: "nearest\nreal",
        22: "the same\nin pixels",
    }
    title = "Latent arithmetic with the means of three latents; three variations with added noise follow each result"
    right = [one[first] > 0.5 and one[second] < 0.5 for one in landed]
    found = {
        "expected": f"{much_1}, {little_2}",
        "results": len(landed),
        "on_the_right_side_of_both_medians": float(np.mean(right)),
        "median_rank": {name: float(np.median([one[name] for one in landed])) for name in (first, second)},
        "median_rank_at_the_start": {
            name: float(np.median([one["start"][name] for one in landed])) for name in (first, second)
        },
        "rank": "0 for the least, 1 for the most of an attribute among the images of the class; 0.5 is its median",
    }
    return found, figure.draw(title, rows, columns, _scale(traversal))


def _equation(
    traversal: LatentTraversal, pool: LatentPool, triples: list[np.ndarray], made: np.ndarray, around: np.ndarray
) -> Row:
    cells: list[Pixels | None] = []
    for triple, mean in zip(triples, made, strict=False):
        cells += [*pool.images_NHWC[triple], mean, None]
    _, nearest = _nearest(traversal.inputs.real, made[3:])
    means = [pool.images_NHWC[triple].astype(np.float32).mean(0) for triple in triples]
    in_pixels = (means[0] - means[1] + means[2]).clip(0, 255).round().astype(np.uint8)
    return Row(traversal.caption(pool.label), [*cells, made[3], *around, None, nearest[0], None, in_pixels])


def _where(traversal: LatentTraversal, pool: LatentPool, image_1HWC: np.ndarray) -> dict[str, Any]:
    """The rank of an image among its class, by attribute."""
    return {
        name: float((pool.value_N[name] < measure(image_1HWC)[0]).mean())
        for name, (measure, _, _) in traversal.attributes.items()
    }


def _directions(traversal: LatentTraversal, pools: list[LatentPool]) -> tuple[dict[str, Any], Pixels]:
    """Latents moved along an attribute's direction, both ways. One attribute on the left, one on the right."""
    t_T = np.linspace(-_FAR / 2, _FAR / 2, DIRECTION_STEPS)
    rows: list[Row] = []
    moved: dict[str, list[np.ndarray]] = {name: [] for name in traversal.attributes}
    for number, pool in enumerate(pools):
        z_NZ = traversal.latents(200 + number, DIRECTED)  # not the latents that define the direction
        made: list[Pixels | None] = []
        near: list[Pixels | None] = []
        for name, (measure, _, _) in traversal.attributes.items():
            way_Z = latent_space.direction(pool.z_NZ, pool.value_N[name])
            z_NTZ = z_NZ[:, None] + t_T[:, None] * way_Z
            images_MHWC = traversal.images(z_NTZ.reshape(-1, z_NZ.shape[1]), pool.label)
            rank_M = (pool.value_N[name][:, None] < measure(images_MHWC)).mean(0)
            moved[name].append(rank_M.reshape(len(z_NZ), -1).mean(0))
            made += [*images_MHWC[:DIRECTION_STEPS], None]
            near += [*_nearest(traversal.inputs.real, images_MHWC[:DIRECTION_STEPS])[1], None]
        rows += [Row(traversal.caption(pool.label), made[:-1]), Row("nearest real", near[:-1]), Row("")]
    columns: dict[int, str] = {}
    for block, (_, much, little) in enumerate(traversal.attributes.values()):
        first = block * (DIRECTION_STEPS + 1)
        columns |= {
            first: f"{little} <-",
            first + DIRECTION_STEPS // 2: "unchanged",
            first + DIRECTION_STEPS - 2: f"-> {much}",
        }
    title = (
        "Latents moved along an attribute's direction: from the mean latent of the tenth with the least of it to the "
        "mean latent of the tenth with the most"
    )
    found = {
        name: {
            "mean_rank_by_step": [round(float(value), 4) for value in np.mean(rank_RT, 0)],
            "steps": [round(float(t), 4) for t in t_T],
            "latents": DIRECTED * len(pools),
        }
        for name, rank_RT in moved.items()
    }
    return found, figure.draw(title, rows, columns, _scale(traversal))


def _scale(traversal: LatentTraversal) -> int:
    return max(1, 64 // traversal.config.image_size)
