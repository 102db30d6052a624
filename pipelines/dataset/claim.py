"""A claim: a small JSON file with the settings that own a folder. It is written once, before anything else."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pipelines.dataset.schema import MAX_CLAIM_BYTES
from pipelines.storage.folder import Folder

FORMAT = 1


class ClaimError(ValueError):
    """An existing claim that cannot be read."""


class Difference(NamedTuple):
    """A field in which an existing claim and this run's differ."""

    field: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"claimed with {self.field} = {_short(self.before)}, this run has {_short(self.now)}"


def canonical(value: Any) -> bytes:
    """The canonical JSON of a value: sorted keys, no spaces. Hashes and comparisons always use it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def encode(identity: Mapping[str, Any], settings: Mapping[str, Any], facts: Mapping[str, Any] | None = None) -> bytes:
    """The content of a claim: the identity, the settings that it follows from, and further `facts`."""
    return canonical({**(facts or {}), "format": FORMAT, "identity": identity, "settings": settings}) + b"\n"


def damage(claimed: Any) -> str:
    """The defect of a claim, in words; '' for a valid one."""
    if not isinstance(claimed, dict):
        return "it is not a JSON object"
    lacking = [name for name in ("identity", "settings") if not isinstance(claimed.get(name), dict)]
    if lacking:
        return f"it has no {lacking[0]}"
    return "" if claimed.get("format") == FORMAT else f"format {str(claimed.get('format'))[:40]}, not {FORMAT}"


def take(
    folder: Folder,
    name: str,
    identity: Mapping[str, Any],
    settings: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> list[Difference]:
    """Write the claim, or compare its identity with that of an existing claim.

    Returns: the differences. An empty list means that this run owns the folder.
    Raises:  ClaimError if the existing claim is damaged.
    """
    if folder.create(name, encode(identity, settings, facts)):
        return []
    try:
        before = json.loads(folder.read(name, MAX_CLAIM_BYTES))
    except (RecursionError, ValueError) as error:
        raise ClaimError(f"{folder}/{name}: damaged, not a claim: {error}; use another folder") from error
    if why := damage(before):
        raise ClaimError(f"{folder}/{name}: damaged, not a claim: {why}; use another folder")
    return list(_differences(before["identity"], json.loads(canonical(identity))))


def _differences(before: Any, now: Any, path: str = "") -> Iterator[Difference]:
    """Every leaf in which two nested dicts differ, by its dotted name."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted({*before, *now}):
            yield from _differences(before.get(name), now.get(name), f"{path}.{name}" if path else name)
    elif before != now:
        yield Difference(path, before, now)


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
