"""What a folder's README.md says about it, where that is a Hugging Face dataset card: YAML between two lines of ---."""

import re
from typing import Any

import yaml

from pipelines.dataset.attribution import NONE, Attribution
from pipelines.dataset.schema import SchemaError, validate
from pipelines.storage.folder import Folder, StorageError

CARD = "README.md"
_MAX_CARD_BYTES, _MAX_MATTER_BYTES = 8 << 20, 1 << 16
_NO_LICENCE = ("", "~", "null", "unknown", "other")


def attribution(folder: Folder) -> Attribution:
    """Title, licence and citation from the card of a folder; what it lacks, or states in another form, is not known."""
    try:
        text = folder.read(CARD, _MAX_CARD_BYTES).decode()
    except (StorageError, ValueError):  # not there, too large, or not UTF-8
        return NONE
    matter = _front_matter(text)
    licence = _one(matter.get("license"))
    if licence in _NO_LICENCE:
        licence = _one(matter.get("license_link")) or _one(matter.get("license_name"))
    title = _one(matter.get("pretty_name"))
    found = {"title": title, "licence": licence, "citation": _citation(text)}
    known = NONE
    for name, value in found.items():
        try:
            known = known.over(validate(Attribution, {name: value or None}))
        except SchemaError:  # too long, or with control characters
            continue
    return known


def _front_matter(text: str) -> dict[str, Any]:
    """The YAML at the beginning of a card, as texts, lists and mappings; {} if there is none.

    BaseLoader makes nothing else, and resolves no merge keys, which can grow without bound.
    """
    found = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text[:_MAX_MATTER_BYTES], re.DOTALL)
    try:
        value = yaml.load(found[1], Loader=yaml.BaseLoader) if found else {}
    except (RecursionError, ValueError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def _citation(text: str) -> str:
    """The first BibTeX block of a card, on one line; '' without one."""
    blocks = (block.partition("\n")[2].strip() for block in text.split("```")[1::2])
    return " ".join(next((block for block in blocks if block.startswith("@")), "").split())


def _one(value: Any) -> str:
    """A text, or the only one of a list; '' for anything else."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return " ".join(value.split()) if isinstance(value, str) else ""
