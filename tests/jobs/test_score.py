"""Second scores through the command: a column beside the dataset, which curate selects by."""

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from jobs import curate, generate, score, verify
from jobs.command import model_store
from jobs.command.errors import UsageError
from jobs.scoring.worker import ScoreShard, split
from pipelines.dataset import manifest, reader, scores, selection
from pipelines.dataset.scores import SecondScores
from pipelines.storage.folder import Folder
from tests.jobs.test_curate import arithmetic_of, bytes_of, logits


def run(data: Path, real: Path, output: Path, **changes: Any) -> None:
    given = {"dataset": str(data), "real": str(real), "output": str(output), "images": 2000, "workers": 2, **changes}
    score.main(score.ScoreSettings(**given))


@pytest.fixture(scope="module")
def scored(synthetic: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SecondScores]:
    """A file of scores of the 1,000 generated digits, and its content. Not to be changed."""
    output = tmp_path_factory.mktemp("scores") / "s.parquet"
    before = bytes_of(synthetic)
    run(synthetic, digits, output)
    assert bytes_of(synthetic) == before
    return output, scores.read(str(output), reader.open_sealed(Folder(str(synthetic))).root)


def scorer(scored: tuple[Path, SecondScores]) -> Path:
    return scored[0].with_name("s-model")


def test_the_protocol_says_what_was_learnt_from_and_how_well(
    scored: tuple[Path, SecondScores], digits: Path, synthetic: Path
) -> None:
    protocol = scored[1].facts.protocol
    root = reader.open_sealed(Folder(str(digits))).root
    fit, learnt = protocol["calibration"], protocol["discriminator"]
    assert fit["real"] == {"root": root, "images": 1000, "trained_on": True}
    assert (learnt["real"], learnt["of"], learnt["images"]) == (root, 4000, 1984)
    assert learnt["from"] == reader.open_sealed(Folder(str(synthetic))).identity.model
    assert (fit["fitted"], fit["measured"], scored[1].facts.images) == (500, 500, 1000)
    assert fit["auc"] > max(0.7, protocol["auc_before"] - 0.05)  # noise around digits is easily told
    assert 0 < fit["after"]["error"] < 0.2


def test_the_scores_are_those_of_the_model_beside_them(
    scored: tuple[Path, SecondScores], synthetic: Path, one_thread: None
) -> None:
    """Only its discriminator differs from the dataset's: it generates the same images."""
    model, digest = model_store.load(Folder(str(scorer(scored))))
    assert digest == scored[1].facts.protocol["model"]
    index = reader.open_sealed(Folder(str(synthetic)))
    again = ScoreShard(str(synthetic), str(scorer(scored)), arithmetic_of(index))
    assert [logit for shard in range(4) for logit in again(shard)["logits"]] == scored[1].logit_N.tolist()
    files = [(folder / "generator.safetensors").read_bytes() for folder in (synthetic / "model", scorer(scored))]
    assert files[0] == files[1]
    assert model.calibration is not None
    assert model.provenance["discriminator"] == scored[1].facts.protocol["discriminator"]


@pytest.mark.slow
def test_a_model_to_generate_with_has_the_same_images_and_that_score_in_its_manifest(
    digits_run: Path, synthetic: Path, digits: Path, tmp_path: Path
) -> None:
    model, output = tmp_path / "model", tmp_path / "synthetic"
    score.main(score.ScoreSettings(model=str(digits_run), real=str(digits), output=str(model), images=1000))
    with pytest.raises(UsageError, match="there are files here; name a new folder"):
        score.main(score.ScoreSettings(model=str(digits_run), real=str(digits), output=str(model), images=1000))
    generate.main(generate.GenerateSettings(model=str(model), output=str(output), count=100, shard_size=50, workers=1))
    folders = [Folder(str(one)) for one in (output, synthetic)]
    rows, before = (
        duckdb.sql(f"select * from '{f.url}/manifest/*.parquet' order by index limit 100").df() for f in folders
    )
    assert rows["sha256"].tolist() == before["sha256"].tolist()
    assert rows["logit"].tolist() != before["logit"].tolist()
    line = json.loads((output / "model/model.json").read_text())["calibration"]
    part = reader.read_part(folders[0], 0)[0]
    assert part.calibration == (line["slope"], line["intercept"])
    verify.main(verify.VerifySettings(dataset=str(output), regenerate=10, workers=1))


def test_what_is_held_out_is_not_learnt_from(digits: Path) -> None:
    folder = Folder(str(digits))
    trained, held = split(folder, reader.open_sealed(folder), 0.2, 300)
    assert (trained.samples, held.samples) == (4000, 300)
    assert trained.chosen_N is not None
    assert held.chosen_N is not None
    assert np.array_equal(trained.chosen_N, np.arange(4000))
    assert np.array_equal(held.chosen_N, np.arange(4000, 4300))


def test_the_same_command_gives_the_same_scores_and_never_overwrites_them(
    scored: tuple[Path, SecondScores], synthetic: Path, digits: Path, tmp_path: Path
) -> None:
    run(synthetic, digits, tmp_path / "s.parquet", workers=1)
    assert (tmp_path / "s.parquet").read_bytes() == scored[0].read_bytes()
    with pytest.raises(UsageError, match=r"s\.parquet: a file is here, and scores never change; name another one"):
        run(synthetic, digits, tmp_path / "s.parquet")


def chosen(synthetic: Path, output: Path, **settings: Any) -> selection.Selection:
    curate.main(curate.CurateSettings(dataset=str(synthetic), output=str(output), **settings))
    return selection.read(str(output))


def test_curate_selects_by_them(scored: tuple[Path, SecondScores], synthetic: Path, tmp_path: Path) -> None:
    output, found = scored
    top = chosen(synthetic, tmp_path / "top.parquet", rule="top", share=0.2, scores=str(output))
    label_N = np.array([label for _, label, _ in logits(synthetic)])
    for label in range(10):
        rows_C = np.flatnonzero(label_N == label)
        best = rows_C[np.argsort(-found.logit_N[rows_C], kind="stable")[:20]]
        assert sorted(best.tolist()) == [n for n in top.index_N.tolist() if label_N[n] == label]
    assert top.facts.parameters == {"share": 0.2, "scores": found.digest}
    plain = chosen(synthetic, tmp_path / "plain.parquet", rule="top", share=0.2)
    assert plain.index_N.tolist() != top.index_N.tolist()


def test_rejection_sampling_by_them_needs_no_holdout(
    scored: tuple[Path, SecondScores], synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, found = scored
    drs = chosen(synthetic, tmp_path / "drs.parquet", rule="drs", scores=str(output))
    assert found.logit_N[drs.index_N].mean() > found.logit_N.mean()
    assert json.loads(json.dumps(drs.facts.report["scores"])) == found.facts.protocol
    assert f"scores {found.digest[:12]}" in capsys.readouterr().out


def test_scores_of_another_dataset_are_refused(
    scored: tuple[Path, SecondScores], synthetic: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.parquet"
    facts = scores.Facts(dataset="ab" * 32, images=1000, protocol={})
    other.write_bytes(scores.encode(facts, scored[1].logit_N))
    with pytest.raises(scores.ScoresError, match="made of the dataset with root abababababab"):
        chosen(synthetic, tmp_path / "s.parquet", rule="top", scores=str(other))


def test_one_line_for_what_cannot_be_scored(synthetic: Path, digits: Path, tmp_path: Path) -> None:
    for data, output, told in (
        (digits, tmp_path / "s.parquet", f"--dataset {digits}: it was ingested"),
        (synthetic, synthetic / "s.parquet", "this is inside the dataset, which is sealed; name another place"),
        (synthetic, tmp_path / "s.txt", "name a file that ends in .parquet"),
    ):
        with pytest.raises(UsageError) as error:
            run(data, digits, output)
        assert told in str(error.value)


def test_a_calibrated_score_is_what_the_manifest_holds(synthetic: Path) -> None:
    """The model of the fixture was calibrated at its export, or its logits order nothing: then it has no line."""
    folder = Folder(str(synthetic))
    index = reader.open_sealed(folder)
    card = json.loads((synthetic / "model/model.json").read_text())
    line = card.get("calibration", {"slope": 1.0, "intercept": 0.0})
    for record in index.shards:
        part = reader.read_sealed_part(folder, record)
        assert part.calibration == (line["slope"], line["intercept"])
        logit_N, score_N = (part.table[name].to_numpy() for name in ("logit", "score"))
        assert np.array_equal(manifest.sigmoid(logit_N, part.calibration), score_N)
