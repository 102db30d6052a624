"""A dataset through `mlcroissant`, the reference library of Croissant: its validator and its reader of records."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Found:
    """A dataset as mlcroissant shows it."""

    metadata: Any
    complaints: list[str]  # errors and warnings of its validator
    rows: list[dict[str, Any]]  # of the manifest
    images: list[tuple[str, Any]]  # keys and Pillow images, out of the tars, which it reads in no order
    classes: list[tuple[int, str]] | None


def read(dataset: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Found:
    """Validate croissant.json, and read all records."""
    import mlcroissant
    from absl import logging as absl
    from etils import epath
    from mlcroissant._src.operation_graph.operations import extract

    # It unpacks a tar once for each relative URL, which all datasets share: docs/format.md.
    monkeypatch.setattr(extract, "EXTRACT_PATH", epath.Path(dataset.parent / "unpacked"))
    absl.use_python_logging()
    with caplog.at_level(logging.WARNING):
        opened = mlcroissant.Dataset(dataset / "croissant.json")
        issues = opened.metadata.ctx.issues
        complaints = [*issues.errors, *issues.warnings, *(record.getMessage() for record in caplog.records)]
    sets = {one.id for one in opened.metadata.record_sets}
    rows = [{_name(key): _text(key, value) for key, value in row.items()} for row in opened.records("samples")]
    pictures = opened.records("images") if "images" in sets else []
    classes = opened.records("classes") if "classes" in sets else None
    return Found(
        metadata=opened.metadata,
        complaints=complaints,
        rows=rows,
        images=sorted(((one["images/key"].decode(), one["images/image"]) for one in pictures), key=lambda one: one[0]),
        classes=None if classes is None else [(one["classes/label"], one["classes/name"]) for one in classes],
    )


def _name(field: str) -> str:
    return field.partition("/")[2]


def _text(field: str, value: Any) -> Any:
    """Texts come as bytes, as hashes do."""
    return value.decode() if isinstance(value, bytes) and not field.endswith("/sha256") else value
