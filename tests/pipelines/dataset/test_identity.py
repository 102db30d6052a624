"""Identities: read and written back they are the same JSON; what no dataset of ours has is refused by its name."""

import io
import json
import tarfile
from typing import Any

import pytest

from pipelines.dataset.claim import canonical
from pipelines.dataset.identity import GenerateIdentity, IngestIdentity, from_json
from pipelines.dataset.schema import SchemaError
from tests.conftest import ROOT

COMMON = {"count": 5, "shard_size": 2, "image_size": 8, "channels": 1, "classes": ["a"], "arithmetic": {"numpy": "2"}}
INGESTED = {**COMMON, "producer": "ingest", "image": {"format": "png", "resize": "crop", "background": [1, 2, 3]}}
GENERATED = {**COMMON, "producer": "generate", "image": {"format": "jpeg", "quality": 90}, "model": "ab" * 32}


def golden() -> dict[str, Any]:
    """The identities of the datasets that earlier versions made."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO((ROOT / "tests/golden/golden.tar.xz").read_bytes())) as tar:
        for member in tar:
            if member.name.endswith("dataset.json"):
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = json.load(file)["identity"]
    return found


@pytest.mark.parametrize(
    "fields",
    [
        INGESTED,
        {**INGESTED, "source": "0" * 64, "seed": 0, "relabel": None, "dedupe": None, "holdout": None},
        {**INGESTED, "relabel": {"a": "b", "c": None}, "limits": {"bytes": 5, "pixels": 6}, "reader": 2},
        {**INGESTED, "dedupe": {"mode": "exact", "against": None}, "holdout": {"share": 0.1, "part": "kept"}},
        {**INGESTED, "dedupe": {"mode": "near", "against": "0", "bits": 3, "levels": 24}},
        {**INGESTED, "classes": None, "image": {"format": "png"}, "arithmetic": {}},
        {**INGESTED, "later": {"version": [1, 2]}, "image": {"format": "png", "later": None}},
        GENERATED,
        {**GENERATED, "labels": None, "seed_start": 7, "batch": 64},
        {**GENERATED, "labels": {"cycle": [0, 0]}},
        {**GENERATED, "labels": {"weights": [[0, 0.25], [1, 3.0]]}},
    ],
)
def test_what_is_read_is_written_back_byte_for_byte(fields: dict[str, Any]) -> None:
    identity = from_json(json.loads(json.dumps(fields)))
    assert canonical(identity.to_json()) == canonical(fields)
    assert type(identity) is {"ingest": IngestIdentity, "generate": GenerateIdentity}[fields["producer"]]


def test_the_identities_of_earlier_versions_are_written_back_byte_for_byte() -> None:
    found = golden()
    assert {identity["producer"] for identity in found.values()} == {"ingest", "generate"}
    for fields in found.values():
        assert canonical(from_json(fields).to_json()) == canonical(fields)


@pytest.mark.parametrize("field", ["producer", "count", "shard_size", "image_size", "channels", "classes", "image"])
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(SchemaError, match=f"^{field}"):
        from_json({name: value for name, value in INGESTED.items() if name != field})


@pytest.mark.parametrize("value", [None, 5, "x", [], {"producer": []}])
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(SchemaError):
        from_json(value)
