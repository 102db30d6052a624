"""What is out there stays usable: what an earlier version made is opened, checked, made again, extended, trained on.

The archive and what is in it: tests/golden/make.py. Bits are compared where they are promised: by the same libraries on
the same kind of processor. Elsewhere pixels and logits have to be within the stated tolerance.
"""

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from dcgan import model_card, model_files, numerics
from jobs import generate, ingest, train
from jobs.command import model_store
from jobs.command.regenerator import Regenerator
from jobs.training import run_store
from pipelines import images
from pipelines.dataset import reader
from pipelines.storage.folder import Folder
from tests.golden import make

pytestmark = pytest.mark.slow

ARCHIVE = Path(__file__).with_name("golden.tar.xz")


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The goldens, unpacked. Not to be changed; copy for that."""
    root = tmp_path_factory.mktemp("golden")
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(root, filter="data")
    return root


@pytest.fixture(scope="module")
def facts(golden: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((golden / "facts.json").read_text())
    return read


@pytest.fixture(scope="module")
def one_cpu() -> Iterator[None]:
    make.one_cpu()
    yield
    ray.shutdown()


def same_bits(facts: dict[str, Any]) -> bool:
    return bool(facts["processor"] == make.processor())


@pytest.mark.parametrize("name", ["real", *(f"synthetic/{name}" for name in make.NETWORKS)])
def test_a_dataset_of_then_is_whole(golden: Path, facts: dict[str, Any], name: str) -> None:
    folder = Folder(str(golden / name))
    index = reader.open_sealed(folder)
    kind, _, network = name.partition("/")
    assert index.root == (facts["synthetic"][network] if network else facts[kind])
    reader.check_files(folder, index)
    assert sum(reader.check_shard(folder, index, record) for record in index.shards) == (
        make.COUNT if network else len([*(golden / "source").rglob("*.png")])
    )


@pytest.mark.parametrize("name", make.NETWORKS)
def test_a_model_of_then_is_read_and_its_images_are_made_again(golden: Path, facts: dict[str, Any], name: str) -> None:
    model, digest = model_store.load(Folder(str(golden / "models" / name)))
    folder = Folder(str(golden / "synthetic" / name))
    index = reader.open_sealed(folder)
    assert digest == index.identity.model
    regenerator = Regenerator(folder, index, numerics.choose("fp32", "cpu"))
    made = [regenerator.compare(record.shard, [*range(record.samples)]) for record in index.shards]
    assert sum(shard["regenerated"] for shard in made) == make.COUNT
    if same_bits(facts):
        assert sum(shard["exact"] for shard in made) == make.COUNT
    again = model_files.pack(model)
    for file in model_card.WEIGHTS:
        assert again[file] == (golden / "models" / name / file).read_bytes()


def test_the_models_of_then_make_pictures_that_differ(golden: Path) -> None:
    """So that the tests of this file can fail."""
    for name in make.NETWORKS:
        folder = Folder(str(golden / "synthetic" / name))
        index = reader.open_sealed(folder)
        pixels = [
            images.decode(sample.image, index.image_shape[2])
            for record in index.shards
            for sample in reader.samples(folder, index, record)
        ]
        assert len({picture.tobytes() for picture in pixels}) == make.COUNT
        assert max(int(picture.max()) - int(picture.min()) for picture in pixels) > 100


@pytest.mark.usefixtures("one_cpu")
class TestJobs:
    def test_the_same_source_gives_the_same_dataset(self, golden: Path, facts: dict[str, Any], tmp_path: Path) -> None:
        ingest.main(make.ingesting(golden, tmp_path / "real"))
        then, now = (json.loads((at / "real/dataset.json").read_text())["identity"] for at in (golden, tmp_path))
        versions, today = then.pop("arithmetic"), now.pop("arithmetic")
        assert then == now
        if versions == today:
            assert make.root_of(tmp_path / "real") == facts["real"]

    @pytest.mark.parametrize("name", make.NETWORKS)
    def test_the_same_settings_give_the_same_dataset_and_a_longer_one(
        self, golden: Path, facts: dict[str, Any], tmp_path: Path, name: str
    ) -> None:
        """From a half-made dataset where there is one: made, then extended."""
        output = tmp_path / "synthetic"
        if not same_bits(facts):  # another identity, and other bytes: a new dataset
            generate.main(make.generating(name, golden, output, make.LONGER))
            assert reader.open_sealed(Folder(str(output))).samples == make.LONGER
            return
        begun = golden / "half" if name == "cdcgan" else golden / "synthetic" / name
        shutil.copytree(begun, output)
        if name == "cdcgan":
            generate.main(make.generating(name, golden, output))
            assert make.root_of(output) == facts["synthetic"][name]
        generate.main(make.generating(name, golden, output, make.LONGER))
        assert make.root_of(output) == facts["extended"][name]

    def test_a_run_of_then_goes_on_from_its_checkpoint(
        self, golden: Path, facts: dict[str, Any], tmp_path: Path
    ) -> None:
        run = shutil.copytree(golden / "run", tmp_path / "run")
        assert make.newest(run) == facts["checkpoint"]
        train.main(make.training(golden / "real", run, make.MORE))
        assert run_store.read_stats(Folder(str(run)))[-1]["images"] == make.MORE
        if same_bits(facts):
            assert make.newest(run) == facts["trained_on"]
