"""Generated datasets: the same bytes whoever made them and however often it was tried, and refusals of all else."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray
import torch

from dcgan import model_card, numerics
from dcgan.errors import ModelError
from dcgan.families.registry import build
from dcgan.model_files import Model
from jobs import generate, verify
from jobs.command import model_store
from jobs.command.errors import LostWorkError, UsageError
from jobs.verification.worker import VerifyShard
from pipelines.dataset import reader, shards
from pipelines.errors import CorruptError, DatasetError
from pipelines.storage.folder import Folder
from tests.families import configure

Job = Callable[..., CompletedProcess[str]]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(digits_run: Path) -> Make:
    """jobs/generate.py with digits_run: 100 images in 4 shards by one actor, unless it is told otherwise."""

    def call(output: Path, **changes: Any) -> Path:
        begun = {"model": str(digits_run), "count": 100, "shard_size": 25, "workers": 1}
        generate.main(generate.GenerateSettings(output=str(output), **{**begun, **changes}))
        return output

    return call


@pytest.fixture(scope="module")
def plain(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What nobody disturbed. Not to be changed."""
    return make(tmp_path_factory.mktemp("plain") / "synthetic")


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    target = tmp_path / "synthetic"
    shutil.copytree(plain, target)
    return target


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_equal_shards(mine: Path, theirs: Path) -> None:
    """Tars and parts by their bytes, and the root."""
    for kind in ("shards", "manifest"):
        assert tree(mine / kind) == tree(theirs / kind)
    assert root_of(mine) == root_of(theirs)


def root_of(folder: Path) -> str:
    return reader.open_sealed(Folder(str(folder))).root


def check_all(folder: Path, count: int) -> None:
    """Verify the one shard of a dataset, every image made again, as an actor does it."""
    chosen = numerics.choose("auto", "cpu")
    found = VerifyShard(str(folder), count, chosen)(0)
    assert found == {"samples": count, "regenerated": count, "exact": count, "furthest": 0}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_several_actors_make_what_one_makes(workers: int, make: Make, plain: Path, tmp_path: Path) -> None:
    assert_equal_shards(make(tmp_path / "several", workers=workers), plain)


@pytest.mark.slow
def test_a_finished_dataset_is_left_alone(make: Make, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    make(copy, workers=2)
    assert f"generate: {copy} is complete and sealed; nothing to do\n" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_what_is_missing_is_made_the_same_again(
    make: Make, copy: Path, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No seal; one part gone, its tar of other bytes; one part and tar gone; what a killed writer leaves."""
    (copy / "index.json").unlink()
    (copy / "manifest" / "000000.parquet").unlink()
    (copy / "shards" / "000000.tar").write_bytes(b"from a writer that was killed before the part")
    (copy / "manifest" / "000002.parquet").unlink()
    (copy / "shards" / "000002.tar").unlink()
    (copy / "shards" / ".000002.tar.0123456789ab.tmp").write_bytes(b"half")
    (copy / "manifest" / ".000002.parquet.0123456789ab.tmp").write_bytes(b"half")
    make(copy)
    assert "generate: going on: 2 of 4 shards are done\n" in capsys.readouterr().out
    assert tree(copy) == tree(plain)


@pytest.mark.parametrize(
    "gone",
    [
        pytest.param(["index.json"], marks=pytest.mark.slow),
        ["index.json", "README.md", "preview.png"],
        pytest.param(["model/model.json"], marks=pytest.mark.slow),
    ],
)
def test_what_lies_beside_the_shards_is_made_again(make: Make, copy: Path, plain: Path, gone: list[str]) -> None:
    for name in gone:
        (copy / name).unlink()
    make(copy)
    assert tree(copy) == tree(plain)


@pytest.mark.slow
def test_a_part_without_its_tar_is_not_sealed(make: Make, copy: Path, plain: Path) -> None:
    (copy / "index.json").unlink()
    (copy / "shards" / "000003.tar").unlink()
    with pytest.raises(CorruptError) as error:
        make(copy)
    assert str(error.value) == (
        f"{copy}/shards/000003.tar: not found; delete manifest/000003.parquet and start the same command again, "
        "which makes the shard again"
    )
    assert not (copy / "index.json").exists()
    (copy / "manifest" / "000003.parquet").unlink()
    make(copy)
    assert tree(copy) == tree(plain)


@pytest.mark.parametrize(
    ("change", "field", "before", "now"),
    [
        ({"seed_start": 7}, "seed_start", "0", "7"),
        ({"count": 99}, "count", "100", "99"),
        *(
            pytest.param(*others, marks=pytest.mark.slow)
            for others in (
                ({"shard_size": 50}, "shard_size", "25", "50"),
                ({"classes": "0,1,7"}, "labels.cycle", "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]", "[0, 1, 7]"),
                ({"batch_size": 64}, "batch", "128", "64"),
                ({"image_format": "jpeg"}, "image.format", '"png"', '"jpeg"'),
                ({"classes": "0:1,1:2"}, "labels.cycle", "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]", "nothing"),
                ({"count": 200, "seed_start": 7}, "count", "100", "200"),
            )
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_setting_is_refused(
    make: Make, copy: Path, plain: Path, change: dict[str, Any], field: str, before: str, now: str
) -> None:
    with pytest.raises(DatasetError) as error:
        make(copy, **change)
    assert str(error.value) == (
        f"{copy}: claimed with {field} = {before}, this run has {now}; "
        "use the same settings to go on, or another --output"
    )
    assert tree(copy) == tree(plain)


def test_another_precision_is_refused(make: Make, copy: Path, plain: Path) -> None:
    begun = reader.read_claim(Folder(str(plain))).identity.arithmetic["dtype"]
    other = {"bfloat16": "float32", "float32": "bfloat16"}[begun]
    with pytest.raises(DatasetError) as error:
        make(copy, precision={"float32": "fp32", "bfloat16": "bf16"}[other])
    assert str(error.value) == (
        f'{copy}: claimed with arithmetic.dtype = "{begun}", this run has "{other}"; '
        "use the same settings to go on, or another --output"
    )


@pytest.mark.slow
def test_another_model_is_refused(make: Make, copy: Path, digits_run: Path, tmp_path: Path) -> None:
    mine, before = model_store.load(model_store.find_model(Folder(str(digits_run))))
    torch.manual_seed(1)
    other = Folder(str(tmp_path / "model"))
    now = model_store.save(Model(*build(mine.config), mine.classes, mine.provenance), other)
    for count in (100, 200):
        with pytest.raises(DatasetError) as error:
            make(copy, model=other.url, count=count)
        assert str(error.value) == (
            f'{copy}: claimed with model = "{before}", this run has "{now}"; '
            f"use --model {copy}/model to go on with its own model, or another --output"
        )
    assert model_card.digest((copy / "model" / "model.json").read_bytes()) == before


@pytest.mark.slow
def test_the_model_that_a_dataset_carries_goes_on(make: Make, copy: Path, plain: Path) -> None:
    (copy / "index.json").unlink()
    (copy / "manifest" / "000001.parquet").unlink()
    make(copy, model=f"{copy}/model")
    assert_equal_shards(copy, plain)


@pytest.mark.slow
def test_a_half_copied_model_is_completed_and_one_whose_source_is_gone_is_told_of(
    make: Make, copy: Path, plain: Path, digits_run: Path, tmp_path: Path
) -> None:
    (copy / "index.json").unlink()
    (copy / "manifest" / "000001.parquet").unlink()
    (copy / "model" / "model.json").unlink()
    (copy / "model" / "generator.safetensors").write_bytes(b"half")
    with pytest.raises(ModelError) as error:
        make(copy, model=f"{copy}/model")
    told = f"{copy}/model/model.json: missing: the model was copied only in part; copy it again, or name the original"
    assert str(error.value) == told
    mine, before = model_store.load(model_store.find_model(Folder(str(digits_run))))
    torch.manual_seed(1)
    now = model_store.save(Model(*build(mine.config), mine.classes, mine.provenance), Folder(str(tmp_path / "model")))
    with pytest.raises(DatasetError) as refused:
        make(copy, model=str(tmp_path / "model"))
    assert str(refused.value).startswith(
        f'{copy}: claimed with model = "{before}", this run has "{now}", and its copy is damaged ('
    )
    make(copy)
    assert_equal_shards(copy, plain)
    assert tree(copy / "model") == tree(plain / "model")


def test_a_model_that_is_not_whole_is_refused_before_the_output_is_claimed(
    make: Make, digits_run: Path, tmp_path: Path
) -> None:
    """With a claim the output would be this model's, which nobody may have any more."""
    model = tmp_path / "model"
    shutil.copytree(str(model_store.find_model(Folder(str(digits_run)))), model)
    (model / "discriminator.safetensors").unlink()
    with pytest.raises(ModelError) as error:
        make(tmp_path / "synthetic", model=str(model))
    assert str(error.value) == f"{model}/discriminator.safetensors: not found; the model is not complete"
    assert not (tmp_path / "synthetic").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", model_store.FILES)
def test_a_damaged_copy_of_the_model_is_mended(make: Make, copy: Path, plain: Path, name: str) -> None:
    (copy / "index.json").unlink()
    (copy / "manifest" / "000001.parquet").unlink()
    data = bytearray((copy / "model" / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model" / name).write_bytes(data)
    make(copy)
    assert tree(copy) == tree(plain)


@pytest.mark.slow
def test_a_model_of_nobody_is_not_written_over(make: Make, tmp_path: Path, digits_run: Path) -> None:
    """A folder `model` where no dataset is: somebody's own."""
    other = Folder(str(tmp_path / "output" / "model"))
    mine, _ = model_store.load(model_store.find_model(Folder(str(digits_run))))
    model_store.save(Model(*build(mine.config), mine.classes, mine.provenance), other)
    before = tree(tmp_path / "output")
    with pytest.raises(DatasetError) as error:
        make(tmp_path / "output")
    assert str(error.value) == (f"{other}/model.json: another model is here, without a dataset; use another --output")
    assert tree(tmp_path / "output") == before


def test_images_that_are_not_finite_are_not_sealed(make: Make, digits_run: Path, tmp_path: Path) -> None:
    """Weights of 1e38 are finite; what they make is not. The shard is named, and nothing of it is written."""
    mine, _ = model_store.load(model_store.find_model(Folder(str(digits_run))))
    with torch.no_grad():
        for weight in mine.generator.parameters():
            weight.copy_(torch.where(weight > 0, 1e38, -1e38))
    model_store.save(mine, Folder(str(tmp_path / "model")))
    with pytest.raises(LostWorkError) as error:
        make(tmp_path / "output", model=str(tmp_path / "model"), count=40, shard_size=40)
    assert str(error.value) == (
        f"1 shards of {tmp_path}/output are not done (000000); shards 000000 failed, the first with: SampleError: "
        "seeds 0 to 39: an image is not finite; train the model again, or take an earlier one. "
        "What is finished stays; the same command does the rest"
    )
    assert sorted(tree(tmp_path / "output")) == [
        "dataset.json",
        *(f"model/{name}" for name in sorted(model_store.FILES)),
    ]


@pytest.mark.slow
def test_a_larger_count_extends(make: Make, plain: Path, tmp_path: Path) -> None:
    """60 images, the last shard short; then the same command with 100."""
    output = make(tmp_path / "synthetic", count=60)
    short = tree(output)
    assert sorted(name for name in short if name.startswith("shards/")) == [f"shards/{i:06d}.tar" for i in range(3)]
    make(output, count=100)
    assert_equal_shards(output, plain)
    for name in ("shards/000000.tar", "shards/000001.tar"):
        assert tree(output)[name] == short[name]
    verify.main(verify.VerifySettings(dataset=str(output), workers=1))


@pytest.mark.slow
def test_a_lost_shard_fails_the_job(make: Make, plain: Path, tmp_path: Path, job: Job, digits_run: Path) -> None:
    """Shard 2 cannot be published. The command joins the tests' Ray."""
    output = tmp_path / "synthetic"
    obstacle = output / "shards" / "000002.tar"
    obstacle.mkdir(parents=True)
    flags = ("--model", digits_run, "--output", output, "--count", 100, "--shard-size", 25, "--workers", 1)
    done = job("generate", *flags, env={"RAY_ADDRESS": ray.get_runtime_context().gcs_address})
    why = f"StorageError: {obstacle}: a folder is where a file should be; move it away"
    lost = (
        f"1 shards of {output} are not done (000002); shards 000002 failed, the first with: {why}. "
        "What is finished stays; the same command does the rest"
    )
    assert done.returncode == 1
    *before, last = done.stderr.splitlines()
    assert last == f"generate: error: {lost}"
    assert all(re.match(r"generate: [\d,]+ of 100 images", line) for line in before)  # progress: the last says all

    with pytest.raises(LostWorkError) as error:
        make(output)
    assert str(error.value) == lost
    assert sorted(tree(output / "manifest")) == ["000000.parquet", "000001.parquet", "000003.parquet"]
    assert not (output / "index.json").exists()

    obstacle.rmdir()
    make(output)
    assert_equal_shards(output, plain)


@pytest.mark.slow
def test_chosen_classes(make: Make, digits_run: Path, plain: Path, tmp_path: Path) -> None:
    """Labels in turn. Where seed and label are those of another dataset, so is the image."""
    output = make(tmp_path / "synthetic", classes="0,1,7", count=30, shard_size=10)
    rows = [row for part in sorted((output / "manifest").iterdir()) for row in pq.read_table(part).to_pylist()]
    assert [row["label"] for row in rows] == [(0, 1, 7)[i % 3] for i in range(30)]
    other = pq.read_table(plain / "manifest" / "000000.parquet").to_pylist()
    same = [
        (mine["sha256"], row["sha256"]) for mine, row in zip(rows, other, strict=False) if mine["label"] == row["label"]
    ]
    assert len(same) == 3  # indices 0, 1 and 21
    assert all(mine == theirs for mine, theirs in same)


@pytest.mark.parametrize(
    ("classes", "told"), [("0,10", "'10'"), ("cat", "'cat'"), ("1,,2", "''"), ("-1", "'-1'"), ("0;1", "'0;1'")]
)
def test_classes_that_the_model_lacks(make: Make, tmp_path: Path, classes: str, told: str) -> None:
    with pytest.raises(UsageError) as error:
        make(tmp_path / "synthetic", classes=classes)
    assert str(error.value) == f"--classes {classes}: no class {told}; the model has 0 to 9"
    assert not (tmp_path / "synthetic").exists()


@pytest.mark.slow
def test_weighted_classes_and_a_first_look(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--limit-shards leaves no seal, and the same command without it does the rest."""
    settings = {"classes": "0:3,7:1", "count": 40, "shard_size": 10}
    output = make(tmp_path / "synthetic", **settings, limit_shards=2)
    assert f"generate: {output}: stopped by --limit-shards, not sealed; " in capsys.readouterr().out
    assert sorted(tree(output / "manifest")) == ["000000.parquet", "000001.parquet"]
    assert not (output / "index.json").exists()
    make(output, **settings)
    assert "generate: going on: 2 of 4 shards are done\n" in capsys.readouterr().out
    labels = [
        label for part in sorted((output / "manifest").iterdir()) for label in pq.read_table(part)["label"].to_pylist()
    ]
    assert abs(labels.count(7) - 10) <= 1
    assert labels.count(0) == 40 - labels.count(7)
    assert 1 <= labels[:8].count(7) <= 3  # in every stretch, not at the end


@pytest.mark.slow
@pytest.mark.parametrize(("image_format", "magic"), [("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF")])
def test_lossy_formats(make: Make, one_thread: None, tmp_path: Path, image_format: str, magic: bytes) -> None:
    """The score is that of the image as it is stored, so that verify can find it again."""
    output = make(tmp_path / "synthetic", image_format=image_format, quality=80, count=20, shard_size=20)
    samples = shards.unpack((output / "shards" / "000000.tar").read_bytes(), "here")
    assert all(sample.image.startswith(magic) for sample in samples)
    check_all(output, 20)


def test_dry_run_writes_nothing(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = make(tmp_path / "synthetic", dry_run=True, count=10_000, shard_size=1000)
    out = capsys.readouterr().out
    assert "generate: would make 10,000 images with model " in out
    assert "generate: 10 shards of 1,000, about " in out
    assert f"generate: 28 objects under {output}; --dry-run: nothing was written\n" in out
    assert not output.exists()


@pytest.mark.slow
def test_a_model_without_classes(make: Make, one_thread: None, tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = configure("keras", image_size=28, channels=1, z_dim=16, num_classes=0)
    model_store.save(Model(*build(network), None, {}), Folder(str(tmp_path / "model")))
    output = make(tmp_path / "synthetic", model=str(tmp_path / "model"), count=20, shard_size=20, batch_size=8)
    rows = pq.read_table(output / "manifest" / "000000.parquet").to_pylist()
    assert [row["label"] for row in rows] == [None] * 20
    samples = list(shards.unpack((output / "shards" / "000000.tar").read_bytes(), "here"))
    assert [sample.label for sample in samples] == [None] * 20
    assert b".cls" not in (output / "shards" / "000000.tar").read_bytes()
    check_all(output, 20)
    with pytest.raises(UsageError) as error:
        make(tmp_path / "other", model=str(tmp_path / "model"), classes="0,1")
    assert str(error.value) == "--classes 0,1: the model has no classes; leave --classes out"


@pytest.mark.long  # kills of the driver alone are in tests/test_generate_violence.py
def test_a_killed_job_goes_on(make: Make, digits_run: Path, tmp_path: Path) -> None:
    """SIGKILL to the driver's process group at the first part; the same command then makes what nobody disturbed."""
    many = {"count": 5000, "shard_size": 100}
    output = tmp_path / "killed"
    flags = ["--model", digits_run, "--output", output, "--count", 5000, "--shard-size", 100, "--workers", 1]
    command = [sys.executable, Path(generate.__file__), *flags]
    driver = subprocess.Popen([str(word) for word in command], start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: any((output / "manifest").glob("*.parquet")), driver)
        children = psutil.Process(driver.pid).children(recursive=True)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    _, alive = psutil.wait_procs(children, timeout=60)  # Ray's own processes end with their driver
    for process in alive:
        process.kill()
    assert [process.name() for process in alive] == []
    done = len(list((output / "manifest").glob("*.parquet")))
    assert 0 < done < 50
    assert not (output / "index.json").exists()

    make(output, **many)
    assert_equal_shards(output, make(tmp_path / "undisturbed", workers=2, **many))
    assert not list(output.rglob("*.tmp"))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Poll; ends with the process, or after two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, f"it ended with status {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.long  # tests/test_line.py and test_generate_violence.py run there too
def test_on_an_object_store(synthetic: Path, digits_run: Path, s3: str, job: Job) -> None:
    """The same bytes there as here."""
    local, remote = Folder(str(model_store.find_model(Folder(str(digits_run))))), Folder(f"{s3}/run")
    for name in model_store.FILES:
        remote.write(name, local.read(name))
    flags = ("--count", 1000, "--shard-size", 250, "--workers", 1)
    assert job("generate", *flags, env={"GANMILL_ROOT": s3}).returncode == 0
    output = Folder(f"{s3}/synthetic")
    index = reader.open_sealed(output)
    assert index.root == root_of(synthetic)
    assert [reader.check_shard(output, index, record) for record in index.shards] == [250] * 4
