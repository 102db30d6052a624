"""A dataset's files, the indices that each of its shards owns, and its index."""

from dataclasses import dataclass, field

import numpy as np

from pipelines.dataset.identity import Identity
from pipelines.dataset.manifest import ShardRecord

CLAIM = "dataset.json"
SEAL = "index.json"
REJECTS = "rejects.parquet"


@dataclass(frozen=True, slots=True)
class Index:
    """A sealed dataset: the content of index.json, and the identity of its claim."""

    identity: Identity
    shards: tuple[ShardRecord, ...]
    files: dict[str, str]  # name -> sha256 of every file except shards and parts
    root: str  # the hash of identity and shards: it names the dataset
    # Of a selection (pipelines/dataset/selection.py): the selected indices, ascending, each repeated by its weight.
    # `shards` then count only these samples.
    chosen_N: np.ndarray | None = field(default=None, compare=False)

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def classes(self) -> list[str] | None:
        return self.identity.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels, the same for every image."""
        return self.identity.image_size, self.identity.image_size, self.identity.channels


def num_shards(identity: Identity) -> int:
    return -(-identity.count // identity.shard_size)


def shard_range(identity: Identity, shard: int) -> range:
    """The global indices that a shard owns."""
    size = identity.shard_size
    return range(shard * size, min((shard + 1) * size, identity.count))
