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
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from dcgan import model_files
from jobs import symptoms
from jobs.models import BEST
from pipelines import claim
from pipelines.storage import Folder, MissingError, TooLargeError

CLAIM = "run.json"
STATS = "stats.jsonl"
_STATE, _CARD = "state.safetensors", "checkpoint.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run's state after some images."""

    images: int
    state: dict[str, Tensor]


def take(run: Folder, identity: dict[str, Any], settings: dict[str, Any]) -> None:
    """Claim the directory, or go on with a run of the same identity. Raises ValueError naming what differs."""
    differences = claim.take(run, CLAIM, identity, settings)
    if differences:
        raise ValueError(
            f"{run}: {differences[0]}; use the same settings to go on, or another --run "
            f"(only --images, --workers, --tick, --keep and where things run may change)"
        )


def save(run: Folder, images: int, state: dict[str, Tensor], keep: int) -> None:
    """Commit a checkpoint, then delete all but the newest `keep`."""
    folder, data = run / f"checkpoints/{images:012d}", model_files.to_bytes(state)
    card = {"images": images, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    folder.write(_STATE, data)
    folder.write(_CARD, claim.canonical(card) + b"\n")
    for old in _saved(run)[keep:]:
        delete(run, f"checkpoints/{old:012d}", (_CARD, _STATE))


def newest(run: Folder) -> Checkpoint | None:
    """The newest checkpoint that is whole; one that is damaged is passed over, and said so. None for a new run.

    Raises: ValueError if there are checkpoints and none is whole: training never starts again from nothing in silence.
    """
    saved = _saved(run)
    for images in saved:
        folder = run / f"checkpoints/{images:012d}"
        try:
            card = json.loads(folder.read(_CARD, model_files.MAX_CARD_BYTES))
            data = folder.read(_STATE, card["bytes"])
            if len(data) != card["bytes"] or hashlib.sha256(data).hexdigest() != card["sha256"]:
                raise ValueError("its bytes are not those that were saved")
            return Checkpoint(images, model_files.from_bytes(data))
        except (MissingError, TooLargeError, RecursionError, TypeError, ValueError, KeyError, SafetensorError) as error:
            print(f"train: {folder} is damaged ({error}); trying the one before", file=sys.stderr, flush=True)
    if saved:
        raise ValueError(f"{run}: none of its {len(saved)} checkpoints is whole; use another --run to start anew")
    return None


def newest_images(run: Folder) -> int:
    """How many images the run has seen by its newest whole checkpoint; 0 for a new run.

    The checkpoint is read: what is damaged is told of here, in front of the user, not in a worker's log.
    """
    checkpoint = newest(run)
    return checkpoint.images if checkpoint else 0


def read_stats(run: Folder) -> list[dict[str, Any]]:
    """The ticks so far, oldest first."""
    try:
        return [json.loads(line) for line in run.read(STATS).splitlines()]
    except MissingError:
        return []


def write_stats(run: Folder, ticks: list[dict[str, Any]]) -> None:
    """All ticks, one JSON object a line."""
    run.write(STATS, b"".join(json.dumps(tick).encode() + b"\n" for tick in ticks))


def write_best(run: Folder, best: dict[str, Any]) -> None:
    """Name the best model: {"model": "models/...", "metric": ..., ...}."""
    run.write(BEST, json.dumps(best, indent=1).encode() + b"\n")


def read_best(run: Folder) -> dict[str, Any] | None:
    """What write_best wrote last."""
    try:
        best: dict[str, Any] = json.loads(run.read(BEST))
        return best
    except MissingError:
        return None


def write_report(run: Folder) -> None:
    """report.md: the best model with its protocol, what looked wrong, every tick, the last picture, the settings."""
    ticks, best = read_stats(run), read_best(run)
    assert best is not None, "a run that reached its end has a best model"
    claimed = json.loads(run.read(CLAIM))
    warnings = symptoms.warnings(ticks, claimed["identity"]["method"]["loss"])
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


def _saved(run: Folder) -> list[int]:
    """The checkpoints that were committed, newest first, by their images."""
    names = [name.removesuffix(f"/{_CARD}") for name in (run / "checkpoints").tree() if name.endswith(f"/{_CARD}")]
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)
