"""A training run's directory: what is in it, how a checkpoint is committed, and how the newest good one is found.

run.json                      the claim: all that decides the weights, and the settings
stats.jsonl                   one line a tick, its distance with its protocol
reals.png, grids/N.png        real images; fixed latents after N images
checkpoints/N/                state.safetensors, then checkpoint.json: with it the checkpoint is complete
models/N/                     the model after N images; best.json names the best
tensorboard/                  the same numbers as curves, and the discriminator's logits as histograms
report.md                     how the run went, for people; written at its end
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from dcgan import model_files
from dcgan.families.family import FamilyConfig
from dcgan.training.state import NonFiniteError, check_state, check_weights
from jobs.command import model_store
from jobs.command.model_store import BEST
from jobs.command.settings import UsageError
from jobs.training import diagnostics
from pipelines.dataset import claim
from pipelines.dataset.schema import MAX_CLAIM_BYTES, Hash
from pipelines.storage.folder import Folder, MissingError, TooLargeError

CLAIM = "run.json"
STATS = "stats.jsonl"
KEPT_MODELS = 2  # beside the best: `generate` may be copying one when another takes its place
MAX_STATS_BYTES = 256 << 20  # a tick has some 600
_STATE, _CARD = "state.safetensors", "checkpoint.json"
_HISTORY = "history."  # in front of what a checkpoint between two ticks holds of the steps since the last one
_PUT_BACK = "; put it back from a copy, or use another --run"

M = TypeVar("M", bound=BaseModel)


class _Claim(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    format: int
    identity: dict[str, Any]
    settings: dict[str, Any]


class _Card(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    images: int = Field(ge=1)
    bytes: int = Field(ge=1, le=1 << 40)
    sha256: Hash


class _Best(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    model: Annotated[str, Field(pattern=r"^models/[0-9]{1,20}$")]
    images: int = Field(ge=1)
    metric: Annotated[str, Field(pattern=r"^kernel_distance$")]
    value: float  # NaN in a run of an earlier version, which kept such a model
    protocol: str


class _Tick(BaseModel):
    """What a report and its warnings need; a tick has more."""

    model_config = ConfigDict(strict=True)
    images: int = Field(ge=1)
    loss_d: float
    loss_g: float
    real_accuracy: float
    fake_accuracy: float
    kernel_distance: float
    diversity: float
    images_per_second: float


@dataclass(frozen=True, slots=True)
class TickSchedule:
    """What a run is to do, as far as it decides which checkpoint it goes on from."""

    network: FamilyConfig
    batch: int
    tick: int
    total: int

    def ends_tick(self, images: int) -> bool:
        """Whether the step that ends after so many images is the last of a tick: measured, drawn and saved."""
        return images // self.tick != (images - self.batch) // self.tick or images == self.total


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run's state after some images, and the sha256 of its file.

    `history`: a checkpoint between two ticks holds the scalars of the steps since the last tick, one tensor a name.
    """

    images: int
    sha256: str
    state: dict[str, Tensor]
    history: dict[str, Tensor] = field(default_factory=dict)


def claim_run(run: Folder, identity: dict[str, Any], settings: dict[str, Any]) -> None:
    """Claim the directory, or go on with a run of the same identity. Raises ValueError naming what differs."""
    differences = claim.take(run, CLAIM, identity, settings)
    if differences:
        raise ValueError(
            f"{run}: {differences[0]}; use the same settings to go on, or another --run "
            f"(only --images, --workers, --tick, --keep and where things run may change)"
        )
    read_claim(run)


def read_claim(run: Folder) -> dict[str, Any]:
    """run.json. Raises UsageError if it is damaged, MissingError."""
    return _checked(_Claim, run, CLAIM, run.read(CLAIM, MAX_CLAIM_BYTES))


def claim_digest(run: Folder) -> str:
    """The sha256 of run.json, by which two nodes know that they see the same run. Raises MissingError."""
    return hashlib.sha256(run.read(CLAIM, MAX_CLAIM_BYTES)).hexdigest()


def save(
    run: Folder, images: int, state: Mapping[str, Tensor], keep: int, history: Mapping[str, Tensor] | None = None
) -> str:
    """Commit a checkpoint, then delete all but the newest `keep`. Returns the sha256 of its file."""
    folder = _checkpoint(run, images)
    data = model_files.to_bytes({**state, **{_HISTORY + name: value for name, value in (history or {}).items()}})
    card = {"images": images, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    folder.write(_STATE, data)
    folder.write(_CARD, claim.canonical(card) + b"\n")
    for old in _saved(run)[keep:]:
        delete(run, f"checkpoints/{old:012d}", (_CARD, _STATE))
    return str(card["sha256"])


def load(run: Folder, images: int, network: FamilyConfig) -> Checkpoint:
    """A checkpoint by its name, whatever a listing says.

    Raises: MissingError. UsageError, naming its file, if it is damaged, another network's or holds values that are not
            finite: earlier versions saved such ones.
    """
    folder = _checkpoint(run, images)
    card = _checked(_Card, folder, _CARD, folder.read(_CARD, model_files.MAX_CARD_BYTES), "")
    try:
        data = folder.read(_STATE, card["bytes"])
        if len(data) != card["bytes"] or hashlib.sha256(data).hexdigest() != card["sha256"]:
            raise ValueError("its bytes are not those that were saved")
        if card["images"] != images:
            raise ValueError(f"it is the checkpoint of {card['images']} images")
        tensors = model_files.from_bytes(data)
        state = {name: value for name, value in tensors.items() if not name.startswith(_HISTORY)}
        check_state(state, network)
        check_weights(state, images)
    except (TooLargeError, ValueError, SafetensorError, NonFiniteError) as error:
        raise UsageError(f"{folder}/{_STATE} is damaged ({error})") from error
    history = {name.removeprefix(_HISTORY): value for name, value in tensors.items() if name.startswith(_HISTORY)}
    return Checkpoint(images, card["sha256"], state, history)


def newest_checkpoint(run: Folder, schedule: TickSchedule, known: int = 0) -> Checkpoint | None:
    """The newest checkpoint to go on from; one that is not whole is passed over, and said so. None for a new run.

    Earlier versions saved on preemption at a tick's own step too, and then left out the tick. One without its tick in
    stats.jsonl is passed over as well, if there is one before: the tick is made again.

    Args:   known: images of a checkpoint that is there, whatever the listing says.
    Raises: UsageError if there are checkpoints and none is whole, or there must have been some: training never starts
            again from nothing in silence.
    """
    ticks = {tick["images"] for tick in read_stats(run)}
    saved = sorted({*_saved(run), *([known] if known else [])}, reverse=True)
    tickless: Checkpoint | None = None
    first = ""  # what is wrong with the newest
    for images in saved:
        try:
            checkpoint = load(run, images, schedule.network)
        except (MissingError, TooLargeError, UsageError) as error:
            first = first or str(error)
            _say(f"{error}; trying the one before")
            continue
        between = bool(checkpoint.history) and images != schedule.total
        if not schedule.ends_tick(images) or between or images in ticks:
            if not first and len(ticks) > 1 and images < sorted(ticks)[-2]:
                _say(f"{run}: {STATS} tells of {max(ticks):,} images, but the checkpoints after {images:,} are gone")
            return checkpoint
        _say(f"{run}: the checkpoint of {images:,} images has no tick in {STATS}; trying the one before")
        tickless = tickless or checkpoint
    if tickless:
        return tickless
    if saved:
        raise UsageError(
            f"{run}: none of its {len(saved)} checkpoints is whole ({first}); use another --run to start anew"
        )
    if len(ticks) > 1:  # the second was written when the first one's checkpoint was there
        raise UsageError(
            f"{run}/checkpoints: none is there, but {STATS} tells of {max(ticks):,} images; put them back, or use "
            "another --run to start anew"
        )
    return None


def images_at_resume(run: Folder, schedule: TickSchedule) -> int:
    """How many images the run has seen by the checkpoint that it goes on from; 0 for a new run.

    The checkpoint is read: what is damaged is told of here, in front of the user, not in a worker's log.
    """
    checkpoint = newest_checkpoint(run, schedule)
    return checkpoint.images if checkpoint else 0


def read_progress(run: Folder, seen: int | None = None) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The ticks of the first `seen` images (of all, without), oldest first, and best.json.

    A run that was interrupted wrote ticks after its last checkpoint; they will be made again.

    Raises: UsageError if one of the two files is damaged, or is gone while the other is there.
    """
    ticks, best = [tick for tick in read_stats(run) if seen is None or tick["images"] <= seen], read_best(run)
    if ticks and best is None:
        raise UsageError(f"{run}/{BEST}: not found, but {STATS} tells of {ticks[-1]['images']:,} images{_PUT_BACK}")
    if best and (seen is None or best["images"] <= seen) and not ticks:
        raise UsageError(f"{run}/{STATS}: not found, or without the tick of which {BEST} names the model{_PUT_BACK}")
    return ticks, best


def read_stats(run: Folder) -> list[dict[str, Any]]:
    """The ticks so far, oldest first. Raises UsageError if the file is damaged."""
    try:
        lines = run.read(STATS, MAX_STATS_BYTES).splitlines()
    except MissingError:
        return []
    return [_checked(_Tick, run, f"{STATS}: line {number}", line) for number, line in enumerate(lines, 1)]


def write_stats(run: Folder, ticks: list[dict[str, Any]]) -> None:
    """All ticks, one JSON object a line."""
    run.write(STATS, b"".join(json.dumps(tick).encode() + b"\n" for tick in ticks))


def write_best(run: Folder, best: dict[str, Any]) -> None:
    """Name the best model: {"model": "models/...", "metric": ..., ...}. Of the others the newest few stay."""
    run.write(BEST, json.dumps(best, indent=1).encode() + b"\n")
    numbers = {name.split("/")[0] for name in (run / "models").tree()}
    others = sorted((name for name in numbers if name.isdigit() and f"models/{name}" != best["model"]), key=int)
    for name in others[:-KEPT_MODELS]:
        delete(run, f"models/{name}", model_store.FILES)


def read_best(run: Folder) -> dict[str, Any] | None:
    """What write_best wrote last. Raises UsageError if it is damaged."""
    try:
        return _checked(_Best, run, BEST, run.read(BEST, model_files.MAX_CARD_BYTES))
    except MissingError:
        return None


def replaces_best(distance: float, seen: int, best: dict[str, Any] | None) -> bool:
    """Whether a model after `seen` images takes the best one's place: it also does if that one comes later in the run,
    which then went back to a checkpoint, or if its distance is NaN (earlier versions kept such a one)."""
    return best is None or best["images"] >= seen or not best["value"] <= distance


def write_report(run: Folder, ticks: list[dict[str, Any]], best: dict[str, Any]) -> None:
    """report.md: the best model with its protocol, what looked wrong, every tick, the last picture, the settings."""
    claimed = read_claim(run)
    warnings = diagnostics.warnings(ticks, claimed["identity"]["method"]["loss"])
    names = ["images", "loss_d", "loss_g", "real_accuracy", "fake_accuracy", best["metric"], "diversity"]
    names += ["images_per_second"]
    lines = [
        f"# A training run of {ticks[-1]['images']:,} images",
        "",
        f"Best model: `{best['model']}`, {best['metric']} {best['value']:.5f} after {best['images']:,} images "
        f"({best['protocol']}).",
        "",
        "Warnings:" if warnings else "Nothing looked wrong (docs/training.md, Warnings).",
        "",
        *(f"* {warning}" for warning in warnings),
        *([""] if warnings else []),
        f"![samples at the end](grids/{ticks[-1]['images']:012d}.png)",
        "",
        "| " + " | ".join(names) + " |",
        "|---" * len(names) + "|",
        *(
            "| " + " | ".join(f"{tick[name]:,}" if name == "images" else f"{tick[name]:.4g}" for name in names) + " |"
            for tick in ticks
        ),
        "",
        "```json",
        json.dumps(claimed["settings"], indent=1),
        "```",
        "",
    ]
    run.write("report.md", "\n".join(lines).encode())
    run.abort_uploads()  # of checkpoints, by workers that died


def delete(run: Folder, name: str, files: tuple[str, ...]) -> None:
    """Remove a folder's files in this order: first the one that makes it complete."""
    for file in files:
        run.delete(f"{name}/{file}")


def _checkpoint(run: Folder, images: int) -> Folder:
    return run / f"checkpoints/{images:012d}"


def _checked(schema: type[M], folder: Folder, name: str, data: bytes, todo: str = _PUT_BACK) -> dict[str, Any]:
    """JSON of these fields. Raises UsageError naming the file and what is wrong with it."""
    try:
        value = json.loads(data)
        schema.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "its content"
        raise UsageError(f"{folder}/{name}: damaged: {where}: {first['msg']}{todo}") from None
    except (RecursionError, ValueError) as error:  # bytes that are not UTF-8, too
        raise UsageError(f"{folder}/{name}: damaged, not JSON: {error}{todo}") from error
    found: dict[str, Any] = value
    return found


def _say(line: str) -> None:
    print(f"train: {line}", file=sys.stderr, flush=True)


def _saved(run: Folder) -> list[int]:
    """The checkpoints that were committed, newest first, by their images."""
    parts = [name.split("/") for name in (run / "checkpoints").tree()]
    return sorted({int(part[0]) for part in parts if part[0].isdigit() and part[1:2] == [_CARD]}, reverse=True)
