"""The selection rules, by the logits in the manifest. Pure: no Ray, no storage. C images of a class."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from dcgan.evaluation import calibration, rejection


class Scores(NamedTuple):
    """Columns of the manifest for all images of a dataset, in order."""

    index_N: np.ndarray  # int64, ascending
    label_N: np.ndarray  # int32; -1 without classes
    logit_N: np.ndarray  # float32


@dataclass(frozen=True, slots=True)
class RuleResult:
    """The images that a rule selects, and its report. `columns`: numbers of each class, by name."""

    selected_N: np.ndarray  # bool
    parameters: dict[str, Any]
    report: dict[str, Any]
    columns: dict[str, list[float]]


def threshold(scores: Scores, min_logit: float) -> RuleResult:
    """Every image whose logit is at least `min_logit`."""
    return RuleResult(scores.logit_N >= min_logit, {"min_logit": min_logit}, {}, {})


def top(scores: Scores, share: float) -> RuleResult:
    """The `share` of each class with the highest logits, rounded, at least one image. Ties go to the lowest keys."""
    selected_N = np.zeros(len(scores.index_N), bool)
    lowest, tied = [], 0
    for rows_C in _by_class(scores.label_N).values():
        logit_C = scores.logit_N[rows_C]
        count = max(1, round(share * len(rows_C)))
        selected_N[rows_C[np.argsort(-logit_C, kind="stable")[:count]]] = True
        last = np.sort(logit_C)[-count]
        lowest.append(float(last))
        tied += int((logit_C >= last).sum()) - count
    return RuleResult(selected_N, {"share": share}, {"tied_left_out": tied}, {"lowest_logit": lowest})


def drs(scores: Scores, real_N: np.ndarray | None, percentile: float, seed: int) -> RuleResult:
    """Rejection sampling within each class: logits of a conditional discriminator cannot be compared between classes.

    Args:   real_N: logits of real images that the discriminator was not trained on; None if the logits are calibrated
            already. percentile: of gamma.
    Raises: CalibrationError.
    """
    fit = None if real_N is None else calibration.calibrate(real_N, scores.logit_N, seed)
    calibrated_N = fit(scores.logit_N) if fit else scores.logit_N.astype(np.float64)
    probability_N = np.empty_like(calibrated_N)
    columns: dict[str, list[float]] = {"log_m": [], "gamma": [], "expected": []}
    for rows_C in _by_class(scores.label_N).values():
        found = rejection.acceptance(calibrated_N[rows_C], percentile)
        probability_N[rows_C] = found.probability_N
        for name, value in zip(columns, (found.bound, found.gamma, found.probability_N.mean()), strict=True):
            columns[name].append(float(value))
    first = int(scores.index_N[0])
    u_N = rejection.uniform(first, int(scores.index_N[-1]) - first + 1, seed)[scores.index_N - first]
    selected_N = u_N < probability_N
    report = {
        **({"calibration": asdict(fit)} if fit else {}),
        "acceptance": float(selected_N.mean()),
        "expected_acceptance": float(probability_N.mean()),
        "epsilon": rejection.EPSILON,
    }
    return RuleResult(selected_N, {"gamma_percentile": percentile, "seed": seed}, report, columns)


def counts(label_N: np.ndarray, selected_N: np.ndarray) -> list[dict[str, int | None]]:
    """The selected images of each class, in the order of a result's columns."""
    return [
        {"label": None if label < 0 else label, "taken": int(selected_N[rows_C].sum()), "of": len(rows_C)}
        for label, rows_C in _by_class(label_N).items()
    ]


def _by_class(label_N: np.ndarray) -> dict[int, np.ndarray]:
    """The rows of each class, ascending; -1 for all without classes."""
    order_N = np.argsort(label_N, kind="stable")
    labels, starts = np.unique(label_N[order_N], return_index=True)
    return dict(zip(labels.tolist(), np.split(order_N, starts[1:]), strict=True))
