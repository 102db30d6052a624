"""The generation worker: make, encode, score and publish one whole shard a call."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow

from dcgan import model_card, numerics
from dcgan.arithmetic import Arithmetic
from dcgan.sampling.sampler import Sampler
from jobs.cluster import shard_job
from jobs.command import model_store
from jobs.generation.score_histogram import ScoreHistogram
from pipelines import images
from pipelines.dataset import layout, manifest, reader, writer
from pipelines.dataset.labels import labels_of
from pipelines.dataset.shards import Sample
from pipelines.storage.folder import Folder


class GenerateShard:
    """Loads the model once, then makes, encodes and publishes one whole shard a call."""

    def __init__(self, output: str, chosen: Arithmetic) -> None:
        self.folder = Folder(output)
        self.identity = reader.read_claim(self.folder).identity
        here = fingerprint(chosen)
        if here != self.identity.arithmetic:
            raise RuntimeError(
                f"this worker computes as {here}, the dataset was claimed for {self.identity.arithmetic}"
            )
        model = model_store.load_copy(self.folder / model_store.IN_DATASET, self.identity.model)
        self.sampler = Sampler(model, chosen, self.identity.batch)
        self.calibration = manifest.Calibration(*model_card.line_of(model.calibration))
        self.encoder = ThreadPoolExecutor(1, "encoder")

    def __call__(self, shard: int) -> dict[str, Any]:
        indices = layout.shard_range(self.identity, shard)
        seed_start = self.identity.seed_start
        seeds = range(seed_start + indices.start, seed_start + indices.stop)
        labels = labels_of(self.identity.labels, indices)
        logits, pending = [], []
        for batch in self.sampler.batches(seeds, labels):
            pending.append(self.encoder.submit(self.encode, batch.images_NHWC))  # while the next batch computes
            logits.append(batch.logits_N)
        encoded = [image for future in pending for image in future.result()]
        logits_N = np.concatenate(logits)
        if self.identity.image.format != "png":
            logits_N = self.score_again(encoded, labels)
        samples = (
            Sample(index, image, None if labels is None else int(labels[n]))
            for n, (index, image) in enumerate(zip(indices, encoded, strict=True))
        )
        scores_N = manifest.sigmoid(logits_N, self.calibration)
        extra = {"seed": np.arange(seeds.start, seeds.stop), "logit": logits_N, "score": scores_N}
        extension = images.EXTENSIONS[self.identity.image.format]
        record = writer.commit(
            self.folder, shard, "generate", samples, extra, extension=extension, calibration=self.calibration
        )
        return {**shard_job.shard_result(record), "scores": ScoreHistogram.count(scores_N)}

    def encode(self, images_NHWC: np.ndarray) -> list[bytes]:
        image = self.identity.image
        return [images.encode(image_HWC, image.format, image.quality) for image_HWC in images_NHWC]

    def score_again(self, encoded: list[bytes], labels: np.ndarray | None) -> np.ndarray:
        """The logits of the images after lossy compression, so that a score can be computed from the file alone."""
        channels = self.identity.channels
        return self.sampler.score(np.stack([images.decode(data, channels) for data in encoded]), labels)


def fingerprint(chosen: Arithmetic) -> dict[str, str]:
    """The software and hardware that the bytes of a dataset depend on."""
    return {**numerics.fingerprint(chosen), "pyarrow": pyarrow.__version__}
