"""An evaluation in words: do the images look real, are they varied, useful, copied? docs/evaluate.md has the rules.

Each answer compares a measure with its reference: of the holdout, which is what a perfect generator would get, or of a
classifier that was trained on the real images. A difference within two spreads counts as none.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jobs.evaluation.metrics import CLOSE, Row

ALMOST, MOSTLY = 0.95, 0.8  # of the reference's precision, recall or coverage
USEFUL, PARTLY = 0.98, 0.9  # of the accuracy after training on real images
FEW, MANY = 2.0, 5.0  # times the share of close images that chance gives
_NO_HOLDOUT = "Without --holdout there is nothing to compare with"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one question. `grade`: good, fair or poor; `unknown` where a number is missing."""

    question: str
    grade: str
    answer: str
    words: str


@dataclass(frozen=True, slots=True)
class _Compared:
    """A measure of the fakes, as a share of its reference."""

    name: str
    value: float
    reference: float
    noise: float  # of the difference: two spreads

    @property
    def share(self) -> float:
        """1 for a value that is as good as its reference, or not distinguishable from it."""
        if self.value >= self.reference - self.noise:
            return 1.0
        return self.value / self.reference

    def __str__(self) -> str:
        return f"{self.name} is {self.value:.3f} (reference {self.reference:.3f})"


def answers(rows: Sequence[Row]) -> list[Answer]:
    """The four answers, in their order. `rows`: of an evaluation; those of single classes are not looked at."""
    whole = [row for row in rows if row.label is None]
    return [_looks_real(whole), _varied(whole), _useful(whole), _copied(whole)]


def find(rows: Iterable[Row], measure: str, of: str, against: str | None = None) -> Row | None:
    """The row of a measure, if it was measured."""
    for row in rows:
        if (row.measure, row.of) == (measure, of) and against in (None, row.against) and row.value is not None:
            return row
    return None


def _looks_real(rows: Sequence[Row]) -> Answer:
    question = "Do they look real?"
    precision = _compare(rows, "precision", "holdout")
    if precision is None:
        return _unknown(question, rows, "precision")
    grade, answer = _graded(precision.share, (ALMOST, "yes"), (MOSTLY, "mostly"), "no")
    return Answer(question, grade, answer, f"{_start(precision)}: the share of synthetic images among the real ones.")


def _varied(rows: Sequence[Row]) -> Answer:
    question = "Are they varied?"
    found = [one for name in ("recall", "coverage") if (one := _compare(rows, name, "holdout"))]
    if not found:
        return _unknown(question, rows, "recall")
    grade, answer = _graded(min(one.share for one in found), (ALMOST, "yes"), (MOSTLY, "mostly"), "no")
    words = f"{_start(' and '.join(map(str, found)))}: how many of the real images are reached."
    alike = find(rows, "too_alike", "fake")
    if alike and _least(alike) > MANY * CLOSE:
        grade, answer = ("poor" if grade == "poor" else "fair"), ("no" if grade == "poor" else "many repeat")
        words += f" {alike.value:.1%} are near duplicates of each other, of {CLOSE:.0%} that chance gives."
    return Answer(question, grade, answer, words)


def _useful(rows: Sequence[Row]) -> Answer:
    question = "Are they useful?"
    accuracy = _compare(rows, "accuracy_score", "real")
    if accuracy is None:
        if find(rows, "accuracy_score", "fake"):
            return _unknown(question, rows, "accuracy_score")
        return Answer(
            question, "unknown", "cannot say", "No classifier was trained: that needs classes and --classifier-images."
        )
    grade, answer = _graded(accuracy.share, (USEFUL, "as real images"), (PARTLY, "less than real ones"), "no")
    words = f"A classifier trained on them gets {accuracy.value:.1%} of the held-out real images right"
    return Answer(question, grade, answer, f"{words}; one trained on real images {accuracy.reference:.1%}.")


def _copied(rows: Sequence[Row]) -> Answer:
    question = "Are they copies?"
    close = find(rows, "too_close", "fake")
    if close is None:
        return Answer(question, "unknown", "cannot say", "Not measured.")
    times = _least(close) / CLOSE
    grade, answer = ("good", "no sign") if times <= FEW else ("fair", "perhaps") if times <= MANY else ("poor", "many")
    words = f"{close.value:.1%} are nearer to a real image than unseen real images are; {CLOSE:.0%} is chance."
    if grade != "good":
        words += " Look at the closest pairs."
    if find(rows, "precision", "holdout") is None:
        words += f" {_NO_HOLDOUT} but distances between real images."
    return Answer(question, grade, answer, f"{words} Compared with {close.n_against:,} real images.")


def _compare(rows: Sequence[Row], measure: str, reference: str) -> _Compared | None:
    fake, other = find(rows, measure, "fake"), find(rows, measure, reference)
    if fake is None or other is None or fake.value is None or other.value is None:
        return None
    noise = 2 * math.hypot(fake.spread or 0.0, other.spread or 0.0)
    return _Compared(measure.replace("_", " "), fake.value, other.value, noise)


def _least(row: Row) -> float:
    """The value, less two spreads."""
    return (row.value or 0.0) - 2 * (row.spread or 0.0)


def _graded(share: float, good: tuple[float, str], fair: tuple[float, str], poor: str) -> tuple[str, str]:
    for grade, (least, answer) in (("good", good), ("fair", fair)):
        if share >= least:
            return grade, answer
    return "poor", poor


def _unknown(question: str, rows: Sequence[Row], measure: str) -> Answer:
    row = find(rows, measure, "fake")
    told = f" {_start(measure.replace('_', ' '))} is {row.value:.3f}." if row else ""
    return Answer(question, "unknown", "cannot say", f"{_NO_HOLDOUT}.{told}")


def _start(value: object) -> str:
    """With a capital."""
    text = str(value)
    return text[:1].upper() + text[1:]
