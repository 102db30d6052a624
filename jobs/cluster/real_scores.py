"""The discriminator's logits of real images, in the arithmetic and batches that scored a dataset's synthetic ones."""

from typing import Any

import numpy as np

from dcgan.arithmetic import Arithmetic
from jobs.cluster import actor_pool
from jobs.cluster.connection import Pool
from jobs.cluster.probe import fingerprint, probe
from jobs.command import model_store
from jobs.command.errors import LostWorkError
from jobs.command.progress import Progress
from pipelines.dataset import reader
from pipelines.dataset.layout import Index
from pipelines.loading import loader
from pipelines.storage.folder import Folder

_BATCH = 512


class ScoreShard:
    """Scores one shard of real images a call, with the discriminator of the synthetic dataset."""

    def __init__(self, url: str, holdout: str, chosen: Arithmetic) -> None:
        from dcgan.sampling.sampler import Sampler  # torch, which the driver does not need

        folder, self.holdout = Folder(url), Folder(holdout)
        index, self.real = reader.open_sealed(folder), reader.open_sealed(self.holdout)
        model = model_store.load_copy(folder / model_store.IN_DATASET, index.identity.model)
        self.sampler = Sampler(model, chosen, index.identity.batch)

    def __call__(self, shard: int) -> dict[str, Any]:
        logits: list[float] = []
        for images_NHWC, label_N in loader.in_order(self.holdout, self.real, self.real.shards[shard], _BATCH):
            conditional = self.sampler.config.num_classes > 0
            logits += self.sampler.score(images_NHWC, label_N if conditional else None).tolist()
        return {"logits": logits}


def first_logits(
    folder: Folder, index: Index, holdout: Folder, real: Index, images: int, pool: Pool, command: str
) -> tuple[np.ndarray, dict[str, str]]:
    """logit_N of the first real images, and the fingerprint by which they were computed.

    Ingest deals images in random order, so the first ones are a fair sample.

    Args:   command: for the line of progress. Raises: LostWorkError.
    """
    wanted = "bf16" if index.identity.arithmetic["dtype"] == "bfloat16" else "fp32"  # as for the synthetic images
    chosen, here = probe(pool, wanted, fingerprint, min(pool.workers, len(real.shards)))
    before = np.cumsum([0, *(record.samples for record in real.shards)])
    shards = [record.shard for record in real.shards if before[record.shard] < images]
    arguments = {"url": folder.url, "holdout": holdout.url, "chosen": chosen}
    logits: dict[int, list[float]] = {}
    with Progress(command, int(before[len(shards)]), "real images") as progress:
        for done in actor_pool.map_shards(ScoreShard, arguments, shards, pool):
            if done.error:
                raise LostWorkError(f"{holdout}: shard {done.shard:06d} could not be scored: {done.error}")
            logits[done.shard] = done.result["logits"]
            progress.update(sum(map(len, logits.values())))
    return np.array([logit for shard in shards for logit in logits[shard]], np.float32)[:images], here
