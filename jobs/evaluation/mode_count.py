"""The modes of stacked MNIST that a dataset reaches: an actor trains a classifier of digits, and counts its answers."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from dcgan.evaluation import classifier, modes
from jobs.cluster import actor_pool
from jobs.cluster.connection import Pool
from jobs.command.errors import LostWorkError
from jobs.evaluation.feature_pass import PARTS
from jobs.evaluation.metrics import Row
from pipelines.dataset import checked_file, claim, selection
from pipelines.dataset.layout import Index
from pipelines.loading import loader, order
from pipelines.sources.stacked_mnist import CLASSES
from pipelines.storage.folder import Folder

_SHUFFLE = 16_384


@dataclass(frozen=True, slots=True)
class ModeCount:
    """The datasets whose modes are counted, by role, the real one first. An equal count gives an equal file."""

    urls: Mapping[str, str]
    roots: Mapping[str, str]
    selections: Mapping[str, str]
    selected: str | None  # the digest of the selection
    images: int  # that the classifier sees
    seed: int

    @property
    def name(self) -> str:
        key = claim.canonical({**asdict(self), "what": f"modes {modes.IMAGES}; {classifier.PROTOCOL}"})
        return f"{PARTS}/{hashlib.sha256(key).hexdigest()[:16]}-modes.safetensors"


class CountModes:
    """Trains a classifier on the channels of the real images, and counts the classes of all datasets' first images."""

    def __init__(self, count: ModeCount, output: str) -> None:
        self.count, self.output = count, Folder(output)

    def __call__(self, shard: int) -> dict[str, Any]:
        opened = {role: self._open(role) for role in self.count.urls}
        folder, index = opened["real"]
        plan = order.make_plan(
            tuple(record.samples for record in index.shards),
            min(classifier.BATCH, index.samples),
            _SHUFFLE,
            self.count.seed,
        )
        batches = loader.batches(folder, index, plan, 0, 1, 0)
        size, steps = index.image_shape[0], max(1, self.count.images // plan.batch)
        reader = classifier.train((size, size, 1), 10, _digits(batches), steps, self.count.seed)
        batches.close()
        found = {}
        for role, (folder, index) in opened.items():
            answers = [modes.classes_of(reader, images_NHWC) for images_NHWC, _ in _first(folder, index)]
            found[role] = np.bincount(np.concatenate(answers), minlength=modes.CLASSES)
        labels_N = np.concatenate([label_N for _, label_N in _first(*opened["real"])])
        checked_file.write(self.output, self.count.name, save({**found, "share": modes.shares(labels_N)}))
        return {}

    def _open(self, role: str) -> tuple[Folder, Index]:
        folder = Folder(self.count.urls[role])
        return folder, selection.open_through(folder, self.count.selections.get(role))


def is_stacked(classes: Sequence[str], image_shape: tuple[int, int, int]) -> bool:
    """Whether images are stacks of three digits: colour, of the classes 000 to 999."""
    return list(classes) == CLASSES and image_shape[2] == 3


def count_modes(count: ModeCount, output: Folder, pool: Pool) -> list[Row]:
    """Two numbers a dataset. Raises LostWorkError if they could not be counted."""
    if count.name.rpartition("/")[2] not in output.list(PARTS):
        print(f"evaluate: counting modes by a classifier of digits, {count.images:,} images", flush=True)
        for done in actor_pool.map_shards(CountModes, {"count": count, "output": output.url}, [0], pool):
            if done.error:
                raise LostWorkError(f"the modes were not counted: {done.error}")
    found = load(checked_file.read(output, count.name))
    rows = []
    for role in (*(role for role in count.urls if role != "real"), "real"):
        count_K, size = found[role], int(found[role].sum())
        chance = (modes.CLASSES - 1) / (2 * size)
        values: dict[str, tuple[float, str]] = {
            "modes": (modes.reached(count_K), f"classes of {modes.CLASSES:,} with an image"),
            "mode_divergence": (modes.divergence(count_K, found["share"]), f"KL in nats; {chance:.3f} by chance alone"),
        }
        rows += [
            Row(name, role, "real", None, value, None, size, int(found["real"].sum()), note)
            for name, (value, note) in values.items()
        ]
    return rows


def _digits(batches: Iterator[loader.Batch]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Grey digits and their labels: of each batch one channel, in turn."""
    for channel, batch in zip(itertools.cycle(range(3)), batches, strict=False):
        grey_BHW1 = np.ascontiguousarray(batch.images_BHWC[..., channel : channel + 1])
        yield grey_BHW1, modes.digits_of(batch.labels_B)[:, channel]


def _first(folder: Folder, index: Index) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The first images and labels of a dataset, up to modes.IMAGES. Both producers deal them in random order."""
    left = modes.IMAGES
    for record in index.shards:
        for images_NHWC, label_N in loader.in_order(folder, index, record, 512):
            yield images_NHWC[:left], label_N[:left]
            left -= len(label_N[:left])
            if not left:
                return
