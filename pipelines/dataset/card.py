"""The description of a dataset, for people and for data catalogues, made from the same facts as the seal.

README.md (a Hugging Face dataset card), croissant.json (MLCommons Croissant 1.0) and preview.png.
"""

import html
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from pipelines import images
from pipelines.dataset import croissant, facts, manifest, reader, writer
from pipelines.dataset.attribution import licence_names
from pipelines.dataset.facts import Facts
from pipelines.dataset.identity import Identity
from pipelines.dataset.manifest import ShardRecord
from pipelines.errors import CorruptError
from pipelines.images import ImageError, Pixels
from pipelines.storage.folder import Folder

PREVIEW_COLUMNS = 12
PREVIEW_ROWS = 10  # without classes. With classes: a row a class, up to three times as many


def files(folder: Folder, identity: Identity, records: Mapping[int, ShardRecord]) -> dict[str, bytes]:
    """The card's three files by name. Reads the claim, the first shards' rows, and a few images by range reads."""
    known = facts.gather(folder, identity, records)
    preview = images.grid(_preview(folder, identity, records), scale=max(1, 64 // identity.image_size))
    return {
        "preview.png": images.encode(preview),
        "README.md": _readme(known).encode(),
        "croissant.json": croissant.encode(known),
    }


def _preview(folder: Folder, identity: Identity, records: Mapping[int, ShardRecord]) -> list[list[Pixels]]:
    """The first images; with classes a row a class, except for classes that the first shards do not contain."""
    classes = range(min(len(identity.classes or []), 3 * PREVIEW_ROWS))
    wanted: list[int | None] = list(classes) or [None]
    columns = PREVIEW_COLUMNS if classes else PREVIEW_COLUMNS * PREVIEW_ROWS
    found: dict[int | None, list[Pixels]] = {label: [] for label in wanted}
    for row in _first_rows(folder, records):
        row_images = found.get(row["label"])
        if row_images is not None and len(row_images) < columns:
            row_images.append(_image(folder, row, identity.channels))
        elif all(len(row_images) == columns for row_images in found.values()):
            break
    if not classes:
        line = found[None]
        return [line[i : i + PREVIEW_COLUMNS] for i in range(0, len(line), PREVIEW_COLUMNS)]
    return [row_images for row_images in found.values() if row_images]


def _image(folder: Folder, row: Mapping[str, Any], channels: int) -> Pixels:
    """An image of a shard, which an earlier run may have written. Raises CorruptError naming it and the remedy."""
    try:
        return images.decode(reader.read_image(folder, row), channels)
    except (CorruptError, ImageError) as error:
        why = str(error)
        if isinstance(error, ImageError):
            why = f"{folder}/{manifest.tar_name(row['shard'])}: sample {row['key']}: {error}"
        raise CorruptError(f"{why}; {writer.remake(row['shard'])}") from error


def _first_rows(folder: Folder, records: Mapping[int, ShardRecord]) -> Iterator[dict[str, Any]]:
    for shard in [shard for shard in sorted(records) if records[shard].samples][:3]:
        part, record = reader.read_part(folder, shard)
        if record != records[shard]:  # an earlier run wrote it, and its journal has another hash
            raise CorruptError(f"{folder}/{record.part}: is not as it was written; {writer.remake(shard)}")
        yield from part.table.select(["key", "label", "shard", "offset", "size", "sha256"]).to_pylist()


def _readme(known: Facts) -> str:
    """A Hugging Face dataset card. Its front matter: huggingface.co/docs/hub/datasets-cards."""
    identity, licence = known.identity, known.attribution.licence
    matter = {
        "pretty_name": known.title,
        **licence_names(licence).hugging_face,
        "task_categories": ["image-classification" if identity.classes else "unconditional-image-generation"],
        "size_categories": [_size_category(known.samples)],
        "tags": ["ganmill", *(["synthetic"] if known.synthetic else [])],
        "configs": [{"config_name": "default", "data_files": "shards/*.tar"}],
    }
    lines = [
        "---",
        yaml.safe_dump(matter, sort_keys=False, width=1000).rstrip(),
        "---",
        f"# {_text(known.title)}, {known.shape}",
        "",
        "![the first images](preview.png)",
        "",
        _text(known.summary),
        "",
        f"{len(known.shards):,} WebDataset shards, {known.bytes / 1e6:,.1f} MB, in `shards/`; a Parquet row an image "
        "in `manifest/`; every hash in `index.json`.",
        "",
    ]
    if identity.classes:
        lines += ["Classes: " + ", ".join(f"{i} = {_text(name)}" for i, name in enumerate(identity.classes)), ""]
    lines += ["| column | type | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {kind} | {meaning} |" for name, kind, meaning in known.columns]
    lines += ["", "## Licence, citation and origin", "", f"Licence: {_text(licence or 'unknown')}.", ""]
    lines += ["Citation:", "", *(f"    {line}" for line in known.citation.splitlines()), "", _text(known.origin), ""]
    if known.not_for:
        lines += ["## What it must not be used for", "", *(f"* {sentence}" for sentence in known.not_for), ""]
    lines += [
        "## Identity",
        "",
        "All that decides the bytes:",
        "",
        "```json",
        json.dumps(identity.to_json(), indent=1, sort_keys=True),
        "```",
        "",
    ]
    if known.synthetic:
        lines += [
            "Every image can be made again from its row: `jobs/verify.py --dataset URL --regenerate 64` does it for 64 "
            "rows and compares the pixels. The model lies in `model/`.",
            "",
        ]
    return "\n".join(lines)


def _size_category(samples: int) -> str:
    """Hugging Face's class of sizes."""
    if samples < 1000:
        return "n<1K"
    names = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
    low = min(len(str(samples)) - 4, len(names) - 1)
    return f"n>{names[low]}" if low == len(names) - 1 else f"{names[low]}<n<{names[low + 1]}"


def _text(text: str) -> str:
    """A text as Markdown shows it, also one with HTML in it."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(text, quote=False))
