"""New names for classes, and an image as a dataset stores it."""

from pathlib import Path

import numpy as np
import pytest

from pipelines import images
from pipelines.dataset.identity import IngestIdentity, from_json
from pipelines.images import ImageError
from pipelines.ingest.preparation import prepare
from pipelines.ingest.relabel import Relabelling
from pipelines.sources.base import Choice
from pipelines.sources.folders import FolderSource
from pipelines.storage.folder import Folder

FIELDS = {
    **{"producer": "ingest", "count": 1, "shard_size": 1, "image_size": 8, "channels": 1, "classes": ["a"]},
    **{"image": {"format": "png", "resize": "stretch", "background": [0, 0, 0]}, "arithmetic": {}},
    "limits": {"bytes": 100, "pixels": 200},
}


def identity(**changes: object) -> IngestIdentity:
    made = from_json({**FIELDS, **changes})
    assert isinstance(made, IngestIdentity)
    return made


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    for name in ("tabby/1.png", "tabby/2.png", "lion/3.png", "car/4.png", "5.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return FolderSource(Folder(str(tmp_path)), Choice())


def test_items_have_their_new_names_and_those_left_out_are_counted(source: FolderSource) -> None:
    relabelling = Relabelling({"tabby": "cat", "car": None, "bus": "car"})
    found = {item.name: item.label for item in relabelling.items(source)}
    assert found == {"tabby/1.png": "cat", "tabby/2.png": "cat", "lion/3.png": "lion", "5.png": None}
    assert source.tally.ignored == {"left out by --relabel": 1}
    assert source.tally.listed == 5
    assert relabelling.unused == ["bus"]


def test_declared_classes_have_their_new_names_once(source: FolderSource) -> None:
    relabelling = Relabelling({"tabby": "cat", "car": None})
    assert relabelling.classes(source) is None
    source.classes = ["cat", "tabby", "car", "lion"]
    assert relabelling.classes(source) == ["cat", "lion"]


def test_an_image_is_resized_as_the_identity_says() -> None:
    content = images.encode(np.full((4, 12, 1), 7, np.uint8))
    assert np.array_equal(prepare(content, 0, identity()), np.full((8, 8, 1), 7, np.uint8))
    assert np.array_equal(prepare(content, None, identity(classes=None)), np.full((8, 8, 1), 7, np.uint8))


@pytest.mark.parametrize(
    ("content", "label", "reason"),
    [
        (ImageError("empty"), 0, "empty"),
        (images.encode(np.zeros((4, 12, 1), np.uint8)), None, "no label"),
        (images.encode(np.zeros((20, 20, 1), np.uint8)), 0, "too large: 20x20 pixels, of 200 that are allowed"),
        (b"x", None, "not an image"),
    ],
)
def test_no_image_has_a_reason(content: bytes | ImageError, label: int | None, reason: str) -> None:
    with pytest.raises(ImageError, match=f"^{reason}$"):
        prepare(content, label, identity())


def test_an_identity_without_limits_is_refused() -> None:
    fields = {name: value for name, value in FIELDS.items() if name != "limits"}
    made = from_json(fields)
    assert isinstance(made, IngestIdentity)
    with pytest.raises(ValueError, match="does not say how its images were resized"):
        prepare(b"x", 0, made)
