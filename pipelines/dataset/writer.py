"""Write a dataset: claim it, find the missing shards, commit each shard, seal it.

    dataset.json            the claim: identity (all that decides the bytes) and the settings of the run
    shards/000000.tar       WebDataset shards; shard s owns the indices [s*S, (s+1)*S)
    manifest/000000.parquet its part, written after it: marks the shard as done
    index.json              the seal, written last: all hashes and counts; readers accept only sealed datasets

A run that died leaves a claim and some parts. The next run lists the parts once and makes the missing shards. The bytes
of a shard depend on the identity and its number alone, so a repeated attempt gives the same bytes.
"""

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipelines.dataset import claim as claim_file
from pipelines.dataset import manifest, schema, shards
from pipelines.dataset.attribution import NONE, Attribution
from pipelines.dataset.claim import ClaimError, Difference, canonical
from pipelines.dataset.identity import Identity
from pipelines.dataset.journal import Journal
from pipelines.dataset.layout import CLAIM, SEAL, Index, num_shards
from pipelines.dataset.manifest import Part, Reject, ShardRecord
from pipelines.dataset.reader import check_rows, not_listed, read_claim, read_image, read_part, seal_json
from pipelines.dataset.schema import SchemaError
from pipelines.errors import CorruptError, DatasetError
from pipelines.storage.folder import Folder


def check_size(count: int, shard_size: int, image_size: int, channels: int) -> None:
    """For producers, before they start. Raises DatasetError for too many or too large shards."""
    try:
        schema.check_size(count, shard_size, image_size, channels)
    except SchemaError as error:
        raise DatasetError(str(error)) from error


def claim(
    folder: Folder,
    identity: Identity,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
    asked: Attribution = NONE,
    found: Attribution = NONE,
) -> None:
    """Claim the folder for a dataset of this identity, or continue a dataset that has it.

    A larger `count` with all else equal extends the dataset: the seal is removed, and a short last shard is made again.

    Args:   facts: further entries of the claim, for people; they are never compared. asked: what the cards must say.
            found: what they say where nothing is asked. An existing claim keeps its own attribution.
    Raises: DatasetError naming the first field that differs, both values and what to do.
    """
    facts = dict(facts or {})
    if attribution := asked.over(found).to_json():
        facts["attribution"] = attribution
    try:
        differences = claim_file.take(folder, CLAIM, identity.to_json(), settings, facts)
    except ClaimError as error:
        raise DatasetError(str(error)) from error
    first = differences[0] if differences else None
    if first and ([d.field for d in differences] != ["count"] or first.now <= first.before):
        raise DatasetError(f"{folder}: {first}; use the same settings to go on, or another --output")
    claimed = read_claim(folder).attribution
    if claimed or not first:  # a dataset of an earlier version gets its attribution when it is extended
        _check_attribution(folder, claimed or NONE, asked)
    if first is None:
        return
    if claimed:
        facts["attribution"] = claimed.to_json()
    # In this order the next start completes the dataset correctly after a crash at any point.
    folder.delete(SEAL)
    if first.before % identity.shard_size:
        folder.delete(manifest.part_name(first.before // identity.shard_size))
    folder.write(CLAIM, claim_file.encode(identity.to_json(), settings, facts))


def _check_attribution(folder: Folder, claimed: Attribution, asked: Attribution) -> None:
    """Raises DatasetError if the cards must say something else than the claim does: it would be ignored."""
    for name, now in asked.to_json().items():
        if (before := getattr(claimed, name)) != now:
            raise DatasetError(
                f"{folder}: {Difference(name, before, now)}; leave --{name} out to go on, or use another --output"
            )


def missing(folder: Folder, shards: int) -> list[int]:
    """The shards of a claimed dataset that are not done yet, by one listing."""
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
    calibration: manifest.Calibration = manifest.NONE,
) -> ShardRecord:
    """Publish one shard: its tar, then its part.

    Args:   extra: the producer's own columns, one value a sample. extension: the images' file ending. calibration: that
            of the scores.
    """
    packed = shards.pack(samples, extension)
    rejects = list(rejects)
    data = manifest.encode(producer, shard, packed, extra, rejects, calibration)
    folder.write(manifest.tar_name(shard), packed.data)
    folder.write(manifest.part_name(shard), data)
    return manifest.record(data, manifest.decode(data, manifest.part_name(shard)))


def discard(folder: Folder, name: str) -> None:
    """Remove a folder of intermediate files. The next start tries again with those that cannot be removed now."""
    with contextlib.suppress(OSError):
        for file in folder.list(name):
            folder.delete(f"{name}/{file}")
        folder.sweep(name)
        folder.remove(name)


def records_of(
    folder: Folder, numbers: Iterable[int], journal: Journal
) -> Iterator[tuple[ShardRecord, tuple[Reject, ...]]]:
    """The records and rejects of shards that earlier runs finished: from the journal, else from their parts.

    A tar is not read again: the seal gets the hash that its part records, with which readers find later changes.

    Raises: CorruptError naming a part that is damaged, or of another dataset.
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
    """A shard of an earlier run, after a check that its part belongs to this dataset and matches its first image."""
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
    """The remedy for a damaged shard of an unsealed dataset."""
    return f"delete {manifest.part_name(shard)} and start the same command again, which makes the shard again"


def seal(
    folder: Folder,
    identity: Identity,
    records: Mapping[int, ShardRecord],
    extras: Mapping[str, bytes],
    existing: Collection[str] = (),
) -> Index:
    """Check that every shard exists with its size, then publish `extras` and the seal.

    Args:   records: every shard of the dataset. extras: name -> content of the files beside the shards.
            existing: names of existing files that are sealed too.
    Raises: CorruptError naming shards that are missing or of another size.
    """
    wrong = not_listed(folder, records.values())
    if wrong or sorted(records) != list(range(num_shards(identity))):
        raise CorruptError(
            f"{folder}: cannot be sealed: missing or of another size: {', '.join(wrong[:10]) or 'shards'}; "
            "delete the shard's part under manifest/ and start again, which makes it again"
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
