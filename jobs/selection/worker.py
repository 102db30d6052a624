"""The scoring worker: the logits of one shard of real images a call."""

from typing import Any

from dcgan.arithmetic import Arithmetic
from dcgan.sampling.sampler import Sampler
from jobs.command import model_store
from pipelines.dataset import reader
from pipelines.loading import loader
from pipelines.storage.folder import Folder

_BATCH = 512


class ScoreShard:
    """Scores one shard of real images a call, with the discriminator of the synthetic dataset."""

    def __init__(self, url: str, holdout: str, chosen: Arithmetic) -> None:
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
