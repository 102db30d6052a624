"""A generated dataset in the tools that people open datasets with, each of them the real one."""

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from huggingface_hub import DatasetCard
from PIL import Image
from torch.utils.data import DataLoader

from tests.croissant import read as read_croissant

COUNT = 1000


@pytest.fixture(scope="module")
def rows(synthetic: Path) -> list[dict[str, Any]]:
    """The manifest as pyarrow reads it, and each row's pixels as Pillow reads them from the tar's own bytes."""
    table = pa.concat_tables(pq.read_table(part) for part in sorted((synthetic / "manifest").iterdir()))
    tars = [tar.read_bytes() for tar in tars_of(synthetic)]
    found = table.to_pylist()
    for row in found:
        data = tars[row["shard"]][row["offset"] : row["offset"] + row["size"]]
        row["pixels"] = np.asarray(Image.open(io.BytesIO(data)))
    return found


def tars_of(dataset: Path) -> list[Path]:
    return sorted((dataset / "shards").iterdir())


def test_rows_are_exact(rows: list[dict[str, Any]]) -> None:
    assert [row["index"] for row in rows] == list(range(COUNT))
    assert [row["seed"] for row in rows] == list(range(COUNT))
    assert [row["label"] for row in rows] == [i % 10 for i in range(COUNT)]
    assert {row["pixels"].shape for row in rows} == {(28, 28)}
    assert len({row["pixels"].tobytes() for row in rows}) == COUNT


def test_webdataset(synthetic: Path, rows: list[dict[str, Any]]) -> None:
    urls = [str(tar) for tar in tars_of(synthetic)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in rows]
    assert [sample["cls"] for sample in samples] == [row["label"] for row in rows]
    for sample, row in zip(samples, rows, strict=True):
        assert np.array_equal(np.asarray(sample["png"].convert("L")), row["pixels"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_torch_dataloader(synthetic: Path, rows: list[dict[str, Any]], num_workers: int) -> None:
    urls = [str(tar) for tar in tars_of(synthetic)]
    stream = webdataset.WebDataset(urls, shardshuffle=False).decode("l8").to_tuple("__key__", "png", "cls")
    # Spawned, not forked: this process has threads of Ray and of torch.
    context = "spawn" if num_workers else None
    loader = DataLoader(stream, batch_size=50, num_workers=num_workers, multiprocessing_context=context)
    by_key = {row["key"]: row for row in rows}
    seen = 0
    for keys, images_BHW, labels_B in loader:
        assert images_BHW.shape == (50, 28, 28)
        for key, image, label in zip(keys, images_BHW.numpy(), labels_B.tolist(), strict=True):
            row = by_key.pop(key)  # a second time is a KeyError
            assert label == row["label"]
            assert np.array_equal(image, row["pixels"])
            seen += 1
    assert seen == COUNT


@pytest.mark.parametrize("how", ["data_files", "folder"])
def test_huggingface_datasets(
    synthetic: Path, rows: list[dict[str, Any]], how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets  # reads the environment when it is imported

    if how == "data_files":
        source: dict[str, Any] = {"path": "webdataset", "data_files": [str(tar) for tar in tars_of(synthetic)]}
    else:
        source = {"path": str(synthetic)}  # the front matter of README.md says what it holds
    loaded = datasets.load_dataset(**source, split="train", streaming=False, cache_dir=str(tmp_path))
    assert len(loaded) == COUNT
    assert loaded["__key__"] == [row["key"] for row in rows]
    assert loaded["cls"] == [row["label"] for row in rows]
    for number in range(0, COUNT, 7):
        assert np.array_equal(np.asarray(loaded[number]["png"]), rows[number]["pixels"])


def test_duckdb(synthetic: Path, rows: list[dict[str, Any]]) -> None:
    parts = f"{synthetic}/manifest/*.parquet"
    classes = duckdb.sql(f"select label, count(*), min(seed) from '{parts}' group by label order by label").fetchall()
    assert classes == [(label, COUNT // 10, label) for label in range(10)]
    best = duckdb.sql(
        f"select key, \"offset\", size, sha256 from '{parts}' order by score desc, key limit 5"
    ).fetchall()
    expected = sorted(rows, key=lambda row: (-row["score"], row["key"]))[:5]
    assert best == [(row["key"], row["offset"], row["size"], row["sha256"]) for row in expected]


def test_polars(synthetic: Path, rows: list[dict[str, Any]]) -> None:
    frame = polars.scan_parquet(f"{synthetic}/manifest/*.parquet").sort("index").collect()
    assert frame.schema == {
        "key": polars.String,
        "index": polars.Int64,
        "shard": polars.Int32,
        "offset": polars.Int64,
        "size": polars.Int32,
        "sha256": polars.Binary,
        "label": polars.Int32,
        "seed": polars.Int64,
        "logit": polars.Float32,
        "score": polars.Float32,
    }
    assert frame.to_dicts() == [{name: row[name] for name in frame.columns} for row in rows]


def test_tar(synthetic: Path, rows: list[dict[str, Any]]) -> None:
    for shard, tar in enumerate(tars_of(synthetic)):
        listing = subprocess.run(["tar", "tf", tar], capture_output=True, text=True, check=True)
        assert listing.stderr == ""
        keys = [row["key"] for row in rows if row["shard"] == shard]
        assert listing.stdout.split() == [f"{key}.{ending}" for key in keys for ending in ("png", "cls")]
        assert keys[0] == f"{shard * 250:012d}"


def test_one_image_is_one_range_read(synthetic: Path, rows: list[dict[str, Any]]) -> None:
    row = rows[777]
    with open(synthetic / "shards" / f"{row['shard']:06d}.tar", "rb") as tar:
        tar.seek(row["offset"])
        data = tar.read(row["size"])
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (28, 28))
    unpacked = subprocess.run(
        ["tar", "xOf", synthetic / "shards" / "000003.tar", f"{row['key']}.png"], capture_output=True, check=True
    )
    assert unpacked.stdout == data


def test_croissant(
    synthetic: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = read_croissant(synthetic, monkeypatch, caplog)
    assert found.complaints == []
    assert found.rows == [{name: row[name] for name in found.rows[0]} for row in rows]
    assert [*found.rows[0]] == pq.read_schema(synthetic / "manifest" / "000000.parquet").names
    assert [key for key, _ in found.images] == [row["key"] for row in rows]
    for (_, picture), row in zip(found.images, rows, strict=True):
        assert np.array_equal(np.asarray(picture), row["pixels"])
    assert found.classes == [(digit, str(digit)) for digit in range(10)]
    origin = found.metadata.data_collection
    assert 'images on the dataset "MNIST" with root ' in origin
    assert "(licence: CC-BY-SA-3.0)" in origin


def test_readme(synthetic: Path) -> None:
    """The licence and the citation are those of the digits, handed on by the model."""
    card = DatasetCard.load(synthetic / "README.md")
    matter = card.data
    assert matter.pretty_name == "1,000 synthetic images, made by a DCGAN"
    assert matter.task_categories == ["image-classification"]
    assert (matter.license, matter.size_categories, matter.tags) == (
        "cc-by-sa-3.0",
        ["1K<n<10K"],
        ["ganmill", "synthetic"],
    )
    [config] = matter.configs
    assert sorted(synthetic.glob(config["data_files"])) == tars_of(synthetic)
    body = card.text
    assert body.lstrip().startswith("# 1,000 synthetic images, made by a DCGAN, 28x28x1\n")
    assert "Licence: CC-BY-SA-3.0." in body
    assert "    Y. LeCun, L. Bottou" in body
    for name in pq.read_schema(synthetic / "manifest" / "000000.parquet").names:
        assert f"\n| `{name}` | " in body
    stated = json.loads(body.split("```json\n")[1].split("```")[0])
    assert stated == json.loads((synthetic / "dataset.json").read_text())["identity"]


def test_preview(synthetic: Path, rows: list[dict[str, Any]]) -> None:
    """Ten rows, one a digit, of twelve; 28 pixels drawn twice as large, two (four) pixels apart."""
    preview = np.asarray(Image.open(synthetic / "preview.png"))
    assert preview.shape == ((10 * 30 + 2) * 2, (12 * 30 + 2) * 2)
    small = preview[::2, ::2]
    for label in range(10):
        pictures = [row["pixels"] for row in rows if row["label"] == label][:12]
        for column, pixels in enumerate(pictures):
            top, left = 2 + label * 30, 2 + column * 30
            assert np.array_equal(small[top : top + 28, left : left + 28], pixels)
