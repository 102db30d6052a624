"""Curation: the rules by themselves, and the command's main() on a generated dataset, up to its readers."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from safetensors.numpy import load

from dcgan import numerics
from dcgan.arithmetic import Arithmetic
from dcgan.evaluation import rejection
from jobs import curate, evaluate, train
from jobs.cluster.real_scores import ScoreShard
from jobs.command.errors import LostWorkError, UsageError
from jobs.evaluation import accuracy_score
from jobs.selection import rules
from jobs.selection.rules import Scores
from pipelines.dataset import checked_file, layout, reader, selection
from pipelines.dataset.selection import SelectionError
from pipelines.storage.folder import Folder


def scores(logits: list[float], labels: list[int] | None = None) -> Scores:
    label_N = np.array(labels or [-1] * len(logits), np.int32)
    return Scores(np.arange(100, 100 + len(logits)), label_N, np.array(logits, np.float32))


def test_threshold_takes_what_reaches_it() -> None:
    assert rules.threshold(scores([0.4, 0.5, 0.6, -1]), 0.5).selected_N.tolist() == [False, True, True, False]


def test_top_takes_its_share_of_each_class() -> None:
    found = rules.top(scores([1, 9, 3, 2, 8, 7, 4, 0], [0, 1, 0, 0, 1, 1, 0, 1]), 0.5)
    assert np.flatnonzero(found.selected_N).tolist() == [1, 2, 4, 6]
    assert (found.columns["lowest_logit"], found.report["tied_left_out"]) == ([3.0, 8.0], 0)
    assert rules.counts(np.array([0, 1, 0]), np.array([True, False, True])) == [
        {"label": 0, "taken": 2, "of": 2},
        {"label": 1, "taken": 0, "of": 1},
    ]


def test_of_equal_logits_the_lowest_keys_are_taken_and_the_others_counted() -> None:
    found = rules.top(scores([1, 2, 2, 3, 2, 2]), 0.5)
    assert np.flatnonzero(found.selected_N).tolist() == [1, 2, 3]
    assert found.report["tied_left_out"] == 2


@pytest.mark.parametrize(("share", "taken"), [(1e-9, 1), (0.1, 1), (0.5, 5), (1.0, 10)])
def test_a_share_is_rounded_and_at_least_one_is_taken(share: float, taken: int) -> None:
    assert rules.top(scores([float(n) for n in range(10)]), share).selected_N.sum() == taken


def some(seed: int, shift: float = 0.0, count: int = 4000) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, count).astype(np.float32)


def test_drs_bounds_each_class_by_itself() -> None:
    """A class whose logits are all lower by 100 is taken at the same rate; by one bound for all none would be."""
    fake = np.concatenate([some(1), some(1) - 100])
    found = rules.drs(scores(fake.tolist(), [0] * 4000 + [1] * 4000), some(0, 1), 80.0, 0)
    first, second = found.selected_N[:4000].mean(), found.selected_N[4000:].mean()
    assert first == pytest.approx(second, abs=0.03)
    assert found.columns["expected"][0] == pytest.approx(first, abs=0.03)
    assert found.columns["gamma"][0] == pytest.approx(found.columns["gamma"][1], abs=1e-3)
    assert found.columns["log_m"][0] > found.columns["log_m"][1] + 10


def test_drs_prefers_the_better_ones_and_draws_by_seed_and_index() -> None:
    fake, real_N = scores(some(1).tolist()), some(0, 1)
    found = rules.drs(fake, real_N, 80.0, 3)
    assert found.report["acceptance"] == found.selected_N.mean()
    assert found.report["acceptance"] == pytest.approx(found.report["expected_acceptance"], abs=0.02)
    assert fake.logit_N[found.selected_N].mean() > fake.logit_N.mean() + 0.3
    assert np.array_equal(found.selected_N, rules.drs(fake, real_N, 80.0, 3).selected_N)
    assert not np.array_equal(found.selected_N, rules.drs(fake, real_N, 80.0, 4).selected_N)
    calibrated_N = found.report["calibration"]["slope"] * fake.logit_N.astype(np.float64)
    u_N = rejection.uniform(100, 4000, 3)
    again_N = u_N < rejection.acceptance(calibrated_N, 80.0).probability_N
    assert (again_N == found.selected_N).all()  # the intercept cancels out
    assert rules.drs(fake, real_N, 0.0, 3).selected_N.sum() > found.selected_N.sum() > 0
    assert rules.drs(fake, real_N, 99.0, 3).selected_N.sum() < found.selected_N.sum()


def run(data: Path, rule: str, output: Path, **settings: Any) -> selection.Selection:
    given = {"dataset": str(data), "output": str(output), "rule": rule, "workers": 1, **settings}
    curate.main(curate.CurateSettings(**given))
    return selection.read(str(output))


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def logits(data: Path) -> list[tuple[int, int, float]]:
    """index, label and logit of all images, as DuckDB reads them."""
    return duckdb.sql(f"select index, label, logit from '{data}/manifest/*.parquet' order by index").fetchall()


def test_threshold_through_the_command(synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = bytes_of(synthetic)
    rows = logits(synthetic)
    middle = sorted(logit for *_, logit in rows)[400]
    found = run(synthetic, "threshold", tmp_path / "s.parquet", min_logit=middle)
    wanted = [index for index, _, logit in rows if logit >= middle]
    assert found.index_N.tolist() == wanted
    assert found.facts.dataset == reader.open_sealed(Folder(str(synthetic))).root
    assert (found.facts.rule, found.facts.images) == ("threshold", 1000)
    assert sum(one["taken"] or 0 for one in found.facts.classes) == len(wanted)
    assert [one["of"] for one in found.facts.classes] == [100] * 10
    told = capsys.readouterr().out
    assert f"{len(wanted):,} of 1,000 images selected ({len(wanted) / 1000:.1%})" in told
    assert f"jobs/evaluate.py --fake {synthetic} --selection {tmp_path}/s.parquet" in told
    assert bytes_of(synthetic) == before
    joined = duckdb.sql(
        f"select count(*), min(logit) from '{synthetic}/manifest/*.parquet' join '{tmp_path}/s.parquet' using (key)"
    ).fetchall()
    assert joined == [(len(wanted), min(logit for *_, logit in rows if logit >= middle))]


def test_top_through_the_command_and_again(synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "s.parquet"
    found = run(synthetic, "top", output, share=0.2)
    assert [(one["taken"], one["of"]) for one in found.facts.classes] == [(20, 100)] * 10
    rows = logits(synthetic)
    for label in range(10):
        best = sorted((-logit, index) for index, one, logit in rows if one == label)[:20]
        assert sorted(index for _, index in best) == [n for n in found.index_N.tolist() if rows[n][1] == label]
    data = output.read_bytes()
    run(synthetic, "top", output, share=0.2)
    assert output.read_bytes() == data
    assert "it existed already" in capsys.readouterr().out
    with pytest.raises(UsageError, match="another file is here, and a selection never changes; name another"):
        run(synthetic, "top", output, share=0.3)
    assert output.read_bytes() == data


@pytest.mark.slow
def test_drs_through_the_command(
    synthetic: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    """With two actors it takes what one process does. The digits are what this model was trained on: it says so."""
    found = run(synthetic, "drs", tmp_path / "s.parquet", holdout=str(digits), images=2500, workers=2)
    told = capsys.readouterr().out
    report = found.facts.report
    index, real = (reader.open_sealed(Folder(str(folder))) for folder in (synthetic, digits))
    assert report["real"] == {"root": real.root, "images": 2500, "trained_on": True}
    assert f"the model was trained on --holdout {digits}" in told
    assert report["acceptance"] == len(found.index_N) / 1000
    assert f"acceptance rate {report['acceptance']:.4f}, expected {report['expected_acceptance']:.4f}" in told
    assert re.search(r"^Brier score .*0\.\d{4} +0\.\d{4}$", told, re.M)
    assert [len(report[name]) for name in ("log_m", "gamma", "expected")] == [10, 10, 10]
    scorer = ScoreShard(str(synthetic), str(digits), arithmetic_of(index))
    real_N = np.array([logit for shard in range(3) for logit in scorer(shard)["logits"]], np.float32)[:2500]
    rows = logits(synthetic)
    again = rules.drs(
        Scores(np.arange(1000), *(np.array(column) for column in list(zip(*rows, strict=True))[1:])), real_N, 80.0, 0
    )
    assert np.flatnonzero(again.selected_N).tolist() == found.index_N.tolist()
    assert json.loads(json.dumps(again.report["calibration"])) == report["calibration"]


def arithmetic_of(index: layout.Index) -> Arithmetic:
    return numerics.choose("bf16" if index.identity.arithmetic["dtype"] == "bfloat16" else "fp32", "cpu")


def test_real_images_are_scored_as_synthetic_ones_were(synthetic: Path, one_thread: None) -> None:
    """The dataset as its own holdout: its logits are those of the manifest, bit for bit."""
    index = reader.open_sealed(Folder(str(synthetic)))
    scorer = ScoreShard(str(synthetic), str(synthetic), arithmetic_of(index))
    assert scorer(2)["logits"] == [logit for *_, logit in logits(synthetic)[500:750]]


@pytest.mark.slow
def test_what_was_chosen_is_what_is_evaluated(synthetic: Path, digits: Path, tmp_path: Path) -> None:
    chosen = run(synthetic, "top", tmp_path / "s.parquet", share=0.3)
    evaluate.main(
        evaluate.EvaluateSettings(
            real=str(digits),
            fake=str(synthetic),
            selection=str(tmp_path / "s.parquet"),
            features="pixels",
            images=200,
            repeats=2,
            classifier_images=600,
            workers=1,
        )
    )
    found = json.loads((tmp_path / "s-evaluation" / "evaluation.json").read_bytes())
    fake = found["protocol"]["datasets"]["fake"]
    assert (fake["images"], fake["drawn"]) == (300, 200)
    assert fake["selection"] == {"digest": chosen.digest, "rule": "top", "share": 0.3, "of": 1000}
    trained_on = {
        row["measure"]: row["n_of"] for row in found["results"] if row["of"] == "fake" and row["label"] is None
    }
    assert trained_on["accuracy_score"] == trained_on["nearest_neighbour_error"] == 300
    assert {int(pair["fake"]) for pair in found["closest"]} <= {*chosen.index_N.tolist()}
    assert "selection" not in found["protocol"]["datasets"]["real"]


def test_the_accuracy_score_is_of_a_classifier_that_saw_what_was_chosen(
    synthetic: Path, tmp_path: Path, one_thread: None
) -> None:
    """Of threes alone it learns to say three."""
    root = reader.open_sealed(Folder(str(synthetic))).root
    label_N = np.array([label for _, label, _ in logits(synthetic)])
    threes = {"classes": [{"label": 3, "taken": 100, "of": 100}], "rule": "threes", "parameters": {}, "images": 1000}
    data = selection.encode(selection.Facts(dataset=root, **threes), np.flatnonzero(label_N == 3))
    (tmp_path / "threes.parquet").write_bytes(data)
    training = accuracy_score.ClassifierTraining(
        str(synthetic), root, str(synthetic), root, 10, 1500, 0, selection=str(tmp_path / "threes.parquet")
    )
    accuracy_score.TrainClassifier([training], str(tmp_path / "out"))(0)
    answers = load(checked_file.read(Folder(str(tmp_path / "out")), training.answers))
    assert np.array_equal(answers["wrong"], label_N != 3)
    assert training.name != replace(training, selection=None).name


@pytest.mark.slow
def test_training_on_a_selection(
    synthetic: Path, tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """It sees what was chosen, says so, and goes on with no other selection."""
    one = run(synthetic, "top", tmp_path / "one.parquet", share=0.3)
    run(synthetic, "top", tmp_path / "other.parquet", share=0.4)
    preset = {**train.TrainSettings.preset({"recipe": "digits28"}), "width": 16, "metric_images": 100, "batch_size": 60}
    given = {**preset, "data": str(synthetic), "run": str(tmp_path / "run"), "images": 120, "tick": 60, "workers": 1}
    train.main(train.TrainSettings(**given, selection=str(tmp_path / "one.parquet")))
    assert "300 selected images, 0.4 epochs" in capsys.readouterr().out
    claimed = json.loads((tmp_path / "run" / "run.json").read_bytes())["identity"]
    assert claimed["selection"] == one.digest
    cards = [json.loads(card.read_bytes()) for card in (tmp_path / "run" / "models").glob("*/model.json")]
    assert {card["provenance"]["selection"] for card in cards} == {one.digest}
    for selected, now in ((str(tmp_path / "other.parquet"), '"'), (None, "nothing")):
        with pytest.raises(UsageError, match=f'claimed with selection = "{one.digest}", this run has {now}'):
            train.main(train.TrainSettings(**given, selection=selected))


def test_one_line_for_what_cannot_be_selected(synthetic: Path, digits: Path, tmp_path: Path) -> None:
    refused: list[tuple[Path, str, dict[str, Any], str]] = [
        (digits, "top", {}, f"--dataset {digits}: it was ingested and has no scores; only generated images can be "
         "selected"),
        (
            synthetic,
            "drs",
            {},
            "--rule drs needs --holdout: a dataset of real images that the model was not trained on, as "
            "jobs/ingest.py --holdout makes one",
        ),
        (
            synthetic,
            "top",
            {"output": f"{synthetic}/s.parquet"},
            f"--output {synthetic}/s.parquet: this is inside the dataset, which is sealed; name another place",
        ),
    ]  # fmt: skip
    for data, rule, settings, told in refused:
        with pytest.raises(UsageError) as error:
            run(data, rule, **{"output": tmp_path / "s.parquet", **settings})
        assert str(error.value) == told
    largest = max(logit for *_, logit in logits(synthetic))
    with pytest.raises(UsageError, match=f"no image is selected; the largest logit is {largest:.4g}; use a lower "):
        run(synthetic, "threshold", tmp_path / "s.parquet", min_logit=largest + 1)
    assert not (tmp_path / "s.parquet").exists()


def test_a_selection_is_refused_by_the_readers_of_another_dataset(
    synthetic: Path, digits: Path, tmp_path: Path
) -> None:
    run(synthetic, "top", tmp_path / "s.parquet")
    chosen = {"selection": str(tmp_path / "s.parquet")}
    with pytest.raises(SelectionError, match="made of the dataset with root"):
        evaluate.main(evaluate.EvaluateSettings(real=str(digits), fake=str(digits), **chosen))
    preset = train.TrainSettings.preset({"recipe": "digits28"})
    with pytest.raises(SelectionError, match="made of the dataset with root"):
        train.main(train.TrainSettings(**preset, data=str(digits), run=str(tmp_path / "run"), **chosen))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_damaged_holdout_is_lost_work(synthetic: Path, digits: Path, tmp_path: Path) -> None:
    holdout = tmp_path / "holdout"
    shutil.copytree(digits, holdout)
    tar = holdout / "shards" / "000001.tar"
    tar.write_bytes(tar.read_bytes().replace(b"000000001000.png", b"000000001001.png", 1))
    with pytest.raises(LostWorkError, match=r"shard 000001 could not be scored: CorruptError: .*after the seal"):
        run(synthetic, "drs", tmp_path / "s.parquet", holdout=str(holdout))
    assert not (tmp_path / "s.parquet").exists()
