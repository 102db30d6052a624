"""Datasets: the claim, what is missing, the commit of a shard, the seal, and the check of every byte.

    dataset.json            the claim: identity (all that decides the bytes) and the settings it was made with
    shards/000000.tar       WebDataset shards; shard s owns the indices [s*S, (s+1)*S)
    manifest/000000.parquet its part, written after it: the shard is done
    index.json              the seal, written last: hashes and counts of everything; readers accept only sealed datasets

A run that died leaves a claim and some parts. The next one lists the parts once and does what is missing; since each
shard's bytes follow from the identity and its number alone, nobody can tell how often it was tried.
"""

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipelines.dataset import claim as claim_file
from pipelines.dataset import manifest, schema, shards
from pipelines.dataset.claim import ClaimError, canonical
from pipelines.dataset.identity import Identity
from pipelines.dataset.journal import Journal
from pipelines.dataset.layout import CLAIM, SEAL, DatasetError, Index, num_shards
from pipelines.dataset.manifest import Part, Reject, ShardRecord
from pipelines.dataset.reader import check_rows, not_listed, read_image, read_part, seal_json
from pipelines.dataset.schema import SchemaError
from pipelines.dataset.shards import CorruptError
from pipelines.storage.folder import Folder


def check_size(count: int, shard_size: int, image_size: int, channels: int) -> None:
    """For producers, before they start. Raises DatasetError for too many or too large shards."""
    try:
        schema.check_size(count, shard_size, image_size, channels)
    except SchemaError as error:
        raise DatasetError(str(error)) from error


def claim(
    folder: Folder, identity: Identity, settings: Mapping[str, Any], facts: Mapping[str, Any] | None = None
) -> None:
    """Take the folder for a dataset of this identity, or go on with one that has it.

    A larger `count` with all else equal extends: the seal is taken off, a short last shard is to be done again.

    Args:   facts: what the claim says beside the two, for people; nobody compares it.
    Raises: DatasetError naming the first field that differs, both values and what to do.
    """
    try:
        differences = claim_file.take(folder, CLAIM, identity.to_json(), settings, facts)
    except ClaimError as error:
        raise DatasetError(str(error)) from error
    if not differences:
        return
    first = differences[0]
    if [d.field for d in differences] == ["count"] and first.now > first.before:
        # In this order a crash at any point leaves a dataset that the next start completes right.
        folder.delete(SEAL)
        if first.before % identity.shard_size:
            folder.delete(manifest.part_name(first.before // identity.shard_size))
        folder.write(CLAIM, claim_file.encode(identity.to_json(), settings, facts))
        return
    raise DatasetError(f"{folder}: {first}; use the same settings to go on, or another --output")


def missing(folder: Folder, shards: int) -> list[int]:
    """The shards of a claimed dataset that are not done yet. One listing, however many there are."""
    done = folder.list("manifest")
    return [shard for shard in range(shards) if f"{shard:06d}.parquet" not in done]


def commit(
    folder: Folder,
    shard: int,
    producer: str,
    samples: Iterable[shards.Sample],
    extra: Mapping[str, Any],
    rejects: Iterable[Reject] = (),
    extension: str = "png",
) -> ShardRecord:
    """Publish one shard: its tar, then its part."""
    packed = shards.pack(samples, extension)
    rejects = list(rejects)
    data = manifest.encode(producer, shard, packed, extra, rejects)
    folder.write(manifest.tar_name(shard), packed.data)
    folder.write(manifest.part_name(shard), data)
    return manifest.record(data, manifest.decode(data, manifest.part_name(shard)))


def discard(folder: Folder, name: str) -> None:
    """Remove a folder of what only the making needed; what cannot be removed now is tried again at the next start."""
    with contextlib.suppress(OSError):
        for file in folder.list(name):
            folder.delete(f"{name}/{file}")
        folder.sweep(name)
        folder.remove(name)


def records_of(
    folder: Folder, numbers: Iterable[int], journal: Journal
) -> Iterator[tuple[ShardRecord, tuple[Reject, ...]]]:
    """The records and rejects of shards that earlier runs finished: from the journal, else from their parts.

    Raises: CorruptError naming a part that is damaged, or of another dataset. A tar is not read again: the seal names
    the hash that was written down with it, by which readers and verify find what has changed since.
    """
    sizes = folder.list("manifest")
    unknown = []
    for number in numbers:
        record = journal.records.get(number)
        if record is not None and sizes.get(f"{number:06d}.parquet") == record.part_bytes:
            yield record, ()
        else:
            unknown.append(number)
    with ThreadPoolExecutor(32) as readers:
        for part, record in readers.map(lambda number: _finished(folder, journal.identity, number), unknown):
            yield record, part.rejects


def _finished(folder: Folder, identity: Identity, shard: int) -> tuple[Part, ShardRecord]:
    """A shard of an earlier run. Its part is whole and of this dataset; its first image is the one that it names."""
    try:
        part, record = read_part(folder, shard)
        where = f"{folder}/{record.part}"
        check_rows(identity, part, shard, where)
        if len(part.table):
            read_image(folder, part.table.slice(0, 1).to_pylist()[0])
    except CorruptError as error:
        raise CorruptError(f"{error}; {remake(shard)}") from error
    return part, record


def remake(shard: int) -> str:
    """What to do about a shard of a dataset in the making."""
    return f"delete {manifest.part_name(shard)} and start the same command again: the shard is made anew"


def seal(
    folder: Folder,
    identity: Identity,
    records: Mapping[int, ShardRecord],
    extras: Mapping[str, bytes],
    existing: Collection[str] = (),
) -> Index:
    """Check that every shard is there, whole and of the right size, then publish `extras` and the seal.

    Args:   records: every shard of the dataset. extras: name -> content of the files that go beside the shards.
            existing: names of files that are there already and are sealed too.
    Raises: CorruptError naming shards that are missing or short.
    """
    wrong = not_listed(folder, records.values())
    if wrong or sorted(records) != list(range(num_shards(identity))):
        raise CorruptError(
            f"{folder}: cannot be sealed: missing or of another size: {', '.join(wrong[:10]) or 'shards'}; "
            "delete the shard's part under manifest/ and start again: it is made anew"
        )
    for name in {"", "shards", "manifest", *(file.rpartition("/")[0] for file in existing)}:
        folder.sweep(name)
    folder.abort_uploads()
    for name, data in extras.items():
        folder.write(name, data)
    files = {**extras, **{name: folder.read(name) for name in (CLAIM, *existing)}}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    index = Index(identity, tuple(records[shard] for shard in sorted(records)), hashes, "")
    sealed = seal_json(index)
    folder.write(SEAL, canonical(sealed) + b"\n")
    return Index(index.identity, index.shards, index.files, sealed["root"])
