"""Checkpoints of a training run: commit one, load one, find the newest one that is complete."""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from torch import Tensor

from dcgan import model_card, model_files
from dcgan.families.family import FamilyConfig
from dcgan.training.state import NonFiniteError, check_state, check_weights
from jobs.command.errors import UsageError
from jobs.training import run_store
from jobs.training.run_store import STATS
from pipelines.dataset import claim
from pipelines.dataset.schema import Hash
from pipelines.storage.folder import Folder, MissingError, TooLargeError

_STATE, _CARD = "state.safetensors", "checkpoint.json"
_HISTORY = "history."  # prefix of the tensors that hold the scalars of the steps since the last tick


class _Card(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    images: int = Field(ge=1)
    bytes: int = Field(ge=1, le=1 << 40)
    sha256: Hash


@dataclass(frozen=True, slots=True)
class TickSchedule:
    """The ticks of a run. They decide which checkpoint a run resumes from."""

    network: FamilyConfig
    batch: int
    tick: int
    total: int

    def ends_tick(self, images: int) -> bool:
        """Whether the step that ends after `images` images is the last of a tick: it is measured, drawn and saved."""
        return images // self.tick != (images - self.batch) // self.tick or images == self.total


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run's state after some images, and the sha256 of its file.

    `history`: the scalars of the steps since the last tick, one tensor a name. Empty in a checkpoint at a tick.
    """

    images: int
    sha256: str
    state: dict[str, Tensor]
    history: dict[str, Tensor] = field(default_factory=dict)


def save(
    run: Folder, images: int, state: Mapping[str, Tensor], keep: int, history: Mapping[str, Tensor] | None = None
) -> str:
    """Commit a checkpoint, then delete all but the newest `keep`. Returns the sha256 of its file."""
    folder = _folder(run, images)
    data = model_files.to_bytes({**state, **{_HISTORY + name: value for name, value in (history or {}).items()}})
    card = {"images": images, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    folder.write(_STATE, data)
    folder.write(_CARD, claim.canonical(card) + b"\n")
    for old in _committed(run)[keep:]:
        run_store.delete(run, f"checkpoints/{old:012d}", (_CARD, _STATE))
    return str(card["sha256"])


def load(run: Folder, images: int, network: FamilyConfig) -> Checkpoint:
    """A checkpoint by its name, without a listing.

    Raises: MissingError. UsageError, naming its file, if it is damaged, belongs to another network or holds values
            that are not finite: earlier versions saved such checkpoints.
    """
    folder = _folder(run, images)
    card = run_store.checked(_Card, folder, _CARD, folder.read(_CARD, model_card.MAX_CARD_BYTES), "")
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


def newest(run: Folder, schedule: TickSchedule, known: int = 0) -> Checkpoint | None:
    """The newest checkpoint to resume from; None for a new run. Incomplete ones are skipped, with a line on stderr.

    Earlier versions also saved at a tick's own step when a node was preempted, and then omitted the tick. Such a
    checkpoint has no tick in stats.jsonl. It is skipped if there is an earlier one, so that the tick is made again.

    Args:   known: images of a checkpoint that is known to exist, even if a listing does not show it yet.
    Raises: UsageError if there are checkpoints and none is complete, or if they are gone: training never restarts
            from nothing silently.
    """
    ticks = {tick["images"] for tick in run_store.read_stats(run)}
    saved = sorted({*_committed(run), *([known] if known else [])}, reverse=True)
    tickless: Checkpoint | None = None
    first = ""  # the problem of the newest
    for images in saved:
        try:
            checkpoint = load(run, images, schedule.network)
        except (MissingError, TooLargeError, UsageError) as error:
            first = first or str(error)
            _print(f"{error}; trying the one before")
            continue
        between_ticks = bool(checkpoint.history) and images != schedule.total
        if not schedule.ends_tick(images) or between_ticks or images in ticks:
            if not first and len(ticks) > 1 and images < sorted(ticks)[-2]:
                _print(f"{run}: {STATS} reports {max(ticks):,} images, but the checkpoints after {images:,} are gone")
            return checkpoint
        _print(f"{run}: the checkpoint of {images:,} images has no tick in {STATS}; trying the one before")
        tickless = tickless or checkpoint
    if tickless:
        return tickless
    if saved:
        raise UsageError(
            f"{run}: none of its {len(saved)} checkpoints is complete ({first}); use another --run to start anew"
        )
    if len(ticks) > 1:  # the second tick is written after the first one's checkpoint
        raise UsageError(
            f"{run}/checkpoints: none found, but {STATS} reports {max(ticks):,} images; restore them from a copy, or "
            "use another --run to start anew"
        )
    return None


def images_at_resume(run: Folder, schedule: TickSchedule) -> int:
    """The images of the checkpoint that the run resumes from; 0 for a new run.

    The driver reads the checkpoint whole: the user sees damage at once, and not in a worker's log.
    """
    checkpoint = newest(run, schedule)
    return checkpoint.images if checkpoint else 0


def pack_history(history: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The scalars of some steps, one tensor a name, as a checkpoint between two ticks holds them."""
    return {name: torch.stack([step[name].float() for step in history]) for name in history[0]}


def unpack_history(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The inverse of `pack_history`, exact to the last bit."""
    return [dict(zip(tensors, values, strict=True)) for values in zip(*tensors.values(), strict=True)]


def _folder(run: Folder, images: int) -> Folder:
    return run / f"checkpoints/{images:012d}"


def _committed(run: Folder) -> list[int]:
    """The images of each committed checkpoint, newest first."""
    parts = [name.split("/") for name in (run / "checkpoints").tree()]
    return sorted({int(part[0]) for part in parts if part[0].isdigit() and part[1:2] == [_CARD]}, reverse=True)


def _print(line: str) -> None:
    print(f"train: {line}", file=sys.stderr, flush=True)
