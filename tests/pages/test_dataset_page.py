"""The page of a dataset, by its command."""

import base64
import json
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.command.errors import UsageError
from jobs.presentation import report
from pipelines.dataset import reader
from pipelines.dataset.manifest import ShardRecord
from pipelines.errors import CorruptError, DatasetError
from pipelines.storage.folder import Folder
from tests.pages import parsed
from tests.pages.conftest import real_dataset, write_dataset_page


def pictures(page: parsed.Page) -> dict[str, bytes]:
    return {
        element.attributes["alt"] or "": base64.b64decode((element.attributes["src"] or "").split(",")[1])
        for element in page.all("img")
    }


def test_a_real_dataset(real_page: Path) -> None:
    page = parsed.check(real_page.read_bytes())
    dataset = Folder(str(real_page.with_suffix("")))
    index = reader.open_sealed(dataset)
    for text in ("27 images, 16x16x3, 2 classes", "unknown", index.root, "cd" * 32, "/pictures", "a<b", "27.txt"):
        assert text in page.words
    assert "3 sources were not taken: not an image 2 duplicate 1" in page.words
    shown = pictures(page)
    assert len(shown) == 24  # twelve of each class
    rows = {row["key"]: row for row in ds.dataset(real_page.with_suffix("") / "manifest").to_table().to_pylist()}
    for alt, data in shown.items():
        assert data == reader.read_image(dataset, rows[alt.split()[1]])
        assert alt.endswith(f"of class {index.classes[rows[alt.split()[1]]['label']]}")  # type: ignore[index]


def test_a_synthetic_dataset_names_its_chain_and_its_ends(synthetic_page: Path) -> None:
    page = parsed.check(synthetic_page.read_bytes())
    dataset = synthetic_page.with_suffix("")
    identity = json.loads((dataset / "dataset.json").read_text())["identity"]
    card = json.loads((dataset / "model" / "model.json").read_text())
    hashes = [identity["model"], reader.open_sealed(Folder(str(dataset))).root]
    assert [element.text for element in page.all("code") if "li" in element.inside][1:] == hashes
    assert card["provenance"].get("data", "unknown") in page.words
    rows = ds.dataset(dataset / "manifest").to_table().to_pylist()
    by_score = [row["key"] for row in sorted(rows, key=lambda row: row["logit"])]
    shown = [element.attributes["alt"] or "" for element in page.all("img")]
    last = [alt.split()[1] for alt in shown[-2 * len(rows) :]]
    assert last == by_score[::-1] + by_score
    assert f"score {max(row['score'] for row in rows):.3f}" in " ".join(shown)


def test_without_classes_and_of_some_shards(tmp_path: Path) -> None:
    dataset = real_dataset(tmp_path / "d", classes=(), count=40)
    page = parsed.check(write_dataset_page(dataset, shards=2).read_bytes())
    assert "Pictures and charts are of 18 images of 2 shards" in page.words
    keys = [alt.split()[1] for alt in pictures(page)]
    assert keys == [f"{n:012d}" for n in [*range(10), *range(20, 30)] if n % 10 != 7]


def test_nothing_of_the_dataset_changes(tmp_path: Path) -> None:
    dataset = real_dataset(tmp_path / "d", size=64)
    before = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    page = write_dataset_page(dataset)
    assert {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()} == before
    first = page.read_bytes()
    assert write_dataset_page(dataset).read_bytes() == first


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    dataset = real_dataset(tmp_path / "d")
    with pytest.raises(UsageError, match=r"d/x\.html: inside the dataset, which is sealed; name a file beside it$"):
        write_dataset_page(dataset, output=str(dataset / "x.html"))
    with pytest.raises(UsageError, match=r"d\.txt: must end with \.html$"):
        write_dataset_page(dataset, output=str(tmp_path / "d.txt"))
    with pytest.raises(DatasetError, match="no dataset here"):
        write_dataset_page(tmp_path)
    tar = dataset / "shards" / "000000.tar"
    tar.write_bytes(tar.read_bytes()[:-2000].replace(b"IDAT", b"IDAU"))
    with pytest.raises(CorruptError, match=r"shards/000000\.tar: sample 0"):
        write_dataset_page(dataset)
    (dataset / "rejects.parquet").write_bytes(b"")
    with pytest.raises(CorruptError, match=r"rejects\.parquet: changed after the seal"):
        report._rejects(Folder(str(dataset)), reader.open_sealed(Folder(str(dataset))))


@given(st.integers(1, 500), st.integers(1, 100))
def test_shards_are_taken_evenly(count: int, most: int) -> None:
    records = [ShardRecord(n, 1, 1, "", 1, "") for n in range(count)]
    taken = [record.shard for record in report._spread(records, most)]
    assert len(taken) == min(count, most)
    assert taken == sorted({*taken})
    assert taken[0] == 0
    gaps = [after - before for before, after in zip(taken, [*taken[1:], count], strict=True)]
    assert max(gaps) - min(gaps) <= 1
