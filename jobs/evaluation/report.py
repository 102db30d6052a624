"""evaluation.html: the verdict in words, real beside fake, each measure beside its reference, the closest pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.evaluation import verdict
from jobs.evaluation.metrics import CLOSE, Row
from pipelines.images import Pixels
from pipelines.pages import engine, figures
from pipelines.pages.engine import number
from pipelines.pages.figures import Chart

_BINS = 50
_SHARE, _AMOUNT = "share", "amount"  # a bar's whole is 1, or the larger of the two values

# What a bar shows: title, meaning, and whether its whole is 1. docs/quality.md has the definitions.
_MEASURES = {
    "precision": ("Precision", "share of synthetic images that lie among the real ones; higher is better", _SHARE),
    "recall": ("Recall", "share of real images that lie among the synthetic ones; higher is better", _SHARE),
    "coverage": ("Coverage", "share of real images with a synthetic one beside them; higher is better", _SHARE),
    "density": ("Density", "how crowded synthetic images are around real ones; about 1 is right", _AMOUNT),
    "frechet_distance": ("Fréchet distance", "between the two sets; lower is better", _AMOUNT),
    "kernel_distance": ("Kernel distance", "between the two sets; lower is better", _AMOUNT),
    "accuracy_score": ("Accuracy score", "of a classifier trained on the images; higher is better", _SHARE),
    "nearest_neighbour_error": ("Nearest neighbour error", "of a nearest-image classifier; lower is better", _SHARE),
    "modes": ("Modes", "of the 1,000 stacks of three digits, those with an image; higher is better", _AMOUNT),
    "mode_divergence": ("Mode divergence", "KL from the real shares of the stacks; lower is better", _AMOUNT),
    "too_close": ("Too close", f"share nearer to a real image than {CLOSE:.0%} of unseen real ones", _AMOUNT),
    "too_alike": ("Too alike", f"share nearer to each other than {CLOSE:.0%} of real ones are", _AMOUNT),
    "nearest_distance": ("Nearest distance", "median distance to the nearest real image", _AMOUNT),
}  # fmt: skip
_EXPECTED = {"too_close": CLOSE, "too_alike": CLOSE}


@dataclass(frozen=True, slots=True)
class Pair:
    """A synthetic image and the real image nearest to it."""

    distance: float
    fake_key: str
    real_key: str
    fake: Pixels
    real: Pixels


def render_html(
    protocol: Mapping[str, Any],
    classes: Sequence[str],
    rows: Sequence[Row],
    distances: Mapping[tuple[str, str], np.ndarray],
    grids: Mapping[str, Pixels],
    pairs: Sequence[Pair],
    score: Mapping[str, Any] | None = None,
) -> bytes:
    """The page.

    Args:   distances: distance_N by (of, against), from `metrics.nearest_distances`. grids: pictures by role.
            score: from `score_quality.measure`.
    """
    whole = [row for row in rows if row.label is None]
    datasets = protocol["datasets"]
    return engine.render(
        "evaluation.html",
        fake=datasets["fake"]["url"],
        sentence=_sentence(protocol),
        answers=verdict.answers(rows),
        grids=[(role, grids[role], datasets[role]["url"]) for role in ("real", "fake")],
        conditional=bool(classes),
        bars=_bars(whole),
        chart=_histogram(distances),
        reliability=_reliability(score) if score else None,
        pairs=pairs,
        searched=datasets["real"]["searched"],
        of_class=_class_table([row for row in rows if row.label is not None], classes),
        numbers=_numbers(whole),
        protocol=_protocol(protocol),
    )


def _sentence(protocol: Mapping[str, Any]) -> str:
    datasets = protocol["datasets"]
    real, fake = datasets["real"], datasets["fake"]
    text = f"{fake['images']:,} synthetic images of {fake['url']} against {real['images']:,} real ones of {real['url']}"
    if "holdout" in datasets:
        text += f"; the reference is {datasets['holdout']['images']:,} real images that the model never saw"
    return f"{text}. Compared in the features {protocol['features']['name']}; the protocol stands below."


def _bars(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each measure of the fakes beside its reference, the known ones first."""
    measured = dict.fromkeys(row.measure for row in rows if row.of == "fake")
    found = []
    for measure in sorted(measured, key=[*_MEASURES, *measured].index):
        title, meaning, scale = _MEASURES.get(measure, (measure.replace("_", " "), "", _AMOUNT))
        # The distance from fake to fake is another number: the reference of the first is from real to real.
        against = "real" if measure == "nearest_distance" else None
        fake, (name, reference) = verdict.find(rows, measure, "fake", against), _reference(rows, measure)
        if fake is None:
            continue
        values = [one for one in (fake, reference) if one is not None]
        top = max((row.value or 0.0) + (row.spread or 0.0) for row in values)
        top = 1.0 if scale == _SHARE else max(top, _EXPECTED.get(measure, 0.0)) or 1.0
        bars = [_bar("synthetic", "fake", fake, top)]
        if reference:
            bars.append(_bar(name, "holdout", reference, top))
        if measure in _EXPECTED:
            expected = Row(measure, "", "", None, _EXPECTED[measure], None, 0, 0)
            bars.append(_bar("by chance", "holdout", expected, top))
        found.append({"title": title, "meaning": meaning, "bars": bars})
    return found


def _reference(rows: Sequence[Row], measure: str) -> tuple[str, Row | None]:
    """Of the holdout; of a classifier that was trained on real images; else between real images."""
    for of, name in (("holdout", "holdout"), ("real", "real")):
        if row := verdict.find(rows, measure, of):
            return name, row
    return "", None


def _bar(name: str, kind: str, row: Row, top: float) -> dict[str, Any]:
    def percent(value: float) -> str:
        return f"{100 * min(max(value / top, 0.0), 1.0):.2f}%"

    value, spread = row.value or 0.0, row.spread or 0.0
    low, high = max(value - spread, 0.0), min(value + spread, top)
    return {
        **{"name": name, "kind": kind, "text": _with_spread(row), "width": percent(value)},
        **{"spread": bool(spread) and high > low, "left": percent(low), "reach": percent(high - low)},
    }


def _with_spread(row: Row) -> str:
    return number(row.value) if row.spread is None else f"{number(row.value)} ± {number(row.spread)}"


def _histogram(distances: Mapping[tuple[str, str], np.ndarray]) -> Chart:
    """The distances to the nearest real image."""
    names = {"fake": "synthetic to real", "holdout": "holdout to real", "real": "real to another real"}
    shown = {names[of]: distance_N for (of, against), distance_N in distances.items() if against == "real"}
    high = max(float(distance_N.max()) for distance_N in shown.values()) or 1.0
    counts = {name: np.histogram(d, _BINS, (0.0, high))[0].tolist() for name, d in shown.items()}
    medians = ", ".join(f"{name} {number(float(np.median(d)))}" for name, d in shown.items())
    words = f"Copies would lie far left. Medians: {medians}."
    return figures.histograms(
        "Distance to the nearest real image", words, "distance", np.linspace(0, high, _BINS + 1).tolist(), counts
    )


def _reliability(score: Mapping[str, Any]) -> Chart:
    """What the manifest's score is worth: the share of real images among images of each score."""
    predicted = [one["predicted"] for one in score["reliability"]]
    shares = [one["real"] for one in score["reliability"]]
    words = (
        f"The score tells a real image ({score['against']}) from a synthetic one in {score['auc']:.0%} of pairs (50% "
        f"is chance). Brier score {number(score['brier'])} (0.25 is chance), calibration error "
        f"{number(score['calibration_error'])}; {score['images']:,} images of each."
    )
    if not score["calibrated"]:
        words += " The model holds no calibration: its score orders images and is no probability."
    lines = {"share of real images": shares, "a perfect probability": predicted}
    return figures.lines("What the score is worth", words, "score", predicted, lines)


def _numbers(rows: Sequence[Row]) -> dict[str, Any]:
    columns = [("measure", False), ("of", False), ("against", False), ("value", True), ("spread", True)]
    cells = [
        [
            *(row.measure.replace("_", " "), row.of, row.against, number(row.value), number(row.spread)),
            *(f"{row.n_of:,}", f"{row.n_against:,}", row.note),
        ]
        for row in rows
    ]
    return {"columns": [*columns, ("n of", True), ("n against", True), ("note", False)], "rows": cells}


def _class_table(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, Any] | None:
    """A line for each class and set, a column for each measure. Notes below give the reason for a missing number."""
    if not rows:
        return None
    measures = list(dict.fromkeys(row.measure for row in rows))
    cells = {(row.label, row.of, row.measure): row for row in rows}
    lines = []
    for label, of in dict.fromkeys((row.label, row.of) for row in rows):
        found = [cells[label, of, measure] for measure in measures]
        counts = [f"{found[0].n_of:,}", f"{found[0].n_against:,}"]
        lines.append([classes[label or 0], of, *counts, *map(_with_spread, found)])
    notes = dict.fromkeys(f"{row.measure.replace('_', ' ')}: {row.note}" for row in rows if row.note)
    head = [("class", False), ("of", False), ("sampled", True), ("real sampled", True)]
    return {
        "columns": [*head, *((measure.replace("_", " "), True) for measure in measures)],
        "rows": lines,
        "notes": [*notes],
    }


def _protocol(protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    flat = {name: value for name, value in protocol.items() if not isinstance(value, dict)}
    nested = {
        f"{name}: {key}": ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        for name, inner in protocol.items()
        if isinstance(inner, dict)
        for key, value in inner.items()
    }
    return [(name, str(value)) for name, value in {**nested, **flat}.items()]
