"""`verify --against`: a dataset and its source, read again image by image. Made here by ingest's actor, without Ray."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import cv2
import numpy as np
import PIL
import PIL.features
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from jobs import verify
from jobs.command.errors import UsageError
from jobs.ingestion.worker import IngestShard
from jobs.verification import source_comparison
from jobs.verification.worker import VerifyShard
from pipelines import images
from pipelines.dataset import layout, reader, shards, writer
from pipelines.dataset.identity import from_json
from pipelines.dataset.manifest import Reject
from pipelines.errors import DatasetError, SourceError
from pipelines.ingest import catalogue
from pipelines.sources import registry
from pipelines.sources.base import Choice
from pipelines.sources.registry import Origin
from pipelines.storage.folder import Folder
from tests.conftest import refused

CLASSES = ("cats", "dogs", "hens")
EACH, SHARD = 8, 5
Job = Callable[..., CompletedProcess[str]]


def picture(number: int, size: int = 28) -> bytes:
    """Noise, another for each number: no two look alike."""
    return images.encode(np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8))


def folder_of(place: Path) -> Path:
    """24 pictures in three folders, and a file that is none."""
    for number in range(EACH * len(CLASSES)):
        file = place / CLASSES[number // EACH] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number, 28 if number % 2 else 40))
    (place / "cats" / "broken.png").write_bytes(b"no picture")
    return place


def parquet_of(place: Path) -> Path:
    """Three files with a row group of 8 each: the usual layout of Hugging Face's Hub."""
    place.mkdir()
    for number in range(3):
        rows = range(number * EACH, (number + 1) * EACH)
        column = [{"bytes": picture(row), "path": None} for row in rows]
        table = pa.table({"image": column, "label": [CLASSES[row % 3] for row in rows]})
        pq.write_table(table, place / f"{number}.parquet")
    return place


def ingest(source: Path | str, output: Path, settings: dict[str, Any] | None = None, **changes: Any) -> Path:
    """What jobs/ingest.py does, without Ray: draw up, claim, take each shard, seal. `changes` are of the identity."""
    settings = settings or {}
    kind = settings.get("kind") or registry.kind_of(str(source))
    columns = {name: settings.get(name) for name in ("split", "base", "image_column", "label_column")}
    origin = Origin(str(source), kind, Choice(**columns))
    opened = registry.open_source(origin.url, origin.kind, origin.choice)
    relabel, holdout = changes.get("relabel") or {}, changes.get("holdout") or {"share": 0.0, "part": "kept"}
    renamed = (item._replace(label=relabel.get(item.label, item.label)) for item in opened.items())
    scratch = output.with_name(f"{output.name}-scratch")
    scratch.mkdir(parents=True)
    kept, held = catalogue.plan(
        (item for item in renamed if item.label is not None or not relabel),
        origin.url, None, settings.get("labels") != "none", 3, holdout["share"], scratch,
    )  # fmt: skip
    part = kept if holdout["part"] == "kept" else held
    assert part is not None
    here = {"opencv": cv2.__version__, "pillow": PIL.__version__, "jpeg": str(PIL.features.version("jpg"))}
    fields = {
        **{"producer": "ingest", "source": part.digest, "count": len(part), "shard_size": SHARD, "seed": 3},
        "image": {"format": "png", "resize": "crop", "background": [255, 255, 255]},
        **{"image_size": 28, "channels": 3, "classes": part.classes, "relabel": None, "dedupe": None, "holdout": None},
        **{"limits": {"bytes": 1 << 20, "pixels": 1 << 20}, "arithmetic": here},
        **changes,
    }
    identity = from_json(fields)
    folder = Folder(str(output))
    writer.claim(folder, identity, {"source": str(source), **settings})
    part.publish(folder, SHARD)
    take = IngestShard(folder.url, origin)
    for shard in range(layout.num_shards(identity)):
        take(shard)
    for name in (output / "catalogue").iterdir():
        name.unlink()
    (output / "catalogue").rmdir()
    shutil.rmtree(scratch)
    seal(folder)
    return output


def seal(folder: Folder) -> None:
    identity = reader.read_claim(folder).identity
    records = {n: reader.read_part(folder, n)[1] for n in range(layout.num_shards(identity))}
    writer.seal(folder, identity, records, {})


def change(output: Path, how: Callable[[list[shards.Sample], list[str], list[Reject]], None]) -> None:
    """Change all samples of a dataset, their sources and the rejects, and seal it anew: no hash tells."""
    folder = Folder(str(output))
    index = reader.open_sealed(folder)
    parts = [reader.read_sealed_part(folder, record) for record in index.shards]
    samples = [sample for record in index.shards for sample in reader.samples(folder, index, record)]
    names = [name for part in parts for name in part.table["source"].to_pylist()]
    rejects = [reject for part in parts for reject in part.rejects]
    how(samples, names, rejects)
    for record in index.shards:
        owned = layout.shard_range(index.identity, record.shard)
        mine = [n for n, sample in enumerate(samples) if sample.index in owned]
        writer.commit(
            folder, record.shard, "ingest", [samples[n] for n in mine], {"source": [names[n] for n in mine]},
            [reject for reject in rejects if reject.index in owned],
        )  # fmt: skip
    (output / "index.json").unlink()
    seal(folder)


def compare(output: Path, source: Path | str) -> str:
    """What the command finds, without Ray: one actor's work shard by shard, then the driver's."""
    folder = Folder(str(output))
    index = reader.open_sealed(folder)
    how = source_comparison.source_reading(folder, str(source))
    worker = VerifyShard(folder.url, 0, None, how)
    found = [worker(record.shard) for record in index.shards]
    assert json.loads(json.dumps(found)) == found  # as it comes back from an actor
    left_out = source_comparison.missing(
        source_comparison.SourceListing(how), (reader.read_sealed_part(folder, r) for r in index.shards)
    )
    wrong = source_comparison.summarise([*(one["wrong"] for one in found), left_out], index.samples, str(source))
    equal = sum(one["equal"] for one in found)
    assert (equal == index.samples) == ("differ from those" not in wrong and "no longer" not in wrong)
    return wrong


@pytest.fixture(scope="module", params=["folder", "parquet"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source, and the dataset made of it. Not to be changed."""
    place = tmp_path_factory.mktemp(request.param)
    source = folder_of(place / "src") if request.param == "folder" else parquet_of(place / "src")
    return source, ingest(source, place / "data")


@pytest.fixture
def copy(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    return tuple(Path(shutil.copytree(path, tmp_path / path.name)) for path in made)  # type: ignore[return-value]


def test_what_was_taken_right_is_equal_wherever_the_source_lies(made: tuple[Path, Path], tmp_path: Path) -> None:
    source, output = made
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert compare(output, source) == ""
    assert compare(output, shutil.copytree(source, tmp_path / "moved")) == ""
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({}, {"holdout": {"share": 0.4, "part": "kept"}}),
        ({}, {"holdout": {"share": 0.4, "part": "held out"}}),
        ({}, {"relabel": {"cats": "pets", "dogs": "pets"}}),
        ({}, {"relabel": {"cats": None}}),
        ({"labels": "none"}, {}),
        ({}, {"image": {"format": "png", "resize": "pad", "background": [9, 8, 7]}, "channels": 1}),
        ({"kind": "images"}, {"limits": {"bytes": 4000, "pixels": 1000}}),
    ],
)
def test_it_is_read_as_the_dataset_says(settings: dict[str, Any], changes: dict[str, Any], tmp_path: Path) -> None:
    output = ingest(folder_of(tmp_path / "src"), tmp_path / "data", settings, **changes)
    index = reader.open_sealed(Folder(str(output)))
    assert 0 < index.samples < 25
    assert compare(output, tmp_path / "src") == ""


def test_a_picture_of_another_file_is_found(tmp_path: Path) -> None:
    """What several Parquet files got in versions up to f8de981: the row of the same number in the file read last."""
    source = parquet_of(tmp_path / "src")
    output = ingest(source, tmp_path / "data")

    def mix_up(samples: list[shards.Sample], names: list[str], rejects: list[Reject]) -> None:
        by_name = {name: sample.image for name, sample in zip(names, samples, strict=True)}
        for n, name in enumerate(names):
            if name.startswith("1"):
                samples[n] = replace(samples[n], image=by_name["2" + name[1:]])

    change(output, mix_up)
    told = compare(output, source)
    assert told.startswith(f"8 of 24 images differ from those of {source}, the first is sample 0000000000"), told
    assert "(1.parquet#" in told
    assert told.endswith(" of 255 grey levels")


def test_one_pixel_by_one_grey_level_is_found(copy: tuple[Path, Path]) -> None:
    source, output = copy

    def touch(samples: list[shards.Sample], names: list[str], rejects: list[Reject]) -> None:
        pixels = images.decode(samples[7].image, 3).copy()
        pixels[5, 6, 1] ^= 1
        samples[7] = replace(samples[7], image=images.encode(pixels))
        touched.append(f"sample {samples[7].index:012d} ({names[7]})")

    touched: list[str] = []
    change(output, touch)
    assert compare(output, source) == (
        f"1 of 24 images differ from those of {source}, the first is {touched[0]}: "
        "a pixel differs by 1 of 255 grey levels"
    )


def test_a_label_of_another_class_is_found(copy: tuple[Path, Path]) -> None:
    source, output = copy

    def swap(samples: list[shards.Sample], names: list[str], rejects: list[Reject]) -> None:
        n = next(n for n, sample in enumerate(samples) if sample.label == 1)
        samples[n] = replace(samples[n], label=2)

    change(output, swap)
    told = compare(output, source)
    assert told.startswith(f"1 of 24 images differ from those of {source}, the first is sample "), told
    assert told.endswith("): its class is 'hens', that of the source 'dogs'")


def test_images_that_the_dataset_lacks_are_found(copy: tuple[Path, Path]) -> None:
    """What A2 of issue 16 left out: it is in the source, and neither a row nor a reject names it."""
    source, output = copy
    if (source / "0.parquet").exists():
        shutil.copy(source / "0.parquet", source / "3.parquet")
        expected = f"8 images of {source} are neither in the dataset nor among its rejects, the first is 3.parquet#"
    else:
        (source / "ants").mkdir()
        (source / "ants" / "a.png").write_bytes(picture(99))
        expected = f"1 images of {source} are neither in the dataset nor among its rejects, the first is ants/a.png"
    assert compare(output, source).startswith(expected)


def test_images_that_the_source_has_no_more_or_not_the_same_are_found(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "src")
    output = ingest(source, tmp_path / "data")
    (source / "dogs" / "08.png").unlink()
    (source / "hens" / "20.png").write_bytes(b"no picture any more")
    (source / "cats" / "broken.png").write_bytes(picture(100))
    told = compare(output, source)
    first, second, third = told.split("; ")
    assert first.startswith(f"1 of 24 images differ from those of {source}, the first is sample ")
    assert first.endswith("(hens/20.png): the source's image is rejected: not an image")
    assert second.startswith(f"1 of 24 images are no longer in {source}, the first is sample ")
    assert second.endswith("(dogs/08.png)")
    assert third == (f"1 rejected images of {source} are valid now, the first is cats/broken.png (was: not an image)")


def test_a_class_that_was_lost_whole_is_found(tmp_path: Path) -> None:
    """Only one class was seen, and so none was kept: the source has three now."""
    source = folder_of(tmp_path / "src")
    aside = (source / "dogs").rename(tmp_path / "dogs"), (source / "hens").rename(tmp_path / "hens")
    output = ingest(source, tmp_path / "data")
    for folder in aside:
        folder.rename(source / folder.name)
    told = compare(output, source)
    assert told.startswith(f"8 of 8 images differ from those of {source}, the first is sample ")
    assert "its class is None, that of the source 'cats'; 16 images of " in told


def test_a_webdataset(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for number in range(2):
        with tarfile.open(tmp_path / "src" / f"{number}.tar", "w") as tar:
            for sample in range(6):
                for ending, data in (("png", picture(10 * number + sample)), ("cls", str(sample % 2).encode())):
                    member = tarfile.TarInfo(f"{sample:03d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    output = ingest(tmp_path / "src", tmp_path / "data")
    assert compare(output, tmp_path / "src") == ""
    (tmp_path / "src" / "0.tar").rename(tmp_path / "src" / "2.tar")
    (tmp_path / "src" / "1.tar").rename(tmp_path / "src" / "0.tar")
    (tmp_path / "src" / "2.tar").rename(tmp_path / "src" / "1.tar")
    assert compare(output, tmp_path / "src").startswith("12 of 12 images differ from those of ")


def test_other_versions_of_the_libraries_are_allowed_a_tolerance(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "src")
    output = ingest(source, tmp_path / "data", arithmetic={"opencv": "4", "pillow": "9", "jpeg": "1"})

    def shift(by: int) -> Callable[[list[shards.Sample], list[str], list[Reject]], None]:
        def touch(samples: list[shards.Sample], names: list[str], rejects: list[Reject]) -> None:
            pixels = images.decode(samples[0].image, 3).astype(int)
            pixels[0, 0] += np.where(pixels[0, 0] > 127, -by, by)
            samples[0] = replace(samples[0], image=images.encode(pixels.astype(np.uint8)))

        return touch

    change(output, shift(source_comparison.TOLERANCE))
    assert compare(output, source) == ""
    change(output, shift(1))
    change(output, shift(source_comparison.TOLERANCE + 2))
    assert "grey levels" in compare(output, source)


def test_mistakes_are_told_in_a_line(made: tuple[Path, Path], tmp_path: Path) -> None:
    source, output = made
    folder = Folder(str(output))
    with pytest.raises(SourceError, match=r"nowhere: no such folder"):
        source_comparison.source_reading(folder, str(tmp_path / "nowhere"))
    lacking = Folder(str(tmp_path / "lacking"))
    identity = reader.read_claim(folder).identity.to_json()
    for name in ("limits", "seed", "holdout", "relabel"):
        bad = {key: value for key, value in identity.items() if key != name}
        lacking.write("dataset.json", json.dumps({"format": 1, "identity": bad, "settings": {}}).encode())
        with pytest.raises(DatasetError, match=f"does not say how its source was read: its identity has no {name}"):
            source_comparison.source_reading(lacking, str(source))
    for settings in ({"kind": "x"}, {"split": 3}, {"labels": []}):
        lacking.write("dataset.json", json.dumps({"format": 1, "identity": identity, "settings": settings}).encode())
        with pytest.raises(DatasetError, match=r"dataset\.json: does not say how its source was read: "):
            source_comparison.source_reading(lacking, str(source))


def test_the_command(tmp_path: Path, local_ray: None, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder_of(tmp_path / "src")
    output = ingest(source, tmp_path / "data")
    verify.main(verify.VerifySettings(dataset=str(output), against=str(source), workers=1))
    assert capsys.readouterr().out.splitlines()[-1] == f"verify: 24 of 24 images and labels equal to {source}"
    (source / "dogs" / "08.png").write_bytes(picture(7))
    join = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = job("verify", "--dataset", output, "--against", source, "--workers", 1, env=join)
    assert done.returncode == 1, done.stderr
    start = f"verify: error: {output}: 1 of 24 images differ from those of {source}, the first is sample "
    assert done.stderr.splitlines()[-1].startswith(start)
    assert "Traceback" not in done.stderr
    done = job("verify", "--dataset", output, "--against", tmp_path / "nowhere")
    assert refused(done) == f"verify: error: {tmp_path}/nowhere: no such folder, or an empty one; check --source"


@pytest.mark.slow
def test_all_digits(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify.main(verify.VerifySettings(dataset=str(digits), against="digits", workers=1))
    assert capsys.readouterr().out.splitlines()[-1] == "verify: 5,000 of 5,000 images and labels equal to digits"


def test_a_generated_dataset_has_no_source(synthetic: Path) -> None:
    with pytest.raises(UsageError) as error:
        verify.main(verify.VerifySettings(dataset=str(synthetic), against="digits"))
    assert str(error.value) == f"--against digits: {synthetic} was generated and has no source; see --regenerate"
