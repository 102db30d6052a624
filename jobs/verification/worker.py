"""The verification worker: check one shard a call, make some of its images again, compare them with the source."""

from typing import Any

from dcgan.arithmetic import Arithmetic
from jobs.command.regenerator import Regenerator
from jobs.verification.source_comparison import Comparison, SourceReading
from pipelines.dataset import layout, reader
from pipelines.dataset.layout import Index
from pipelines.storage.folder import Folder


class VerifyShard:
    """Checks one shard a call; makes some of its images again, and compares all with the source, if asked."""

    def __init__(self, url: str, regenerate: int, chosen: Arithmetic | None, how: SourceReading | None = None) -> None:
        self.folder = Folder(url)
        self.index = reader.open_sealed(self.folder)
        self.regenerate = regenerate
        self.regenerator = Regenerator(self.folder, self.index, chosen) if chosen else None
        self.comparison = Comparison(self.folder, self.index, how) if how else None

    def __call__(self, shard: int) -> dict[str, Any]:
        record = self.index.shards[shard]
        samples = reader.check_shard(self.folder, self.index, record)
        result: dict[str, Any] = {"samples": samples, "regenerated": 0, "exact": 0, "furthest": 0}
        chosen = _regenerated_positions(self.index, shard, self.regenerate)
        if self.regenerator and chosen:
            result |= self.regenerator.compare(shard, chosen)
        if self.comparison:
            result |= self.comparison.compare(shard)
        return result


def _regenerated_positions(index: Index, shard: int, regenerate: int) -> list[int]:
    """The positions in a shard of the samples to make again: `regenerate` of the whole dataset, evenly spaced."""
    total = index.samples
    owned = layout.shard_range(index.identity, shard)
    number = min(regenerate, total)
    # The samples floor(i * total / number) for i in range(number) that this shard owns.
    first = -(-owned.start * number // total)
    last = -(-owned.stop * number // total)
    return [i * total // number - owned.start for i in range(first, last)]
