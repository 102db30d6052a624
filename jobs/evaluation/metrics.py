"""The metrics from the features: one row a number, with the numbers of images. No Ray, no storage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from dcgan.evaluation.distances import NEIGHBOURS, Sums, frechet_distance, kernel_distance, manifold_metrics, nearest
from jobs.evaluation.feature_pass import DatasetFeatures

CLOSE = 0.01
_SOUGHT = ("nearest_distance", "too_close")  # measures of the nearest of all searched real images


@dataclass(frozen=True, slots=True)
class Row:
    """One number. `of` and `against` are roles; `label` is a class, or None for all of them."""

    measure: str
    of: str
    against: str
    label: int | None
    value: float | None  # None: not measured; `note` gives the reason
    spread: float | None  # standard deviation over the random halves
    n_of: int
    n_against: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """Sampled images. The nearest of the searched real images is another one than the image itself."""

    features_NF: np.ndarray
    label_N: np.ndarray
    near_N: np.ndarray  # distance to the nearest
    nearest_N: np.ndarray  # position of the nearest in the real dataset

    def __len__(self) -> int:
        return len(self.label_N)

    def half(self, rng: np.random.Generator) -> "Sample":
        return self._at(rng.permutation(len(self))[: len(self) // 2])

    def of_class(self, label: int | None) -> "Sample":
        if label is None:
            return self
        return self._at(self.label_N == label)

    def _at(self, rows: np.ndarray) -> "Sample":
        return Sample(self.features_NF[rows], self.label_N[rows], self.near_N[rows], self.nearest_N[rows])


def samples(measured: Mapping[str, DatasetFeatures]) -> dict[str, Sample]:
    """The sampled images of each dataset. Takes time: each is compared with all searched real images."""
    real = measured["real"]
    own = {"real": np.searchsorted(real.searched_position_M, real.position_N)}
    found = {}
    for role, one in measured.items():
        near_N, row_N = nearest(real.searched_MF, one.features_NF, own.get(role))
        found[role] = Sample(one.features_NF, one.label_N, near_N, real.searched_position_M[row_N])
    return found


Name = tuple[str, str, str, int | None]  # measure, of, against, label


@dataclass(frozen=True, slots=True)
class ClassifierTest:
    """The result of a classifier that was trained on one dataset, on the images of another."""

    measure: str
    trained: str
    tested: str
    n_trained: int
    counted_N: np.ndarray  # bool by tested image; the measure is the share of True
    note: str

    def row(self, repeats: int, rng: np.random.Generator) -> Row:
        size = len(self.counted_N)
        halves = [float(self.counted_N[rng.permutation(size)[: size // 2]].mean()) for _ in range(repeats)]
        spread = float(np.std(np.array(halves), ddof=1))
        value = float(self.counted_N.mean())
        return Row(self.measure, self.trained, self.tested, None, value, spread, self.n_trained, size, self.note)


def nearest_neighbour_tests(measured: Mapping[str, DatasetFeatures], tested: str) -> list[ClassifierTest]:
    """1-nearest-neighbour classification of the sampled test images by all images of each other dataset."""
    label_M = measured[tested].label_N
    note = f"share of wrong labels; trained on all images of {{}}, tested on the sample of {tested}"
    return [
        ClassifierTest(
            "nearest_neighbour_error", role, tested, one.sums.count, one.answers.label_M != label_M, note.format(role)
        )
        for role, one in measured.items()
        if len(one.answers.label_M)
    ]


def rows(
    measured: Mapping[str, DatasetFeatures],
    samples: Mapping[str, Sample],
    classes: int,
    repeats: int,
    seed: int,
    tests: Sequence[ClassifierTest] = (),
) -> list[Row]:
    """All numbers. The spread is the standard deviation over random halves.

    It estimates the standard error of a value at n images.
    """
    values = _measure(samples, classes)
    rng = np.random.default_rng([seed, len(measured)])
    halves = [_measure({role: one.half(rng) for role, one in samples.items()}, classes) for _ in range(repeats)]
    found = []
    for name, (value, note) in values.items():
        measure, of, against, label = name
        drawn = [half[name][0] for half in halves if half[name][0] is not None]
        spread = float(np.std(np.array(drawn, np.float64), ddof=1)) if 1 < len(drawn) == repeats else None
        counts = [len(samples[role].of_class(label)) for role in (of, against)]
        if measure in _SOUGHT and against == "real":
            counts[1] = len(measured["real"].searched_MF)
        row = Row(measure, of, against, label, value, spread, counts[0], counts[1], note)
        found.append(_of_all_images(row, measured) if measure == "frechet_distance" else row)
    return found + [test.row(repeats, rng) for test in tests]


def _measure(samples: Mapping[str, Sample], classes: int) -> dict[Name, tuple[float | None, str]]:
    """All metrics of a sample: value and note by name. Every sample gives the same names."""
    real = samples["real"]
    others = [role for role in ("fake", "holdout") if role in samples]
    found: dict[Name, tuple[float | None, str]] = {}
    for role, label in product(others, [None, *range(classes)]):
        against, of = real.of_class(label), samples[role].of_class(label)
        for measure, result in _fidelity(against, of).items():
            found[measure, role, "real", label] = result
    return found | _closeness(samples)


def _fidelity(real: Sample, other: Sample) -> dict[str, tuple[float | None, str]]:
    if min(len(real), len(other)) <= 2 * NEIGHBOURS - 1:
        few = (None, f"not measured: fewer than {2 * NEIGHBOURS} images sampled")
        return dict.fromkeys(("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"), few)
    size = real.features_NF.shape[1]
    frechet: tuple[float | None, str] = (None, "")
    if min(len(real), len(other)) > size:
        frechet = frechet_distance(Sums.of(real.features_NF), Sums.of(other.features_NF)), ""
    found = manifold_metrics(real.features_NF, other.features_NF)
    return {
        "frechet_distance": frechet,
        "kernel_distance": (kernel_distance(real.features_NF, other.features_NF), ""),
        "precision": (found.precision, ""),
        "recall": (found.recall, ""),
        "density": (found.density, ""),
        "coverage": (found.coverage, ""),
    }


def _closeness(samples: Mapping[str, Sample]) -> dict[Name, tuple[float | None, str]]:
    """Distances to the nearest neighbour. Copies of training images are nearer to them than unseen images are."""
    distances = nearest_distances(samples)
    found: dict[Name, tuple[float | None, str]] = {}
    for (of, against), distance_N in distances.items():
        note = "to another image of the same set" if of == against else ""
        found["nearest_distance", of, against, None] = (float(np.median(distance_N)), f"median {note}".strip())
    unseen = "holdout" if "holdout" in samples else "real"
    bound = float(np.quantile(distances[unseen, "real"], CLOSE))
    share = float((distances["fake", "real"] < bound).mean())
    note = f"share nearer to real than the nearest {CLOSE:.0%} of {unseen}; {CLOSE} without copies"
    found["too_close", "fake", "real", None] = (share, note)
    found["too_alike", "fake", "fake", None] = _alike(samples["real"], samples["fake"])
    return found


def _alike(real: Sample, fake: Sample) -> tuple[float, str]:
    """The share of fakes with a close neighbour among fakes. Both samples have equal size: density grows with size."""
    count = min(len(real), len(fake))
    rng = np.random.default_rng(count)
    real_N, fake_N = (nearest(one.features_NF[rng.permutation(len(one))[:count]])[0] for one in (real, fake))
    note = (
        f"share nearer to another fake than the nearest {CLOSE:.0%} of real to another real; {count:,} images of each"
    )
    return float((fake_N < np.quantile(real_N, CLOSE)).mean()), note


def nearest_distances(samples: Mapping[str, Sample]) -> dict[tuple[str, str], np.ndarray]:
    """distance_N by (of, against): from each image of one set to the nearest image of the other, or of its own set."""
    near = {(role, "real"): samples[role].near_N for role in (*(role for role in samples if role != "real"), "real")}
    return {**near, ("fake", "fake"): nearest(samples["fake"].features_NF)[0]}


def _of_all_images(row: Row, measured: Mapping[str, DatasetFeatures]) -> Row:
    """The Fréchet distance from the sums over all images, if there are sums and enough images."""
    of, against = (_sums(measured[role], row.label) for role in (row.of, row.against))
    if of is None or against is None or not len(of.total_F):
        return replace(row, value=None, spread=None, note="not measured: too many features for F x F sums")
    row = replace(row, n_of=of.count, n_against=against.count)
    size = len(of.total_F)
    if min(of.count, against.count) <= size:
        note = f"not measured: it needs more images than features ({size})"
        return replace(row, value=None, spread=None, note=note)
    return replace(row, value=frechet_distance(against, of), note="of all images; spread of the sample")


def _sums(measured: DatasetFeatures, label: int | None) -> Sums | None:
    if label is None:
        return measured.sums
    return measured.class_sums[label] if measured.class_sums else None


def closest(fake: Sample, position_N: np.ndarray, number: int) -> list[tuple[float, int, int]]:
    """The closest pairs: distance, and the positions of the fake and the real image in their datasets.

    Args: position_N: of the sampled fakes in their dataset.
    """
    order = np.argsort(fake.near_N, kind="stable")[:number]
    return [(float(fake.near_N[i]), int(position_N[i]), int(fake.nearest_N[i])) for i in order]
