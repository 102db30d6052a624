"""What people have, made into datasets: folders, zips, IDX files, and pictures of all kinds, good and bad."""

import gzip
import io
import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from jobs import ingest, verify
from jobs.cluster import connection
from jobs.cluster.shard_job import ShardJob, run_shard_job
from jobs.command.errors import LostWorkError, UsageError
from jobs.command.settings import load
from jobs.ingestion import duplicate_search
from jobs.ingestion.worker import IngestShard
from pipelines.dataset import reader, shards
from pipelines.dataset.layout import Index
from pipelines.errors import DatasetError, SourceError
from pipelines.ingest import catalogue
from pipelines.ingest.catalogue import Catalogue
from pipelines.sources import registry
from pipelines.sources.base import Choice
from pipelines.storage.folder import Folder
from tests.conftest import Job

Parts = tuple[Folder, dict[str, Any], Catalogue, registry.Origin]

BACKGROUND = (16, 32, 48)
NOISE = 16  # pictures of the right size a class
RNG_SEED = 5


def png(image: Image.Image, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG", **options)
    return sink.getvalue()


def noise(number: int) -> np.ndarray:
    return np.random.default_rng([RNG_SEED, number]).integers(0, 256, (32, 32, 3), np.uint8)


def emoji() -> Image.Image:
    """A red square on nothing, 64x64."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[16:48, 16:48] = (255, 0, 0, 255)
    return Image.fromarray(pixels)


def icon() -> Image.Image:
    """A palette: the left half transparent, the right half green, 32x32."""
    image = Image.new("P", (32, 32), 0)
    image.putpalette([9, 9, 9, 0, 200, 0])
    image.paste(1, (16, 0, 32, 32))
    return image


BAD = {
    "cats/cut.png": png(Image.fromarray(noise(99)))[:700],
    "dogs/empty.png": b"",
    "dogs/text.png": b"hello, this is no picture",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 32x32 noise, some of other kinds, three that are damaged, and what is not to be looked at."""
    folder = tmp_path_factory.mktemp("pictures")
    files = {f"{name}/{i:02d}.png": png(Image.fromarray(noise(i))) for i in range(NOISE) for name in ("cats", "dogs")}
    files["cats/grey.png"] = png(Image.fromarray(noise(50)[:, :, 0]))
    files["cats/emoji.png"] = png(emoji())
    files["dogs/icon.png"] = png(icon(), transparency=0)
    files["dogs/wide.webp"] = png(Image.fromarray(np.hstack([noise(51), noise(52)])))  # a PNG by content
    files["dogs/notes.txt"] = b"not an image, by its name"
    files["dogs/.hidden.png"] = b"never looked at"
    for name, data in (files | BAD).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def take(source: Path, output: Path, **changes: Any) -> Index:
    settings = {"image_size": 32, "channels": 3, "background": "#102030", "shard_size": 10, "workers": 1, **changes}
    ingest.main(ingest.IngestSettings(source=str(source), output=str(output), **settings))
    return reader.open_sealed(Folder(str(output)))


@pytest.fixture(scope="module")
def taken(pictures: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures as a dataset. Not to be changed."""
    output = tmp_path_factory.mktemp("taken") / "real"
    take(pictures, output)
    return output


def pixels_by_source(output: Path) -> dict[str, tuple[int | None, np.ndarray]]:
    """Label and pixels, as Pillow reads them, of each source."""
    index = reader.open_sealed(Folder(str(output)))
    found = {}
    for record in index.shards:
        part = pq.read_table(output / record.part).to_pylist()
        for row, sample in zip(part, shards.unpack((output / record.tar).read_bytes(), "here"), strict=True):
            assert row["index"] == sample.index
            found[row["source"]] = (sample.label, np.asarray(Image.open(io.BytesIO(sample.image))))
    return found


def test_a_folder_of_classes(taken: Path) -> None:
    index = reader.open_sealed(Folder(str(taken)))
    assert index.classes == ["cats", "dogs"]
    assert index.image_shape == (32, 32, 3)
    found = pixels_by_source(taken)
    good = {f"{name}/{i:02d}.png" for i in range(NOISE) for name in ("cats", "dogs")}
    assert set(found) == good | {"cats/grey.png", "cats/emoji.png", "dogs/icon.png", "dogs/wide.webp"}
    for source, (label, _) in found.items():
        assert label == (0 if source.startswith("cats/") else 1)
    for source in good:  # the right size keeps its pixels
        assert np.array_equal(found[source][1], noise(int(source[5:7])))
    assert np.array_equal(found["cats/grey.png"][1], noise(50)[:, :, :1].repeat(3, 2))


def test_transparency_lies_over_the_background(taken: Path) -> None:
    found = pixels_by_source(taken)
    square = found["cats/emoji.png"][1]
    assert square[0, 0].tolist() == square[31, 16].tolist() == list(BACKGROUND)
    assert square[16, 16].tolist() == [255, 0, 0]
    half = found["dogs/icon.png"][1]
    assert (half[:, :16] == BACKGROUND).all()
    assert (half[:, 16:] == (0, 200, 0)).all()
    assert np.array_equal(found["dogs/wide.webp"][1], np.hstack([noise(51), noise(52)])[:, 16:48])  # the middle


def test_damaged_files_leave_their_index_empty(taken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = reader.open_sealed(Folder(str(taken)))
    count = 2 * NOISE + 4 + len(BAD)
    assert index.identity.count == count
    assert index.samples == count - len(BAD)
    rejects = {row["source"]: row for row in pq.read_table(taken / "rejects.parquet").to_pylist()}
    assert {source: row["reason"].split(":")[0] for source, row in rejects.items()} == {
        "cats/cut.png": "damaged",
        "dogs/empty.png": "empty",
        "dogs/text.png": "not an image",
    }
    rows = [row for part in sorted((taken / "manifest").iterdir()) for row in pq.read_table(part).to_pylist()]
    empty = {row["index"] for row in rejects.values()}
    assert sorted([row["index"] for row in rows]) == [i for i in range(count) if i not in empty]
    assert rejects.keys().isdisjoint(row["source"] for row in rows)
    verify.main(verify.VerifySettings(dataset=str(taken), workers=1))
    assert f"verify: {taken}: 36 images in 4 shards, every byte as sealed" in capsys.readouterr().out


def test_what_was_not_taken_is_told(
    taken: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And two workers make what one makes: tars, parts and root."""
    index = take(pictures, tmp_path / "two", workers=2)
    assert index.root == reader.open_sealed(Folder(str(taken))).root
    for kind in ("shards", "manifest"):
        for file in sorted((taken / kind).iterdir()):
            assert (tmp_path / "two" / kind / file.name).read_bytes() == file.read_bytes()
    out = capsys.readouterr().out
    for reason in ("damaged", "empty", "not an image"):
        where = f"(each with its source in {tmp_path}/two/rejects.parquet)"
        assert f"ingest: 1 not taken: {reason} {where}\n" in out
    assert "ingest: ignored: 2 files: 1 .txt, 1 hidden\ningest: 41 listed = 36 taken + 3 rejected + 2 ignored\n" in out
    claimed = [(output / "dataset.json").read_bytes() for output in (taken, tmp_path / "two")]
    assert json.loads(claimed[0])["listing"] == {"listed": 41, "ignored": {".txt": 1, "hidden": 1}}
    assert claimed[0].replace(str(taken).encode(), f"{tmp_path}/two".encode()) == claimed[1]


def test_a_dataset_that_was_changed_is_not_ingested(taken: Path, tmp_path: Path, job: Job) -> None:
    """Nor does what comes of it verify: an image of the same length in another's place ends the job in one line."""
    changed = shutil.copytree(taken, tmp_path / "changed")
    part = pq.read_table(changed / "manifest" / "000002.parquet").to_pylist()
    row, path = part[4], changed / "shards" / "000002.tar"
    data = bytearray(path.read_bytes())
    image = Image.open(io.BytesIO(data[row["offset"] : row["offset"] + row["size"]]))
    other = next(
        new
        for level in range(10)
        for value in range(256)
        if len(new := png(Image.fromarray(np.full_like(np.asarray(image), value)), compress_level=level)) <= row["size"]
    )
    data[row["offset"] : row["offset"] + row["size"]] = other + bytes(row["size"] - len(other))  # it can be decoded
    path.write_bytes(data)
    flags = ("--source", changed, "--output", tmp_path / "real", "--workers", 1)
    done = job("ingest", *flags, env={"RAY_ADDRESS": ray.get_runtime_context().gcs_address})
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if "error" in line or "failed" in line]
    assert line.startswith(f"ingest: error: 1 shards of {tmp_path}/real are not done (000000); ")
    why = f"{path}: sample {row['key']}: its image changed after the seal (its sha256 differs)"
    assert f"the first with: CorruptError: {why}. " in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "real" / "index.json").exists()


def test_a_zip_gives_the_same_shards(taken: Path, pictures: Path, tmp_path: Path) -> None:
    archive = tmp_path / "pictures.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in sorted(pictures.rglob("*"), reverse=True):
            target.write(path, path.relative_to(pictures))
        target.writestr("__MACOSX/cats/._00.png", b"what macOS adds")
    index = take(archive, tmp_path / "real")
    assert index.shards == reader.open_sealed(Folder(str(taken))).shards
    assert index.classes == ["cats", "dogs"]


def test_again_is_nothing_to_do(taken: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in taken.rglob("*")}
    take(pictures, taken, workers=2)
    assert f"ingest: {taken} is complete and sealed; nothing to do\n" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in taken.rglob("*")} == before


def test_changed_source_is_refused(taken: Path, pictures: Path, tmp_path: Path) -> None:
    grown, changed = tmp_path / "grown", tmp_path / "changed"
    for folder in (grown, changed):
        shutil.copytree(pictures, folder)
    (grown / "dogs" / "new.png").write_bytes(png(Image.fromarray(noise(7))))
    (changed / "dogs" / "text.png").write_bytes(b"hello again, this is still no picture")
    digest = reader.open_sealed(Folder(str(taken))).identity.source
    with pytest.raises(DatasetError) as error:
        take(grown, taken)
    assert str(error.value) == (
        f"{taken}: claimed with count = 39, this run has 40; use the same settings to go on, or another --output"
    )
    with pytest.raises(DatasetError) as error:
        take(changed, taken)
    assert str(error.value).startswith(f'{taken}: claimed with source = "{digest}", this run has "')


@pytest.mark.parametrize(
    ("change", "field", "before", "now"),
    [
        ({"shard_size": 5}, "shard_size", "10", "5"),
        ({"seed": 1}, "seed", "0", "1"),
        ({"image_size": 64}, "image_size", "32", "64"),
        ({"channels": 1}, "channels", "3", "1"),
        ({"resize": "pad"}, "image.resize", '"crop"', '"pad"'),
        ({"background": "white"}, "image.background", "[16, 32, 48]", "[255, 255, 255]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_changed_setting_is_refused(
    taken: Path, pictures: Path, change: dict[str, Any], field: str, before: str, now: str
) -> None:
    with pytest.raises(DatasetError) as error:
        take(pictures, taken, **change)
    assert str(error.value) == (
        f"{taken}: claimed with {field} = {before}, this run has {now}; "
        "use the same settings to go on, or another --output"
    )


def test_another_licence_than_the_claims_is_refused(taken: Path, pictures: Path) -> None:
    with pytest.raises(DatasetError, match='claimed with licence = nothing, this run has "MIT"; leave --licence out'):
        take(pictures, taken, licence="mit")


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST's four files with 40 and 12 images of noise; the training files packed."""
    folder = tmp_path_factory.mktemp("mnist")
    for prefix, count in (("train", 40), ("t10k", 12)):
        pixels_NHW, labels_N = idx_content(count)
        images = struct.pack(">IIII", 2051, count, 28, 28) + pixels_NHW.tobytes()
        labels = struct.pack(">II", 2049, count) + labels_N.tobytes()
        for name, data in (("images-idx3", images), ("labels-idx1", labels)):
            if prefix == "train":
                (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(data))
            else:
                (folder / f"{prefix}-{name}-ubyte").write_bytes(data)
    return folder


def idx_content(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8)


@pytest.mark.parametrize(("split", "count", "prefix"), [("train", 40, "train"), ("test", 12, "t10k")])
def test_idx_files(mnist: Path, local_ray: None, tmp_path: Path, split: str, count: int, prefix: str) -> None:
    index = take(mnist, tmp_path / "real", split=split, image_size=None, channels=None)
    assert index.image_shape == (28, 28, 1)
    assert index.samples == count
    assert index.classes == [str(digit) for digit in range(10)]
    pixels_NHW, labels_N = idx_content(count)
    found = pixels_by_source(tmp_path / "real")
    for item in range(count):
        label, pixels = found[f"{prefix}-images-idx3-ubyte#{item}"]
        assert label == labels_N[item]
        assert np.array_equal(pixels, pixels_NHW[item])


def test_sources_that_are_refused(mnist: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        take(mnist, tmp_path / "real")
    assert str(error.value) == f"{mnist}: has the splits train, test; choose one with --split"
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("hello")
    with pytest.raises(SourceError) as error:
        take(tmp_path / "text", tmp_path / "real")
    assert str(error.value) == (
        f"{tmp_path}/text: nothing to ingest here (looked for .png, .jpg, .jpeg, .webp, .gif, .bmp, .tif, .tiff, "
        ".avif, .ppm, .pgm, .tar, .parquet and IDX files); check --source"
    )
    (tmp_path / "a.zip").write_bytes(b"hello")
    with pytest.raises(SourceError) as error:
        take(tmp_path / "a.zip", tmp_path / "real")
    assert str(error.value) == f"{tmp_path}/a.zip: not a zip file: File is not a zip file"
    assert not (tmp_path / "real").exists()


def test_no_image_that_can_be_taken_is_refused(local_ray: None, tmp_path: Path) -> None:
    source = tmp_path / "bad"
    source.mkdir()
    for name in ("a.png", "b.png"):
        (source / name).write_bytes(b"")
    with pytest.raises(UsageError) as error:
        take(source, tmp_path / "real")
    assert str(error.value) == (
        f"{tmp_path}/real: none of 2 images could be taken; a.png: empty; check --source, and use another --output"
    )


class TestTwoAtOnce:
    """Of two runs of one command the slower finds the dataset sealed, and what was only for the making gone."""

    @pytest.fixture
    def parts(self, pictures: Path, local_ray: None, tmp_path: Path) -> Parts:
        output = tmp_path / "real"
        take(pictures, output, dedupe="near")
        folder = Folder(str(output))
        origin = registry.Origin(str(pictures), "images", Choice())
        source = registry.open_source(origin.url, origin.kind, origin.choice)
        (tmp_path / "scratch").mkdir()
        drawn, _ = catalogue.plan(source.items(), "here", None, True, 0, 0.0, tmp_path / "scratch")
        return folder, reader.read_claim(folder).identity, drawn, origin

    def test_the_second_ends_well(self, parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
        class Slower(IngestShard):  # in here: Ray's workers cannot import this file
            """The second of two runs, when the first has just done everything."""

            def __call__(self, shard: int) -> dict[str, Any]:
                (Path(self.folder.url) / "kept").rename(Path(self.folder.url) / "manifest" / f"{shard:06d}.parquet")
                raise SourceError("gone: did another run seal this dataset?")

        folder, identity, drawn, origin = parts
        root = reader.open_sealed(folder).root
        pool = connection.Pool(1, 0.0)
        duplicate_search.find_duplicates([(folder, identity, drawn)], origin, pool)  # its codes' catalogue is gone
        # Shards that were not done when it looked, and are by now.
        (Path(folder.url) / "manifest" / "000001.parquet").rename(Path(folder.url) / "kept")
        arguments = {"output": folder.url, "origin": origin}
        job = ShardJob(command="ingest", folder=folder, identity=identity, worker=Slower, arguments=arguments)
        result = run_shard_job(job, pool)
        assert result.index is not None
        assert result.index.root == root
        out = capsys.readouterr()
        assert out.out.endswith(f"ingest: {folder} was sealed by another run meanwhile; nothing more to do\n")
        assert "failed" not in out.err

    def test_where_nobody_sealed_it_is_an_error(self, parts: Parts) -> None:
        folder, identity, drawn, origin = parts
        folder.delete("index.json")
        with pytest.raises(LostWorkError, match=r"4 shards of .* are not done"):
            duplicate_search.find_duplicates([(folder, identity, drawn)], origin, connection.Pool(1, 0.0))


def names_of(output: Path) -> set[str]:
    return set(pixels_by_source(output))


def rejected(output: Path) -> dict[str, str]:
    return {row["source"]: row["reason"] for row in pq.read_table(output / "rejects.parquet").to_pylist()}


def test_duplicates_are_left_out_and_named(pictures: Path, local_ray: None, tmp_path: Path) -> None:
    """Each noise is there as a cat and as a dog; which of the two is kept follows from the order alone."""
    index = take(pictures, tmp_path / "real", dedupe="exact")
    reasons = {source: why for source, why in rejected(tmp_path / "real").items() if why.startswith("duplicate: of ")}
    assert len(reasons) == NOISE
    for source, reason in reasons.items():
        kept = reason.removeprefix("duplicate: of ")
        assert kept[5:] == source[5:]
        assert {kept[:5], source[:5]} == {"cats/", "dogs/"}
        assert kept in names_of(tmp_path / "real")
    assert index.samples == NOISE + 4
    assert {path.name for path in (tmp_path / "real").iterdir()}.isdisjoint({"catalogue", "codes", "journal"})
    verify.main(verify.VerifySettings(dataset=str(tmp_path / "real"), workers=1))
    with pytest.raises(
        DatasetError, match=r'claimed with dedupe = {"against": null, "mode": "exact"}, this run has nothing'
    ):
        take(pictures, tmp_path / "real")


def test_a_holdout_shares_nothing_with_the_rest_not_even_a_duplicate(
    pictures: Path, local_ray: None, tmp_path: Path
) -> None:
    output = tmp_path / "real"
    take(pictures, output, dedupe="exact", holdout=0.3, shard_size=4, max_rejects="3")
    kept, held = pixels_by_source(output), pixels_by_source(tmp_path / "real-holdout")
    assert kept
    assert held
    assert kept.keys().isdisjoint(held)
    seen = {pixels.tobytes() for _, pixels in kept.values()}
    assert seen.isdisjoint(pixels.tobytes() for _, pixels in held.values())
    for where in (output, tmp_path / "real-holdout"):
        index = reader.open_sealed(Folder(str(where)))
        assert index.classes == ["cats", "dogs"]
        assert not any((where / name).exists() for name in ("catalogue", "codes"))
    every = {*kept, *held, *rejected(output), *rejected(tmp_path / "real-holdout")}
    assert len(every) == 2 * NOISE + 4 + len(BAD)
    # Without the duplicates' search, each image is on the side where it was.
    take(pictures, tmp_path / "again", holdout=0.3, max_rejects="3")
    assert {*kept} < names_of(tmp_path / "again")
    assert {*held} < names_of(tmp_path / "again-holdout")


def test_too_many_rejects_end_the_job_and_a_higher_limit_seals_it(
    pictures: Path, local_ray: None, tmp_path: Path
) -> None:
    output = tmp_path / "real"
    for allowed in ("2", "0.07"):
        with pytest.raises(LostWorkError) as error:
            take(pictures, output, max_rejects=allowed)
        assert str(error.value).startswith(f"{output}: 3 of 39 images could not be taken (")
        assert f"more than --max-rejects {allowed}. {output}/rejects.parquet lists all of them." in str(error.value)
        assert set(rejected(output)) == set(BAD)
        with pytest.raises(DatasetError, match="not finished"):
            reader.open_sealed(Folder(str(output)))
    before = {path: path.stat().st_mtime_ns for path in (output / "shards").iterdir()}
    assert take(pictures, output, max_rejects="0.08").samples == 36
    assert before == {path: path.stat().st_mtime_ns for path in (output / "shards").iterdir()}


@pytest.mark.slow
def test_classes_get_other_names_and_are_left_out(pictures: Path, taken: Path, local_ray: None, tmp_path: Path) -> None:
    """Also of a dataset of ours, whose images keep their pixels."""
    names = tmp_path / "names.json"
    names.write_text('{"cats": "animals", "dogs": null}')
    for source, count in ((pictures, NOISE + 2), (taken, NOISE + 2)):
        index = take(source, tmp_path / f"one{source.name}", relabel=names)
        assert index.samples == count
        listing = json.loads((tmp_path / f"one{source.name}" / "dataset.json").read_text())["listing"]
        assert listing["ignored"]["left out by --relabel"] == NOISE + (4 if source is pictures else 2)
        assert index.classes == (["animals"] if source is taken else None)
    names.write_text('{"cats": "b", "dogs": "a"}')
    index = take(pictures, tmp_path / "two", relabel=names)
    assert index.classes == ["a", "b"]
    found = pixels_by_source(tmp_path / "two")
    assert all(label == (1 if source.startswith("cats/") else 0) for source, (label, _) in found.items())
    names.write_text('{"birds": "b"}')
    with pytest.raises(UsageError, match=f"--relabel {names}: no image of class 'birds'; check the name"):
        take(pictures, tmp_path / "three", relabel=names)
    index = take(pictures, tmp_path / "four", labels="none")
    assert index.classes is None


def test_a_dataset_of_ours_is_resized(taken: Path, local_ray: None, tmp_path: Path) -> None:
    index = take(taken, tmp_path / "small", image_size=28, channels=1, resize="stretch")
    assert index.image_shape == (28, 28, 1)
    assert index.samples == 36
    original = {f"{i:012d}": pixels for i, pixels in by_index(taken).items()}
    for source, (_, pixels) in pixels_by_source(tmp_path / "small").items():
        expected = Image.fromarray(original[source]).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
        assert np.array_equal(pixels, np.asarray(expected))


def by_index(output: Path) -> dict[int, np.ndarray]:
    index = reader.open_sealed(Folder(str(output)))
    return {
        sample.index: np.asarray(Image.open(io.BytesIO(sample.image)))
        for record in index.shards
        for sample in shards.unpack((output / record.tar).read_bytes(), "here")
    }


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("max_rejects", "1.5", "--max-rejects 1.5: must be a share, as 0.05, or a number of images, as 100"),
        ("max_rejects", "-1", "--max-rejects -1: must be a share"),
        ("holdout", "1", "--holdout 1: must be less than or equal to 0.9"),
        ("dedupe", "maybe", "--dedupe maybe: must be 'none', 'exact' or 'near'"),
        ("base", "ftp://x/y", "--base: ftp://x/y: scheme 'ftp' is not one of file, s3, gs, az"),
    ],
)
def test_a_wrong_value_is_one_line(flag: str, value: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        load(ingest.IngestSettings, ["--source", "digits", f"--{flag.replace('_', '-')}", value])
    assert message in str(error.value)
