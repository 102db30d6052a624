"""Parse the label policy of `--classes`."""

from jobs.command.errors import UsageError
from pipelines.dataset.identity import Cycle, Weights


def parse_classes(text: str, names: list[str] | None) -> Cycle | Weights | None:
    """The label policy; None for a model without classes.

    Raises: UsageError for a class that the model does not have, or a weight that is not above 0.
    """
    if names is None:
        if text != "balanced":
            raise UsageError(f"--classes {text}: the model has no classes; leave --classes out")
        return None
    if text == "balanced":
        return Cycle(cycle=list(range(len(names))))
    numbers = {str(number): number for number in range(len(names))} | {name: i for i, name in enumerate(names)}
    words = [word.strip().rpartition(":") if ":" in text else (word.strip(), "", "") for word in text.split(",")]
    for name, _, _ in words:
        if name not in numbers:
            raise UsageError(f"--classes {text}: no class {name!r}; the model has 0 to {len(names) - 1}")
    if ":" not in text:
        return Cycle(cycle=[numbers[name] for name, _, _ in words])
    return Weights(weights=[(numbers[name], _weight(text, weight)) for name, _, weight in words])


def _weight(text: str, weight: str) -> float:
    try:
        value = float(weight)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise UsageError(f"--classes {text}: weight {weight!r} must be a number above 0")
    return value
