"""A training run's directory: its files, its claim, its statistics and its best model.

run.json                      the claim: all that decides the weights, and the settings
stats.jsonl                   one line a tick; the distance has its protocol beside it
reals.png, grids/N.png        real images; the fixed latents after N images
checkpoints/N/                state.safetensors, then checkpoint.json, which makes the checkpoint complete
models/N/                     the model after N images; best.json names the best
tensorboard/                  the same numbers as curves, and the discriminator's logits as histograms
report.html                   a page for people, written at each tick
"""

import hashlib
import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dcgan import model_card
from jobs.command import model_store
from jobs.command.errors import UsageError
from jobs.command.model_store import BEST
from pipelines.dataset import claim
from pipelines.dataset.schema import MAX_CLAIM_BYTES
from pipelines.storage.folder import Folder, MissingError

CLAIM = "run.json"
STATS = "stats.jsonl"
KEPT_MODELS = 2  # beside the best: `generate` may be copying one while another replaces it
MAX_STATS_BYTES = 256 << 20  # a tick has some 600
_RESTORE = "; restore it from a copy, or use another --run"

M = TypeVar("M", bound=BaseModel)


class _Claim(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    format: int
    identity: dict[str, Any]
    settings: dict[str, Any]


class _Best(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    model: Annotated[str, Field(pattern=r"^models/[0-9]{1,20}$")]
    images: int = Field(ge=1)
    metric: Annotated[str, Field(pattern=r"^kernel_distance$")]
    value: float  # NaN in a run of an earlier version, which kept such a model
    protocol: str


class _Tick(BaseModel):
    """The fields that a report and its warnings need; a tick has more."""

    model_config = ConfigDict(strict=True)
    images: int = Field(ge=1)
    loss_d: float
    loss_g: float
    real_accuracy: float
    fake_accuracy: float
    kernel_distance: float
    diversity: float
    images_per_second: float


def claim_run(run: Folder, identity: dict[str, Any], settings: dict[str, Any]) -> None:
    """Claim the directory, or resume a run of the same identity. Raises ValueError naming the first difference."""
    differences = claim.take(run, CLAIM, identity, settings)
    if differences:
        raise ValueError(
            f"{run}: {differences[0]}; use the same settings to go on, or another --run "
            f"(docs/settings.md lists the settings that may change)"
        )
    read_claim(run)


def read_claim(run: Folder) -> dict[str, Any]:
    """run.json. Raises UsageError if it is damaged, MissingError."""
    return checked(_Claim, run, CLAIM, run.read(CLAIM, MAX_CLAIM_BYTES))


def claim_digest(run: Folder) -> str:
    """The sha256 of run.json, by which two nodes know that they see the same run. Raises MissingError."""
    return hashlib.sha256(run.read(CLAIM, MAX_CLAIM_BYTES)).hexdigest()


def read_progress(run: Folder, seen: int | None = None) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The ticks of the first `seen` images (default: of all), oldest first, and best.json.

    An interrupted run wrote ticks after its last checkpoint; they are made again.

    Raises: UsageError if one of the two files is damaged, or is missing while the other exists.
    """
    ticks, best = [tick for tick in read_stats(run) if seen is None or tick["images"] <= seen], read_best(run)
    if ticks and best is None:
        raise UsageError(f"{run}/{BEST}: not found, but {STATS} reports {ticks[-1]['images']:,} images{_RESTORE}")
    if best and (seen is None or best["images"] <= seen) and not ticks:
        raise UsageError(f"{run}/{STATS}: not found, or without the tick of the model that {BEST} names{_RESTORE}")
    return ticks, best


def read_stats(run: Folder) -> list[dict[str, Any]]:
    """The ticks so far, oldest first. Raises UsageError if the file is damaged."""
    try:
        lines = run.read(STATS, MAX_STATS_BYTES).splitlines()
    except MissingError:
        return []
    return [checked(_Tick, run, f"{STATS}: line {number}", line) for number, line in enumerate(lines, 1)]


def write_stats(run: Folder, ticks: list[dict[str, Any]]) -> None:
    """Write all ticks, one JSON object a line."""
    run.write(STATS, b"".join(json.dumps(tick).encode() + b"\n" for tick in ticks))


def write_best(run: Folder, best: dict[str, Any]) -> None:
    """Name the best model: {"model": "models/...", "metric": ..., ...}. Of the others the newest KEPT_MODELS stay."""
    run.write(BEST, json.dumps(best, indent=1).encode() + b"\n")
    numbers = {name.split("/")[0] for name in (run / "models").tree()}
    others = sorted((name for name in numbers if name.isdigit() and f"models/{name}" != best["model"]), key=int)
    for name in others[:-KEPT_MODELS]:
        delete(run, f"models/{name}", model_store.FILES)


def read_best(run: Folder) -> dict[str, Any] | None:
    """best.json, if there is one. Raises UsageError if it is damaged."""
    try:
        return checked(_Best, run, BEST, run.read(BEST, model_card.MAX_CARD_BYTES))
    except MissingError:
        return None


def replaces_best(distance: float, seen: int, protocol: str, best: dict[str, Any] | None) -> bool:
    """Whether a model after `seen` images becomes the best: its distance is smaller, or the best one is not valid.

    The best one is not valid if it comes later in the run, which then resumed from an earlier checkpoint; if its
    distance is NaN (earlier versions kept such a model); or if it was measured by another protocol, as after a resume
    with another --metric-images: such distances cannot be compared.
    """
    if best is None or best["images"] >= seen or best["protocol"] != protocol:
        return True
    return not best["value"] <= distance


def delete(run: Folder, name: str, files: tuple[str, ...]) -> None:
    """Remove a folder's files in this order: first the one that makes it complete."""
    for file in files:
        run.delete(f"{name}/{file}")


def checked(schema: type[M], folder: Folder, name: str, data: bytes, advice: str = _RESTORE) -> dict[str, Any]:
    """JSON of these fields. Raises UsageError naming the file, the problem and the advice."""
    try:
        value = json.loads(data)
        schema.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "its content"
        raise UsageError(f"{folder}/{name}: damaged: {where}: {first['msg']}{advice}") from None
    except (RecursionError, ValueError) as error:  # ValueError also for bytes that are not UTF-8
        raise UsageError(f"{folder}/{name}: damaged, not JSON: {error}{advice}") from error
    found: dict[str, Any] = value
    return found
