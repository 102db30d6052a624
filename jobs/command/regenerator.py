"""Make images of a synthetic dataset again from their manifest rows, and compare them with the stored ones."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dcgan import arithmetic, model_card, numerics
from dcgan.arithmetic import Arithmetic
from dcgan.sampling.sampler import Sampler
from jobs.command import model_store
from pipelines import images
from pipelines.dataset import manifest, reader
from pipelines.dataset.labels import labels_of
from pipelines.dataset.layout import Index
from pipelines.errors import CorruptError
from pipelines.images import Pixels
from pipelines.storage.folder import Folder


class Regenerator:
    """Makes images again from their manifest rows, with the copy of the model in the dataset."""

    def __init__(self, folder: Folder, index: Index, chosen: Arithmetic) -> None:
        self.folder, self.index = folder, index
        model = model_store.load_copy(folder / model_store.IN_DATASET, index.identity.model)
        self.sampler = Sampler(model, chosen, index.identity.batch)
        self.calibration = manifest.Calibration(*model_card.line_of(model.calibration))
        stored = index.identity.arithmetic
        here = numerics.fingerprint(chosen)
        equal = all(stored.get(name) == here[name] for name in here)
        self.tolerance = 0 if equal else arithmetic.grey_tolerance(stored)

    def compare(self, shard: int, positions: list[int]) -> dict[str, Any]:
        """Make some samples of a shard again. Raises CorruptError for a wrong pixel, score, seed or label."""
        record = self.index.shards[shard]
        part = reader.read_sealed_part(self.folder, record)
        if part.calibration != self.calibration:
            raise CorruptError(
                f"{self.folder}/{record.part}: its scores are calibrated by {part.calibration}, the model's are by "
                f"{self.calibration}"
            )
        rows = part.table.take(positions).to_pylist()
        tar = reader.read_shard(self.folder, record)
        channels = self.index.image_shape[2]
        exact = furthest = 0
        for row in rows:
            stored = images.decode(tar[row["offset"] : row["offset"] + row["size"]], channels)
            labels = labels_of(self.index.identity.labels, range(row["index"], row["index"] + 1))
            where = f"{self.folder}/{record.tar}: sample {row['key']}"
            if row["label"] != (None if labels is None else int(labels[0])):
                raise CorruptError(f"{where}: its label is {row['label']}")
            difference = levels_apart(self.again(row), stored)
            if difference > self.tolerance:
                raise CorruptError(
                    f"{where}: made again from seed {row['seed']} it differs by {difference} of 255 grey levels"
                )
            self.compare_score(row, stored, labels, where)
            exact += difference == 0
            furthest = max(furthest, difference)
        return {"regenerated": len(rows), "exact": exact, "furthest": furthest}

    def again(self, row: Mapping[str, Any]) -> Pixels:
        """A row's image, made from its seed and encoded and decoded as the dataset's images are."""
        labels = labels_of(self.index.identity.labels, range(row["index"], row["index"] + 1))
        made: Pixels = self.sampler.sample(range(row["seed"], row["seed"] + 1), labels).images_NHWC[0]
        image = self.index.identity.image
        if image.format == "png":
            return made
        return images.decode(images.encode(made, image.format, image.quality), made.shape[2])

    def compare_score(self, row: dict[str, Any], stored: np.ndarray, labels: np.ndarray | None, where: str) -> None:
        """Raises CorruptError if the logit or score of a row differs from the discriminator's for its image."""
        logit = self.sampler.score(stored[None], labels)
        tolerance = arithmetic.logit_tolerance(self.index.identity.arithmetic) if self.tolerance else 0.0
        score = manifest.sigmoid(logit, self.calibration)[0]
        far = tolerance * max(1.0, self.calibration.slope / 4)  # the sigmoid is nowhere steeper than 1/4
        # Not `> tolerance`: no comparison with NaN is true.
        if not (abs(float(logit[0]) - row["logit"]) <= tolerance and abs(float(score) - row["score"]) <= far):
            raise CorruptError(
                f"{where}: its logit is {row['logit']:.6f} and its score {row['score']:.6f}; "
                f"the discriminator gives {float(logit[0]):.6f} and {float(score):.6f}"
            )


def levels_apart(one: Pixels, other: Pixels) -> int:
    """The largest difference of a pixel, in grey levels."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())
