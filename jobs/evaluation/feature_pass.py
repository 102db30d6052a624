"""The feature pass over the shards of the compared datasets: the sums of the features, a sample of them, and the
nearest neighbours of the test images.

An actor processes a group of consecutive shards and writes a small file, whose size does not depend on the number of
images in the group. The driver adds the files in a fixed order, so that no number depends on the workers.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from dcgan.evaluation import features
from dcgan.evaluation.distances import Answers, NearestNeighbour, Sums
from dcgan.evaluation.features import Features
from jobs.cluster import actor_pool
from jobs.cluster.connection import Pool
from jobs.command import feature_weights
from jobs.command.errors import LostWorkError
from jobs.command.progress import Progress
from pipelines.dataset import checked_file, selection
from pipelines.dataset.layout import Index
from pipelines.loading import loader
from pipelines.storage.folder import Folder

PARTS = "parts"
ROLES = ("real", "fake", "holdout")
# A group's file holds F x F sums: 34 MB with Inception's features. So few files are added in seconds.
MAX_GROUPS = 32
MAX_SUMMED = 4096  # features; with more there are no sums: F x F would exceed 134 MB, and grows with the square
MAX_CLASS_SUMS = 1 << 24  # numbers in all classes' F x F: 134 MB
MAX_SEARCHED = 60_000  # real images among which the nearest is sought: MNIST's
MAX_SEARCHED_BYTES = 1 << 29  # of their features; pixels at 64x64 allow 10,922 images
_BATCH = 512


@dataclass(frozen=True, slots=True)
class PassPlan:
    """The settings of a pass. An equal plan gives equal files."""

    urls: Mapping[str, str]  # by role
    features: str
    weights: str | None  # the URL of the features' weights, if they are in a file
    images: int
    seed: int
    classes: int  # 0: labels are ignored
    selections: Mapping[str, str] = field(default_factory=dict)  # URL by role, for the datasets with a selection

    @property
    def tested(self) -> str | None:
        """The dataset whose sampled images are classified by nearest neighbour. It is measured before the others."""
        if not self.classes:
            return None
        return "holdout" if "holdout" in self.urls else "real"


@dataclass(frozen=True, slots=True)
class DatasetFeatures:
    """The sums over all images of a dataset, and the features of its sampled images."""

    sums: Sums
    class_sums: tuple[Sums, ...]  # empty if they would be too large
    features_NF: np.ndarray
    label_N: np.ndarray  # -1 without classes
    position_N: np.ndarray  # in the dataset
    answers: Answers  # nearest of all its images to each sampled test image; none for the tested dataset itself
    searched_MF: np.ndarray  # of the real images among which the nearest is sought; with the sampled ones
    searched_position_M: np.ndarray  # in the dataset


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive shards of one dataset. `first`: the position of their first image."""

    role: str
    shards: range
    first: int


class MeasureGroup:
    """Measures one group a call."""

    def __init__(self, plan: PassPlan, output: str, key: str) -> None:
        self.plan, self.output, self.key = plan, Folder(output), key
        self.folders = {role: Folder(url) for role, url in plan.urls.items()}
        self.indexes = {
            role: selection.open_through(folder, plan.selections.get(role)) for role, folder in self.folders.items()
        }
        self.groups = groups(self.indexes)
        self.features = make_features(plan, self.indexes["real"].image_shape)
        self.classifier: NearestNeighbour | None = None

    def __call__(self, shard: int) -> dict[str, Any]:
        group = self.groups[shard]
        folder, index = self.folders[group.role], self.indexes[group.role]
        drawn = searched(group.role, index, self.plan, self.features.size)
        summed = self.features.size if self.features.size <= MAX_SUMMED else 0
        sums = [Sums.none(summed) for _ in range(1 + self.class_sums(summed))]
        kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        test = self.test(group.role)
        answers = Answers.none(test.tests if test else 0)
        position = group.first
        for number in group.shards:
            for images_NHWC, label_N in loader.in_order(folder, index, index.shards[number], _BATCH):
                found_NF = self.features(images_NHWC)
                sums[0] = sums[0] + Sums.of(found_NF[:, :summed])
                if test:
                    answers += test.answers(found_NF, label_N)
                for label in np.unique(label_N[label_N >= 0]) if len(sums) > 1 else ():
                    sums[1 + label] = sums[1 + label] + Sums.of(found_NF[label_N == label])
                start, stop = np.searchsorted(drawn, (position, position + len(label_N)))
                chosen = drawn[start:stop] - position
                kept.append((found_NF[chosen], label_N[chosen], drawn[start:stop]))
                position += len(label_N)
        checked_file.write(self.output, part_name(self.key, shard), _pack(sums, kept, answers, self.features.size))
        return {"images": position - group.first}

    def test(self, role: str) -> NearestNeighbour | None:
        """The classifier of the test images by the images of this role; None for the tested dataset itself."""
        if role == self.plan.tested or self.plan.tested is None:
            return None
        if self.classifier is None:
            drawn = draw(self.plan.tested, self.indexes[self.plan.tested], self.plan)
            tested = _add(self.groups, self.plan.tested, self.output, self.key, drawn)
            self.classifier = NearestNeighbour(tested.features_NF)
        return self.classifier

    def class_sums(self, summed: int) -> int:
        """The number of classes with sums of their own: all or none."""
        return self.plan.classes if 0 < self.plan.classes * summed**2 <= MAX_CLASS_SUMS else 0


def groups(indexes: Mapping[str, Index]) -> list[Group]:
    """The groups of all datasets. They depend on the datasets alone."""
    found = []
    for role, index in indexes.items():
        before = np.cumsum([0, *(record.samples for record in index.shards)])
        number = min(MAX_GROUPS, len(index.shards))
        bounds = [len(index.shards) * n // number for n in range(number + 1)]
        for start, stop in itertools.pairwise(bounds):
            found.append(Group(role, range(start, stop), int(before[start])))
    return found


def draw(role: str, index: Index, plan: PassPlan) -> np.ndarray:
    """The sorted positions of a dataset's sampled images: `images` of them, or all if it has fewer."""
    rng = np.random.default_rng([plan.seed, ROLES.index(role)])
    drawn: np.ndarray = np.sort(rng.choice(index.samples, min(plan.images, index.samples), replace=False))
    return drawn


def searched(role: str, index: Index, plan: PassPlan, size: int) -> np.ndarray:
    """The sorted positions of the images whose features are kept, `size` numbers each: the sampled ones.

    Of the real dataset also the others, up to MAX_SEARCHED: an image may be a copy of any.
    """
    drawn = draw(role, index, plan)
    most = min(MAX_SEARCHED, MAX_SEARCHED_BYTES // (4 * size))
    if role != "real" or len(drawn) >= min(most, index.samples):
        return drawn
    return np.union1d(drawn, draw(role, index, replace(plan, images=most)))


def make_features(plan: PassPlan, image_shape: tuple[int, int, int]) -> Features:
    """The features of a pass. Raises FeaturesError."""
    return features.make(plan.features, image_shape, _read_weights(plan))


def _read_weights(plan: PassPlan) -> bytes | None:
    if plan.features == features.LITE:
        return feature_weights.read()
    if plan.weights is None:
        return None
    parent, _, name = plan.weights.rpartition("/")
    return Folder(parent or "/").read(name)


def run_pass(
    plan: PassPlan, indexes: Mapping[str, Index], output: Folder, key: str, pool: Pool
) -> dict[str, DatasetFeatures]:
    """Measure every dataset. Groups whose files exist from an earlier start are not measured again.

    Raises: LostWorkError with the first group that failed.
    """
    planned = groups(indexes)
    existing = output.list(PARTS)
    missing = [n for n in range(len(planned)) if part_name(key, n).rpartition("/")[2] not in existing]
    first = [n for n in missing if planned[n].role == plan.tested]
    arguments = {"plan": plan, "output": output.url, "key": key}
    bad, count = [], 0
    with Progress("evaluate", sum(index.samples for index in indexes.values()), "images") as progress:
        for numbers in (first, sorted({*missing} - {*first})):
            for done in actor_pool.map_shards(MeasureGroup, arguments, numbers, pool):
                if done.error:
                    bad.append(done)
                count += done.result.get("images", 0)
                progress.update(count)
            if bad:
                raise LostWorkError(f"{len(bad)} groups of shards could not be measured; the first: {bad[0].error}")
    return {role: _add(planned, role, output, key, draw(role, index, plan)) for role, index in indexes.items()}


def part_name(key: str, number: int) -> str:
    return f"{PARTS}/{key}-{number:05d}.safetensors"


def _add(planned: Sequence[Group], role: str, output: Folder, key: str, drawn: np.ndarray) -> DatasetFeatures:
    """Add up the files of a dataset, in order. `drawn`: the positions of its sampled images."""
    sums: list[Sums] = []
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    answers: Answers | None = None
    for number in [number for number, group in enumerate(planned) if group.role == role]:
        part = load(checked_file.read(output, part_name(key, number)))
        more = [Sums(int(n), t, o) for n, t, o in zip(part["count"], part["total"], part["outer"], strict=True)]
        sums = [a + b for a, b in zip(sums, more, strict=True)] if sums else more
        kept.append((part["features"], part["label"], part["position"]))
        found = Answers(part["answer_distance"], part["answer_label"])
        answers = found if answers is None else answers + found
    assert answers is not None, "a sealed dataset has a shard"
    features_NF, label_N, position_N = (np.concatenate(columns) for columns in zip(*kept, strict=True))
    rows = np.searchsorted(position_N, drawn)
    return DatasetFeatures(
        sums[0], tuple(sums[1:]), features_NF[rows], label_N[rows], drawn, answers, features_NF, position_N
    )


def _pack(
    sums: Sequence[Sums], kept: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], answers: Answers, size: int
) -> bytes:
    nothing = (np.zeros((0, size), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    features_NF, label_N, position_N = (np.concatenate(columns) for columns in zip(nothing, *kept, strict=True))
    return save(
        {
            "count": np.array([one.count for one in sums], np.int64),
            "total": np.stack([one.total_F for one in sums]),
            "outer": np.stack([one.outer_FF for one in sums]),
            "features": features_NF,
            "label": label_N,
            "position": position_N,
            "answer_distance": answers.distance_M,
            "answer_label": answers.label_M,
        }
    )
