"""Exploration through the command's main(): what it writes and prints, the seed, what it refuses."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs import explore
from jobs.command.errors import UsageError
from jobs.exploration import linear_probe
from jobs.exploration.inputs import open_inputs

PICTURES = ("arithmetic", "backprop", "directions", "interpolation")


def run(digits: Path, model: Path, output: Path, **settings: Any) -> None:
    small = {"images": 400, "labels": 60, "repeats": 2, "centroids": 10, **settings}
    explore.main(explore.ExploreSettings(model=str(model), data=str(digits), output=str(output), **small))


def test_all_parts(digits: Path, digits_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(digits, digits_run, tmp_path / "one")
    printed = capfd.readouterr().out
    names = [*(f"{name}.png" for name in PICTURES), "backprop.json", "features.json", "walks.json"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(names)
    for name in PICTURES:
        assert f"{name}.png" in printed
        assert len(np.unique(np.asarray(Image.open(tmp_path / "one" / f"{name}.png")))) > 50

    found = json.loads((tmp_path / "one" / "features.json").read_text())
    protocol = found["protocol"]
    best = json.loads((digits_run / "best.json").read_text())
    assert protocol["model"]["url"].endswith(best["model"])
    assert protocol["model"]["trained_on_this_data"] is True
    assert protocol["labels_seen_in_training"] is True
    assert "was trained with all labels" in printed
    assert protocol["datasets"]["data"]["drawn"] == 400 == protocol["trained_on"] + protocol["tested_on"]
    lines = {(row["features"], row["labels"]): row for row in found["results"]}
    kinds = ("pixels", "k-means", "untrained", "discriminator")
    assert [*lines] == [(kind, labels) for kind in kinds for labels in (60, protocol["trained_on"])]
    assert lines["discriminator", 60]["size"] == (16 + 32) * 16
    for (kind, labels), row in lines.items():
        assert 0.02 < row["low"] < row["error"] < row["high"] < 0.8, kind  # ten digits; by chance 0.9
        assert len(row["repeats"]) == (2 if labels == 60 else 1)
        assert re.search(rf"^{kind} .* {labels:,} +{row['error']:.2%}", printed, re.MULTILINE)

    walks = json.loads((tmp_path / "one" / "walks.json").read_text())["results"]
    assert walks["arithmetic"]["on_the_right_side_of_both_medians"] > 0.4  # by chance 0.25
    for moved in walks["directions"].values():
        ranks = moved["mean_rank_by_step"]
        assert ranks == sorted(ranks)
        assert ranks[0] < 0.3 < 0.7 < ranks[-1]

    run(digits, digits_run, tmp_path / "two", what="backprop")
    run(digits, digits_run, tmp_path / "three", what="backprop", seed=1)
    for name in ("backprop.png", "backprop.json"):
        first, again, other = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two", "three"))
        assert first == again != other


def test_what_cannot_be_explored_is_one_line(digits: Path, digits_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--output .*: a dataset, model or run is here; name another folder"):
        run(digits, digits_run, digits_run)
    inputs = open_inputs(str(digits_run), str(digits), None, 100, 0)
    index = inputs.real.index
    inputs.__dict__["real"] = replace(
        inputs.real, index=replace(index, identity=index.identity.model_copy(update={"classes": None}))
    )
    with pytest.raises(UsageError, match=r"--what features: .* has no classes"):
        linear_probe.explore(inputs, 10, 1, 4, print)
