"""Evaluation through the command's main(): what it writes, whatever the workers, and what it refuses."""

import base64
import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from dcgan import numerics
from dcgan.evaluation.distances import Sums, frechet_distance
from jobs import evaluate
from jobs.cluster.connection import Pool
from jobs.command.errors import LostWorkError, UsageError
from jobs.evaluation import feature_pass
from pipelines import images
from pipelines.dataset import layout, reader, writer
from pipelines.dataset.identity import from_json
from pipelines.dataset.shards import Sample
from pipelines.errors import DatasetError
from pipelines.loading import loader
from pipelines.storage.folder import Folder
from tests.pages import parsed

FIDELITY = ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage")


def run(real: Path, fake: Path, output: Path, **settings: Any) -> dict[str, Any]:
    wanted = {"workers": 1, "images": 200, "repeats": 2, "features": "pixels", "classifier_images": 0, **settings}
    evaluate.main(evaluate.EvaluateSettings(real=str(real), fake=str(fake), output=str(output), **wanted))
    found: dict[str, Any] = json.loads((output / "evaluation.json").read_bytes())
    return found


def values(found: dict[str, Any]) -> dict[tuple[str, str, str, int | None], float | None]:
    return {(row["measure"], row["of"], row["against"], row["label"]): row["value"] for row in found["results"]}


def pixels(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """All features and labels of a dataset, read at once."""
    place = Folder(str(folder))
    index = reader.open_sealed(place)
    found = [batch for record in index.shards for batch in loader.in_order(place, index, record, 10_000)]
    images_NHWC, label_N = (np.concatenate(columns) for columns in zip(*found, strict=True))
    return images_NHWC.reshape(len(label_N), -1) / np.float32(255), label_N


Tiny = Callable[..., Path]


@pytest.fixture(scope="module")
def tiny(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A dataset of 30 pictures of noise, of two classes, in 3 shards. Made once a name; not to be changed."""
    place = tmp_path_factory.mktemp("tiny")

    @functools.cache
    def make(
        name: str,
        seed: int,
        *,
        size: int = 28,
        channels: int = 1,
        count: int = 30,
        classes: tuple[str, ...] = ("a", "b"),
    ) -> Path:
        rng, folder = np.random.default_rng(seed), Folder(str(place / name))
        fields = {
            **{"producer": "ingest", "count": count, "shard_size": 10, "image_size": size, "channels": channels},
            **{"classes": list(classes) or None, "image": {"format": "png"}, "arithmetic": {}},
        }
        identity = from_json(fields)
        writer.claim(folder, identity, {})
        records = {}
        for shard in range(layout.num_shards(identity)):
            samples = []
            for number in layout.shard_range(identity, shard):
                noise = rng.integers(0, 256, (size, size, channels), np.uint8) // 4 + 64 * (number % 2)  # dark, bright
                samples.append(Sample(number, images.encode(noise), number % 2 if classes else None))
            records[shard] = writer.commit(folder, shard, "ingest", samples, {"source": ["x"] * len(samples)})
        writer.seal(folder, identity, records, {})
        return place / name

    return make


@pytest.fixture(scope="module")
def output(digits: Path, synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits against the poor model's."""
    output = tmp_path_factory.mktemp("evaluation") / "evaluation"
    run(digits, synthetic, output, classifier_images=6000)
    return output


@pytest.fixture(scope="module")
def found(output: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((output / "evaluation.json").read_bytes())
    return loaded


def test_numbers_stand_with_their_protocol(found: dict[str, Any], digits: Path, synthetic: Path) -> None:
    protocol = found["protocol"]
    for role, folder, count in (("real", digits, 5000), ("fake", synthetic, 1000)):
        told = protocol["datasets"][role]
        assert told["root"] == reader.open_sealed(Folder(str(folder))).root
        assert (told["url"], told["images"], told["drawn"]) == (str(folder), count, 200)
    assert protocol["features"] == {
        "name": "pixels",
        "size": 784,
        "digest": "no weights",
        "what": "pixels in 0..1, flattened",
    }
    assert (protocol["seed"], protocol["repeats"], protocol["neighbours"]) == (0, 2, 5)
    for row in found["results"]:
        assert row["n_of"] > 0
        assert row["n_against"] > 0
        assert row["value"] is not None or row["note"].startswith("not measured: ")


def test_frechet_is_of_all_images(found: dict[str, Any], digits: Path, synthetic: Path) -> None:
    """The sums of five and four shards, by two roads."""
    [row] = [row for row in found["results"] if row["measure"] == "frechet_distance" and row["label"] is None]
    assert (row["n_of"], row["n_against"], row["spread"]) == (1000, 5000, None)  # 100 drawn images span no 784 features
    expected = frechet_distance(*(Sums.of(pixels(folder)[0]) for folder in (digits, synthetic)))
    assert row["value"] == pytest.approx(expected, rel=1e-9)


def test_class_by_class(found: dict[str, Any]) -> None:
    """Fidelity is told for each class; the Frechet distance is not: 500 images make no covariance of 784 features."""
    told = values(found)
    for label in range(10):
        assert told["frechet_distance", "fake", "real", label] is None
        assert told["kernel_distance", "fake", "real", label] is not None
    notes = {row["note"] for row in found["results"] if row["measure"] == "frechet_distance" and row["label"] == 3}
    assert notes == {"not measured: it needs more images than features (784)"}


def test_a_poor_model_looks_poor(found: dict[str, Any]) -> None:
    told = values(found)
    assert {name for name, of, *_ in told if of == "fake"} == {
        *FIDELITY,
        "nearest_neighbour_error",
        "accuracy_score",
        "nearest_distance",
        "too_close",
        "too_alike",
    }
    recall, error = told["recall", "fake", "real", None], told["nearest_neighbour_error", "fake", "real", None]
    assert recall is not None
    assert recall < 0.9
    assert error is not None
    assert 0.1 < error < 0.95
    score = told["accuracy_score", "fake", "real", None]
    assert score is not None
    # Chance is 0.1. After these few steps float32 training reached 0.18 (AVX2); bfloat16 reaches more than 0.2.
    least = 0.2 if numerics.choose("auto", "cpu").dtype_name == "bfloat16" else 0.12
    assert least < score < 0.98


def test_the_nearest_neighbours_are_sought_among_all_images(
    found: dict[str, Any], digits: Path, synthetic: Path
) -> None:
    """All 1,000 synthetic images, whose shards were measured by groups, though 200 were drawn."""
    [row] = [row for row in found["results"] if row["measure"] == "nearest_neighbour_error"]
    assert (row["n_of"], row["n_against"]) == (1000, 200)
    plan = feature_pass.PassPlan({"real": str(digits), "fake": str(synthetic)}, "pixels", None, 200, 0, 10)
    drawn = feature_pass.draw("real", reader.open_sealed(Folder(str(digits))), plan)
    (train, train_label), (test, test_label) = pixels(synthetic), pixels(digits)
    expected = KNeighborsClassifier(1, algorithm="brute").fit(train, train_label).predict(test[drawn])
    assert row["value"] == pytest.approx(float((expected != test_label[drawn]).mean()), abs=1e-9)


def test_the_page_needs_nothing_beside_it(output: Path, digits: Path, synthetic: Path, found: dict[str, Any]) -> None:
    page = parsed.check((output / "evaluation.html").read_bytes())
    for text in (str(digits), str(synthetic), found["protocol"]["datasets"]["fake"]["root"], "docs/quality.md"):
        assert text in page.words
    pictures = {
        element.attributes["alt"]: (element.attributes["src"] or "").split(",")[1] for element in page.all("img")
    }

    def shown(alt: str) -> np.ndarray:
        return images.decode(base64.b64decode(pictures[alt]), 1)

    assert shown("Real images, a row a class").shape == shown("Synthetic images, a row a class").shape == (302, 302, 1)
    everything, _ = pixels(synthetic)
    other, _ = pixels(digits)
    closest = found["closest"][0]
    fake, real = everything[int(closest["fake"])], other[int(closest["real"])]
    assert np.array_equal(shown(f"Synthetic image {closest['fake']}").reshape(-1) / np.float32(255), fake)
    assert np.array_equal(shown(f"Real image {closest['real']}, the nearest to it").reshape(-1) / np.float32(255), real)
    assert closest["distance"] == pytest.approx(float(np.linalg.norm(real - fake)), rel=1e-5)
    assert sorted(file.name for file in output.iterdir()) == ["evaluation.html", "evaluation.json"]


def test_a_set_against_itself(tiny: Tiny, tmp_path: Path) -> None:
    real = tiny("real", 0)
    told = values(run(real, real, tmp_path / "out", images=30))
    assert told["precision", "fake", "real", None] == told["recall", "fake", "real", None] == 1.0
    assert told["coverage", "fake", "real", None] == 1.0
    assert told["nearest_neighbour_error", "fake", "real", None] == 0.0
    assert told["nearest_distance", "fake", "real", None] == pytest.approx(0.0, abs=1e-5)
    assert told["too_close", "fake", "real", None] == 1.0  # all of them copies


def test_a_copy_is_found_also_where_its_original_was_not_drawn(tiny: Tiny, tmp_path: Path) -> None:
    real = tiny("real", 0)
    found = run(real, real, tmp_path / "out", images=20)
    told = values(found)
    assert told["kernel_distance", "fake", "real", None] != 0.0  # of 20 images of each, which are not the same
    assert told["too_close", "fake", "real", None] == 1.0
    assert all(pair["fake"] == pair["real"] for pair in found["closest"])
    assert found["protocol"]["datasets"]["real"]["searched"] == 30
    sought = {row["measure"] for row in found["results"] if (row["n_of"], row["n_against"]) == (20, 30)}
    assert {"too_close", "nearest_distance"} <= sought


@given(samples=st.integers(1, 200_000), images=st.integers(20, 200_000), size=st.integers(1, 30_000))
def test_the_nearest_is_sought_among_all_real_images_up_to_a_limit(
    tiny: Tiny, samples: int, images: int, size: int
) -> None:
    plan = feature_pass.PassPlan({}, "pixels", None, images, 0, 0)
    index = reader.open_sealed(Folder(str(tiny("real", 0))))
    index = replace(index, shards=(replace(index.shards[0], samples=samples),))
    for role in ("real", "fake"):
        drawn = feature_pass.draw(role, index, plan)
        kept = feature_pass.searched(role, index, plan, size)
        assert np.isin(drawn, kept).all()
        assert (np.diff(kept) > 0).all()
        if role == "fake":
            assert len(kept) == len(drawn)
        elif samples <= feature_pass.MAX_SEARCHED and samples * size * 4 <= feature_pass.MAX_SEARCHED_BYTES:
            assert len(kept) == samples
        else:
            assert len(kept) <= len(drawn) + feature_pass.MAX_SEARCHED


@pytest.mark.slow
def test_a_holdout_whatever_the_workers(tiny: Tiny, tmp_path: Path) -> None:
    """A second start with other workers writes the same bytes."""
    real, fake, holdout = tiny("real", 0), tiny("fake", 1), tiny("holdout", 2)
    settings = {"holdout": str(holdout), "features": "classifier", "classifier_images": 900}
    first = run(real, fake, tmp_path / "one", **settings)
    assert len(first["protocol"]["features"]["digest"]) == 64
    told = values(first)
    assert told["kernel_distance", "holdout", "real", 1] is not None
    for role in ("real", "fake"):  # a bright class and a dark one
        assert told["accuracy_score", role, "holdout", None] == 1.0
        assert told["nearest_neighbour_error", role, "holdout", None] == 0.0
    run(real, fake, tmp_path / "two", **settings, workers=2)
    for name in ("evaluation.json", "evaluation.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "channels"), [("vgg16-random", 28, 1), ("vgg16-random", 32, 1), ("efficientnet-lite0", 32, 3)]
)
def test_the_default_features_through_the_command(
    tiny: Tiny, tmp_path: Path, name: str, size: int, channels: int
) -> None:
    real = tiny(f"unlabelled-{size}-{channels}", 1, size=size, channels=channels, classes=())
    found = run(real, real, tmp_path / "out", features=None)
    assert found["protocol"]["features"]["name"] == name
    assert len(found["protocol"]["features"]["digest"]) == 64
    told = values(found)
    assert told["recall", "fake", "real", None] is not None
    assert told["frechet_distance", "fake", "real", None] is None  # 30 images, 64 features or more


@pytest.mark.slow
def test_what_is_there_is_not_gathered_again(tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("real", 0)
    indexes = {role: reader.open_sealed(Folder(str(folder))) for role in ("real", "fake")}
    plan = feature_pass.PassPlan({"real": str(folder), "fake": str(folder)}, "pixels", None, 20, 0, 2)
    output = Folder(str(tmp_path / "out"))
    first = feature_pass.run_pass(plan, indexes, output, "key", Pool(1, 0.0))
    parts = sorted((tmp_path / "out" / "parts").iterdir())
    assert len(parts) == 6
    before = [part.stat().st_mtime_ns for part in parts]
    parts[2].unlink()
    again = feature_pass.run_pass(plan, indexes, output, "key", Pool(1, 0.0))
    kept = [part.stat().st_mtime_ns == then for part, then in zip(parts, before, strict=True)]
    assert kept == [True, True, False, True, True, True]
    assert np.array_equal(first["real"].sums.outer_FF, again["real"].sums.outer_FF)
    assert first["real"].sums.count == 30
    assert sum(one.count for one in first["real"].class_sums) == 30
    everything, labels = pixels(folder)
    drawn = first["fake"].position_N
    assert len(set(drawn.tolist())) == 20
    assert np.array_equal(first["fake"].features_NF, everything[drawn])
    assert np.array_equal(first["fake"].label_N, labels[drawn])
    assert not np.array_equal(drawn, first["real"].position_N)


@pytest.mark.slow
def test_a_damaged_shard_is_lost_work(tiny: Tiny, tmp_path: Path) -> None:
    real, fake = tiny("real", 0), tmp_path / "fake"
    shutil.copytree(tiny("fake", 1), fake)
    tar = fake / "shards" / "000001.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    with pytest.raises(LostWorkError) as error:
        run(real, fake, tmp_path / "out")
    assert str(error.value) == (
        "1 groups of shards could not be measured; the first: CorruptError: "
        f"{fake}/shards/000001.tar: changed after the seal (its sha256 differs)"
    )


def test_one_line_for_what_cannot_be_compared(tiny: Tiny, tmp_path: Path) -> None:
    real, output = tiny("real", 0), tmp_path / "out"
    larger, other, few = tiny("larger", 0, size=32), tiny("other", 0, classes=("a", "c")), tiny("few", 0, count=8)
    unsealed = tmp_path / "unsealed"
    shutil.copytree(real, unsealed)
    (unsealed / "index.json").unlink()
    refused: list[tuple[dict[str, Any], str]] = [
        ({"fake": larger}, f"--fake {larger} holds 32x32x1, but --real {real} holds 28x28x1"),
        ({"fake": other}, f"--fake {other} has the classes a, c, but --real {real} has a, b"),
        ({"fake": few}, f"--fake {few}: 8 images; at least 20 are needed"),
        ({"fake": real, "holdout": str(few)}, f"--holdout {few}: 8 images; at least 20 are needed"),
        (
            {"fake": real, "features": "classifier"},
            "--features classifier needs datasets with classes, and --classifier-images above 0; use vgg16-random, "
            "which needs neither",
        ),
        ({"fake": real, "output": real}, f"--output {real}: a dataset is here; name another folder"),
        (
            {"fake": real, "features": "inception"},
            "--inception-weights (not given): features inception: no weights; give torchvision's inception_v3 as a "
            "safetensors file, or take vgg16-random, which needs none",
        ),
    ]
    for settings, told in refused:
        with pytest.raises(UsageError) as error:
            run(real, **{"output": output, **settings})
        assert str(error.value) == told
    with pytest.raises(DatasetError, match="not finished"):
        run(real, unsealed, output)
    assert not output.exists()


@pytest.mark.slow
def test_without_classes_labels_are_not_looked_at(tiny: Tiny, tmp_path: Path) -> None:
    real, fake = tiny("real", 0), tiny("unlabelled", 1, classes=())
    told = values(run(real, fake, tmp_path / "out"))
    assert {label for *_, label in told} == {None}
    assert "nearest_neighbour_error" not in {name for name, *_ in told}
