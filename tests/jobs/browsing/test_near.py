"""An image made again in the helper's process, and the nearest of all training images."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.browsing.main import _beyond_reach
from jobs.browsing.near import Helper, find_nearest
from pipelines.dataset import facts, reader
from pipelines.dataset.facts import Facts
from pipelines.errors import CorruptError
from pipelines.storage.folder import Folder
from tests.golden.test_golden import ARCHIVE
from tests.jobs.browsing.conftest import make


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("golden")
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(root, filter="data")
    return root


def about(folder: Folder) -> Facts:
    index = reader.open_sealed(folder)
    return facts.gather(folder, index.identity, {record.shard: record for record in index.shards})


def test_the_nearest_is_the_nearest_of_all(golden: Path) -> None:
    real, fake = golden / "real", golden / "synthetic" / "dcgan"
    row = reader.read_part(Folder(str(fake)), 1)[0].table.to_pylist()[3]
    wanted = np.asarray(Image.open(io.BytesIO(reader.read_image(Folder(str(fake)), row)))).astype(float)
    distances = {}
    for record in reader.open_sealed(Folder(str(real))).shards:
        for one in reader.read_part(Folder(str(real)), record.shard)[0].table.to_pylist():
            pixels = np.asarray(Image.open(io.BytesIO(reader.read_image(Folder(str(real)), one)))).astype(float)
            distances[one["key"]] = float(np.sqrt(np.square(pixels - wanted).mean()))
    found = find_nearest(str(fake), str(real), row)
    assert (found.key, found.searched) == (min(distances, key=lambda key: distances[key]), 48)
    assert found.distance == pytest.approx(distances[found.key], rel=1e-5)


@pytest.mark.slow
def test_an_image_is_made_again_in_a_process_of_its_own(golden: Path) -> None:
    """From another one's seed it is another image; and a model that is gone is one line."""
    place = golden / "synthetic" / "dcgan-colour"
    helper = Helper(str(place), str(golden / "real"))
    try:
        rows = reader.read_part(Folder(str(place)), 0)[0].table.to_pylist()
        right, wrong = helper.again(rows[2]), helper.again({**rows[2], "seed": rows[3]["seed"]})
        assert right.levels <= right.tolerance
        assert wrong.levels > 24
        with pytest.raises(CorruptError, match="does not match its row"):
            helper.again({**rows[2], "sha256": bytes(32)})
    finally:
        helper.close()


def test_why_the_training_images_are_not_within_reach(golden: Path, tmp_path: Path) -> None:
    fake = about(Folder(str(golden / "synthetic" / "dcgan")))
    assert _beyond_reach(fake, str(golden / "real")) == "the model does not say which dataset it was trained on"
    assert "was ingested" in _beyond_reach(about(Folder(str(golden / "real"))), str(golden / "real"))
    folder = make(tmp_path / "d", count=40)
    folder.write("model/model.json", b'{"provenance": {"data": "%s"}}' % (b"b" * 64))
    assert "name their dataset with --real" in _beyond_reach(about(folder), str(tmp_path / "none"))
    assert "is not the dataset that the model was trained on" in _beyond_reach(about(folder), str(golden / "real"))
    root = reader.open_sealed(Folder(str(golden / "real"))).root
    folder.write("model/model.json", b'{"provenance": {"data": "%s"}}' % root.encode())
    assert "another size" in _beyond_reach(about(folder), str(golden / "real"))
