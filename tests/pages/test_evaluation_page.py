"""The page of an evaluation, and its verdict in words."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.evaluation import verdict
from jobs.evaluation.metrics import Row
from tests.pages import parsed
from tests.pages.conftest import evaluation_of


def rows(spread: float | None = 0.0, holdout: bool = True, **values: float) -> list[Row]:
    """Rows of an evaluation: `recall=0.5` of the fakes, 0.9 of the holdout."""
    given = {"precision": 0.9, "recall": 0.9, "coverage": 0.9, "too_close": 0.01, "too_alike": 0.01, **values}
    accuracy = given.pop("accuracy_score", None)
    found = [Row(name, "fake", "real", None, value, spread, 100, 100) for name, value in given.items()]
    if holdout:
        found += [
            Row(name, "holdout", "real", None, 0.9, spread, 100, 100) for name in ("precision", "recall", "coverage")
        ]
    if accuracy is not None:
        found += [Row("accuracy_score", "fake", "holdout", None, accuracy, spread, 100, 100)]
        found += [Row("accuracy_score", "real", "holdout", None, 0.95, spread, 100, 100)] if holdout else []
    return found


def grades(found: list[Row]) -> list[str]:
    return [answer.grade for answer in verdict.answers(found)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"accuracy_score": 0.95}, ["good", "good", "good", "good"]),
        ({"precision": 0.8, "accuracy_score": 0.9}, ["fair", "good", "fair", "good"]),
        ({"precision": 0.5}, ["poor", "good", "unknown", "good"]),
        ({"recall": 0.3}, ["good", "poor", "unknown", "good"]),
        ({"coverage": 0.75}, ["good", "fair", "unknown", "good"]),
        ({"too_alike": 0.2}, ["good", "fair", "unknown", "good"]),
        ({"too_alike": 0.2, "recall": 0.1}, ["good", "poor", "unknown", "good"]),
        ({"too_close": 0.04}, ["good", "good", "unknown", "fair"]),
        ({"too_close": 0.4, "accuracy_score": 0.2}, ["good", "good", "poor", "poor"]),
    ],
)
def test_the_rules(values: dict[str, float], expected: list[str]) -> None:
    assert grades(rows(**values)) == expected


def test_without_a_holdout_only_copies_are_judged() -> None:
    found = rows(holdout=False, accuracy_score=0.9)
    assert grades(found) == ["unknown", "unknown", "unknown", "good"]
    assert all("Without --holdout" in answer.words for answer in verdict.answers(found))


def test_a_difference_within_two_spreads_is_none() -> None:
    assert grades(rows(precision=0.8, spread=0.04))[0] == "good"
    assert grades(rows(precision=0.8, spread=0.03))[0] == "fair"
    assert grades(rows(too_close=0.1, spread=0.05))[3] == "good"


@given(st.tuples(*[st.floats(0, 1)] * 2), st.sampled_from(["precision", "recall", "coverage", "accuracy_score"]))
def test_a_better_value_never_gets_a_worse_answer(values: tuple[float, float], measure: str) -> None:
    order = ["poor", "fair", "good"]
    place = {"precision": 0, "recall": 1, "coverage": 1, "accuracy_score": 2}[measure]
    worse, better = (order.index(grades(rows(**{measure: value}))[place]) for value in sorted(values))
    assert worse <= better


def test_classes_and_missing_numbers_do_not_count() -> None:
    found = rows(precision=0.9)
    extra = [
        Row("precision", "fake", "real", 1, 0.0, 0.0, 9, 9),
        Row("recall", "holdout", "real", None, None, None, 9, 9),
    ]
    assert grades([*extra, *found]) == grades(found)


def test_the_page_answers_in_words_first(evaluation_page: Path) -> None:
    page = parsed.check(evaluation_page.read_bytes())
    headings = [element.text for element in page.all("h2", "h3")]
    assert headings[:5] == ["Verdict", *(answer.question for answer in verdict.answers([]))]
    for text in ("/data/fake", "/data/real", "docs/quality.md", "Less than real ones", "Class by class"):
        assert text in page.words


def test_each_measure_has_its_reference_beside_it(evaluation_page: Path) -> None:
    page = parsed.check(evaluation_page.read_bytes())
    bars = [element for element in page.all("span") if "style" in element.attributes]
    kinds = [element.attributes["class"] for element in bars]
    assert [len([*group]) for _, group in itertools.groupby(kinds)] == [1] * len(kinds)  # fake, reference, fake, ...
    for element in bars:
        assert 0 <= float((element.attributes["style"] or "").removeprefix("width: ").removesuffix("%")) <= 100


def test_copies_are_called_copies() -> None:
    """Fakes that are the real images."""
    page = parsed.check(evaluation_of(0))
    assert "100.0% are nearer to a real image" in page.words
    assert "Look at the closest pairs" in page.words


def test_the_closest_pairs_stand_above_each_other(evaluation_page: Path) -> None:
    page = parsed.check(evaluation_page.read_bytes())
    alts = [element.attributes["alt"] or "" for element in page.all("img")]
    pairs = [alt for alt in alts if alt.startswith(("Synthetic image 0", "Real image 0"))]
    assert len(pairs) == 24
    assert [alt.split()[0] for alt in pairs] == ["Synthetic", "Real"] * 12


def test_without_a_holdout_the_page_says_so() -> None:
    page = parsed.check(evaluation_of(1000, holdout=False))
    assert "Without --holdout there is nothing to compare with" in page.words
    assert "holdout to real" not in page.words


def test_the_score_stands_in_words_where_it_was_measured(evaluation_page: Path) -> None:
    words = "tells a real image (holdout) from a synthetic one in 57% of pairs"
    assert words in parsed.check(evaluation_page.read_bytes()).words
    assert "What the score is worth" not in parsed.check(evaluation_of(1000, holdout=False)).words
