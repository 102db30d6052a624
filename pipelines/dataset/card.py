"""The description of a dataset, for people and for data catalogues, made from the same facts as the seal.

README.md (a Hugging Face dataset card), croissant.json (MLCommons Croissant 1.0) and preview.png.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines import images
from pipelines.dataset import manifest, reader, writer
from pipelines.dataset.identity import Identity
from pipelines.dataset.manifest import EXTRA, ShardRecord
from pipelines.errors import CorruptError
from pipelines.images import ImageError, Pixels
from pipelines.storage.folder import Folder

PREVIEW_COLUMNS = 12
PREVIEW_ROWS = 10  # without classes. With classes: a row a class, up to three times as many

_MEANING = {
    "key": "name of the sample's members in the tar: its index as 12 digits",
    "index": "global index, from 0",
    "shard": "number of the tar that holds it",
    "offset": "where the image's bytes begin in the tar",
    "size": "how many bytes they are",
    "sha256": "hash of the image's bytes",
    "label": "class, an index into the class names; null without classes",
    "source": "where the image came from, relative to the source",
    "seed": "names the latent vector that the image was made from",
    "logit": "the discriminator's raw output for the stored image",
    "score": "the sigmoid of the logit: how probably the image is real, if model/model.json holds a calibration",
}
_CROISSANT_TYPES = {"string": "sc:Text", "fixed_size_binary[32]": "sc:Text", "float": "sc:Float"}


def files(folder: Folder, identity: Identity, records: Mapping[int, ShardRecord]) -> dict[str, bytes]:
    """The card's three files by name. Reads the first shards' rows and a few images, each by a range read."""
    preview = images.grid(_preview(folder, identity, records), scale=max(1, 64 // identity.image_size))
    return {
        "preview.png": images.encode(preview),
        "README.md": _readme(identity, records).encode(),
        "croissant.json": json.dumps(_croissant(identity, records), indent=1).encode() + b"\n",
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


def _totals(records: Mapping[int, ShardRecord]) -> tuple[int, int]:
    return sum(record.samples for record in records.values()), sum(record.bytes for record in records.values())


def _fields(identity: Identity) -> list[tuple[str, str]]:
    return [(field.name, str(field.type)) for field in [*manifest.COLUMNS, *EXTRA[identity.producer]]]


def _readme(identity: Identity, records: Mapping[int, ShardRecord]) -> str:
    samples, size = _totals(records)
    made = identity.producer == "generate"
    shape = f"{identity.image_size}x{identity.image_size}x{identity.channels}"
    kind = "synthetic images, made by a DCGAN" if made else "images"
    lines = [
        "---",
        f"pretty_name: {samples:,} {kind}",
        "task_categories: [image-classification]"
        if identity.classes
        else "task_categories: [unconditional-image-generation]",
        "configs:",
        "- {config_name: default, data_files: shards/*.tar}",
        "---",
        f"# {samples:,} {kind}, {shape}",
        "",
        "![the first images](preview.png)",
        "",
        f"{len(records):,} WebDataset shards, {size / 1e6:,.1f} MB, in `shards/`; a Parquet row an image in "
        "`manifest/`; every hash in `index.json`.",
        "",
    ]
    if identity.classes:
        lines += ["Classes: " + ", ".join(f"{i} = {name}" for i, name in enumerate(identity.classes)), ""]
    lines += ["| column | type | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {kind} | {_MEANING[name]} |" for name, kind in _fields(identity)]
    lines += [
        "",
        "## Identity",
        "",
        "All that decides the bytes:",
        "",
        "```json",
        json.dumps(identity.to_json(), indent=1, sort_keys=True),
        "```",
        "",
    ]
    if made:
        lines += [
            "Every image can be made again from its row: `jobs/verify.py --dataset URL --regenerate 64` does it for 64 "
            "rows and compares the pixels. The model lies in `model/`.",
            "",
        ]
    return "\n".join(lines)


def _croissant(identity: Identity, records: Mapping[int, ShardRecord]) -> dict[str, Any]:
    """Source: docs.mlcommons.org/croissant/docs/croissant-spec.html, 1.0."""
    samples, size = _totals(records)
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"samples/{name}",
            "name": name,
            "description": _MEANING[name],
            "dataType": _CROISSANT_TYPES.get(kind, "sc:Integer"),
            "source": {"fileSet": {"@id": "manifest"}, "extract": {"column": name}},
        }
        for name, kind in _fields(identity)
    ]
    made = identity.producer == "generate"
    return {
        "@context": {
            "@language": "en",
            "@vocab": "https://schema.org/",
            "cr": "http://mlcommons.org/croissant/",
            "sc": "https://schema.org/",
            "dct": "http://purl.org/dc/terms/",
            "column": "cr:column",
            "conformsTo": "dct:conformsTo",
            "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
            "extract": "cr:extract",
            "field": "cr:field",
            "fileSet": "cr:fileSet",
            "includes": "cr:includes",
            "recordSet": "cr:recordSet",
            "source": "cr:source",
        },
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "ganmill-synthetic" if made else "ganmill-real",
        "description": f"{samples} {'synthetic ' if made else ''}images, {size} bytes, {len(records)} tars.",
        "version": "1.0.0",
        "distribution": [
            {
                "@type": "cr:FileSet",
                "@id": "shards",
                "name": "shards",
                "encodingFormat": "application/x-tar",
                "includes": "shards/*.tar",
            },
            {
                "@type": "cr:FileSet",
                "@id": "manifest",
                "name": "manifest",
                "encodingFormat": "application/x-parquet",
                "includes": "manifest/*.parquet",
            },
        ],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "samples", "name": "samples", "field": fields}],
    }
