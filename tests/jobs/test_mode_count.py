"""The modes of stacked MNIST are counted: all of the real images, few of a collapsed set's."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from jobs.cluster.connection import Pool
from jobs.evaluation import mode_count
from jobs.evaluation.mode_count import CountModes, ModeCount
from pipelines import images
from pipelines.dataset import layout, reader, writer
from pipelines.dataset.identity import from_json
from pipelines.dataset.shards import Sample
from pipelines.sources.base import Item
from pipelines.sources.idx import digits
from pipelines.sources.stacked_mnist import CLASSES, StackedSource
from pipelines.storage.folder import Folder

SHARD = 500


def dataset(place: Path, source: StackedSource, items: Sequence[Item]) -> Folder:
    folder = Folder(str(place))
    identity = from_json(
        {
            **{"producer": "ingest", "count": len(items), "shard_size": SHARD, "image_size": 28, "channels": 3},
            **{"classes": CLASSES, "image": {"format": "png"}, "arithmetic": {}},
        }
    )
    writer.claim(folder, identity, {})
    pictures = list(source.read(items))
    records = {}
    for shard in range(layout.num_shards(identity)):
        numbers = layout.shard_range(identity, shard)
        samples = [Sample(n, images.encode(np.asarray(pictures[n])), int(items[n].label or 0)) for n in numbers]
        records[shard] = writer.commit(folder, shard, "ingest", samples, {"source": ["x"] * len(samples)})
    writer.seal(folder, identity, records, {})
    return folder


@pytest.mark.slow
def test_modes_of_real_digits_and_of_a_collapsed_set(tmp_path: Path) -> None:
    source = StackedSource(digits(), 2000)
    items = [*source.items()]
    real = dataset(tmp_path / "real", source, items)
    one_red = [item for item in items if item.label and item.label[0] == "7"]  # at most 100 modes
    fake = dataset(tmp_path / "fake", source, one_red)
    indexes = {role: reader.open_sealed(folder) for role, folder in (("real", real), ("fake", fake))}
    assert mode_count.is_stacked(indexes["real"].classes or [], indexes["real"].image_shape)
    roots = {role: index.root for role, index in indexes.items()}
    count = ModeCount({"real": real.url, "fake": fake.url}, roots, {}, None, images=15_000, seed=0)
    output = Folder(str(tmp_path / "out"))
    CountModes(count, output.url)(0)
    rows = {(row.measure, row.of): row for row in mode_count.count_modes(count, output, Pool(1, 0.0))}
    found = {key: row.value or 0.0 for key, row in rows.items()}
    true = len({item.label for item in items})
    assert true == pytest.approx(1000 * (1 - np.exp(-2)), rel=0.02)
    assert found["modes", "real"] == pytest.approx(true, rel=0.03)
    assert found["mode_divergence", "real"] == pytest.approx(0.285, rel=0.3)  # of 2,000 images, by chance
    collapsed = len({item.label for item in one_red})
    assert found["modes", "fake"] == pytest.approx(collapsed, abs=25)  # of which some are digits read wrongly
    assert found["mode_divergence", "fake"] > np.log(10) - 0.2
    assert rows["modes", "fake"].n_of == len(one_red)
    assert "by chance alone" in rows["mode_divergence", "real"].note
