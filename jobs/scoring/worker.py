"""The workers: one trains the discriminator on, the others score a shard a call.

Synthetic images to learn from are made anew, by seeds that no dataset has: no image is scored by a network that learnt
from it.
"""

from collections.abc import Generator
from dataclasses import asdict, replace
from itertools import chain
from typing import Any

import numpy as np

from dcgan import model_card
from dcgan.arithmetic import Arithmetic
from dcgan.evaluation import calibration
from dcgan.model_files import Model
from dcgan.sampling.sampler import Sampler
from dcgan.training import continued
from jobs.command import model_store
from pipelines import images
from pipelines.dataset import reader, selection
from pipelines.dataset.identity import ImageFormat
from pipelines.dataset.layout import Index
from pipelines.loading import loader, order
from pipelines.storage.folder import Folder

SEED_START = 2**62 + 2**60
_MEASURED_START = SEED_START + 2**59
_SHUFFLE = 16_384
_BATCH = 512


class TrainOn:
    """Trains a model's discriminator on, measures and calibrates it, and publishes the model."""

    def __init__(
        self,
        place: str,
        real: str,
        output: str,
        image: ImageFormat,
        chosen: Arithmetic,
        images: int,
        held_out: float,
        measured: int,
        seed: int,
    ) -> None:
        self.real, self.output, self.image, self.chosen, self.seed = Folder(real), Folder(output), image, chosen, seed
        self.model, self.stored = model_store.open_model(Folder(place))
        self.sampler = Sampler(self.model, chosen, continued.HALF)
        self.steps = max(1, images // continued.HALF)
        self.trained, self.held = split(self.real, reader.open_sealed(self.real), held_out, measured)

    def __call__(self, shard: int) -> dict[str, Any]:
        batches = self.batches()
        discriminator = continued.train_on(self.model.discriminator, batches, self.steps, self.chosen)
        batches.close()
        made = replace(self.model, discriminator=discriminator)
        real_NHWC, label_N = everything(self.real, self.held)
        fake_NHWC = self.fakes(label_N, _MEASURED_START)
        labels = label_N if self.sampler.config.num_classes else None
        after = Sampler(made, self.chosen, continued.HALF)
        (real_N, fake_N), before = (
            [sampler.score(one, labels) for one in (real_NHWC, fake_NHWC)] for sampler in (after, self.sampler)
        )
        fit = calibration.calibrate(real_N, fake_N, self.seed)
        facts = {
            "root": self.trained.root,
            "images": self.held.samples,
            "trained_on": self.model.provenance.get("data") == self.trained.root,
        }
        learnt = {
            "from": self.stored.digest,
            "real": self.trained.root,
            "images": self.steps * continued.HALF,
            "of": self.trained.samples,
            "what": continued.PROTOCOL,
        }
        provenance = {**self.model.provenance, "discriminator": learnt}
        made = Model(made.generator, discriminator, made.classes, provenance, {**asdict(fit), "real": facts})
        digest = model_store.save(made, self.output)
        return {
            "model": digest,
            "discriminator": learnt,
            "calibration": {**asdict(fit), "real": facts},
            "auc_before": calibration.area(*before),
        }

    def batches(self) -> Generator[continued.Batch, None, None]:
        """real_BHWC, fake_BHWC and label_B, without end."""
        counts = tuple(record.samples for record in self.trained.shards)
        plan = order.make_plan(counts, continued.HALF, _SHUFFLE, self.seed)
        for step, batch in enumerate(loader.batches(self.real, self.trained, plan, 0, 1, 0)):
            fakes = self.fakes(batch.labels_B, SEED_START + step * continued.HALF)
            yield batch.images_BHWC, fakes, batch.labels_B

    def fakes(self, label_N: np.ndarray, seed: int) -> np.ndarray:
        """images_NHWC as a dataset stores them, also after a lossy format."""
        labels = label_N if self.sampler.config.num_classes else None
        made = self.sampler.sample(range(seed, seed + len(label_N)), labels).images_NHWC
        if self.image.format == "png":
            return made
        encoded = [images.encode(one, self.image.format, self.image.quality) for one in made]
        return np.stack([images.decode(one, made.shape[3]) for one in encoded])


class ScoreShard:
    """The calibrated logits of one shard a call, by the model in `scorer`."""

    def __init__(self, url: str, scorer: str, chosen: Arithmetic) -> None:
        self.folder = Folder(url)
        self.index = reader.open_sealed(self.folder)
        model, _ = model_store.open_model(Folder(scorer))
        self.slope, self.intercept = model_card.line_of(model.calibration)
        self.sampler = Sampler(model, chosen, self.index.identity.batch)

    def __call__(self, shard: int) -> dict[str, Any]:
        logits: list[float] = []
        for images_NHWC, label_N in loader.in_order(self.folder, self.index, self.index.shards[shard], _BATCH):
            found_N = self.sampler.score(images_NHWC, label_N if self.sampler.config.num_classes else None)
            logits += (self.slope * found_N.astype(np.float64) + self.intercept).astype(np.float32).tolist()
        return {"logits": logits}


def split(folder: Folder, index: Index, held_out: float, measured: int) -> tuple[Index, Index]:
    """A dataset's first images, to learn from, and its last ones: ingest deals images in random order."""
    parts = [reader.read_sealed_part(folder, record).table["index"].to_numpy() for record in index.shards]
    index_N = np.concatenate(parts)
    cut = len(index_N) - round(held_out * len(index_N))
    return selection.restrict(index, index_N[:cut]), selection.restrict(index, index_N[cut:][:measured])


def everything(folder: Folder, index: Index) -> tuple[np.ndarray, np.ndarray]:
    """images_NHWC and label_N of all samples, in order."""
    found = [loader.in_order(folder, index, record, _BATCH) for record in index.shards]
    images_list, label_list = zip(*chain.from_iterable(found), strict=True)
    return np.concatenate(images_list), np.concatenate(label_list)
