"""model.json: what a model is, and the sizes and hashes of its files. `model_files` has the networks, which need torch.

The model's digest is the sha256 of model.json, which holds the hashes of the other files. `sha256sum model.json` prints
it.

Format 2 stores the family and its configuration. A field that is missing there has its default, which means "as
before". Format 1, of earlier versions, stores both in `network`. `calibration` makes a logit the log odds that an image
is real (`evaluation/calibration.py`). Models of earlier versions have none.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from dcgan.errors import ModelError
from dcgan.families import registry
from dcgan.families.family import FamilyConfig

FORMAT = 2
CARD = "model.json"
WEIGHTS = ("generator.safetensors", "discriminator.safetensors")
MAX_CARD_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 4 << 30
MAX_FACTOR = 1e9  # of a calibration: a product with a logit stays finite
MAX_HEADER_BYTES = 1 << 20  # of a safetensors file; those written here have a few kilobytes


def digest(card: bytes) -> str:
    """The model's digest, from the bytes of its model.json."""
    return hashlib.sha256(card).hexdigest()


def read_card(card: bytes) -> dict[str, Any]:
    """model.json, parsed and checked against its schema. Raises ModelError with the reason."""
    if len(card) > MAX_CARD_BYTES:
        raise ModelError(f"{CARD} has {len(card)} bytes; at most {MAX_CARD_BYTES} are read")
    try:
        parsed = json.loads(card)
        shape = {"family", "config"}
        if parsed["format"] == 1:
            shape = {"network"}
        elif parsed["format"] != FORMAT:
            raise ModelError(f"{CARD} has format {parsed['format']!r}; this version reads 1 and {FORMAT}")
        fields = {"format", "classes", "provenance", "files"} | shape
        if set(parsed) - {"calibration"} != fields or set(parsed["files"]) != set(WEIGHTS):
            raise ModelError(f"{CARD} has other fields than this version knows")
        _check_calibration(parsed.get("calibration"))
        if any(_types(file) != {"bytes": int, "sha256": str} for file in parsed["files"].values()):
            raise ModelError(f"{CARD}: files has other fields than this version knows")
        classes, count = parsed["classes"], config_of(parsed).num_classes
        named = isinstance(classes, list) and [*map(type, classes)] == [str] * count
        if not (named if count else classes is None):
            raise ModelError(f"{CARD}: the names do not match {count} classes")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise error if isinstance(error, ModelError) else ModelError(f"{CARD} is not a model card: {error}") from error
    result: dict[str, Any] = parsed
    return result


def check_size(name: str, card: Mapping[str, Any], size: int | None = None) -> None:
    """Raises ModelError if the card states an impossible size for a file, or another one than `size`."""
    expected = card["files"][name]["bytes"]
    if not 0 < expected <= MAX_WEIGHTS_BYTES:
        raise ModelError(f"{name}: {expected} bytes; at most {MAX_WEIGHTS_BYTES} are read")
    if size not in (None, expected):
        raise ModelError(f"{name} is not the file that {CARD} names (its size or sha256 differs)")


def config_of(card: Mapping[str, Any]) -> FamilyConfig:
    """The configuration in a card. Raises ValueError, KeyError or TypeError if the card has no valid one."""
    if card["format"] == 1:
        shape = dict(card["network"])
        return registry.configure(shape.pop("network"), shape)
    return registry.configure(card["family"], card["config"])


def line_of(calibration: Mapping[str, Any] | None) -> tuple[float, float]:
    """Slope and intercept of a model's calibrated logit; those of the logit itself without a calibration."""
    return (calibration["slope"], calibration["intercept"]) if calibration else (1.0, 0.0)


def _check_calibration(calibration: Any) -> None:
    """Raises ModelError, KeyError or TypeError unless a card's calibration, if it has one, is a rising line."""
    if calibration is None:
        return
    slope, intercept = calibration["slope"], calibration["intercept"]
    floats = type(slope) is float and type(intercept) is float
    if not (floats and 0 < slope <= MAX_FACTOR and math.fabs(intercept) <= MAX_FACTOR):
        raise ModelError(f"{CARD}: calibration: {slope} x logit + {intercept}; the first must be above 0")


def _types(values: dict[str, Any]) -> dict[str, type]:
    return {name: type(value) for name, value in values.items()}
