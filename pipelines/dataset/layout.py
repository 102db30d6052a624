"""A dataset's files, the indices that each of its shards owns, and its index."""

from dataclasses import dataclass, field

import numpy as np

from pipelines.dataset.identity import Identity
from pipelines.dataset.manifest import ShardRecord

CLAIM = "dataset.json"
SEAL = "index.json"
REJECTS = "rejects.parquet"


class DatasetError(ValueError):
    """A dataset that is missing, not sealed, or not what was asked for: one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Index:
    """A sealed dataset: what index.json says, and the identity that it was claimed with."""

    identity: Identity
    shards: tuple[ShardRecord, ...]
    files: dict[str, str]  # name -> sha256 of everything beside shards and parts
    root: str  # the hash that names the dataset: over identity and shards
    # Of a selection's view (pipelines/dataset/selection.py): the selected indices, ascending, each repeated as often as
    # its weight says. `shards` then count these.
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
