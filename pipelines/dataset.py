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
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipelines import claim as claim_file
from pipelines import images, manifest, schema, shards
from pipelines.claim import FORMAT, ClaimError, canonical
from pipelines.dimensions import dimensions
from pipelines.images import ImageError, Pixels
from pipelines.manifest import Part, PartError, Reject, ShardRecord
from pipelines.schema import MAX_PART_BYTES, SchemaError
from pipelines.shards import CorruptError as CorruptError  # readers of datasets know it from here
from pipelines.shards import Sample
from pipelines.storage import Folder, MissingError, StorageError, TooLargeError

CLAIM = "dataset.json"
SEAL = "index.json"
REJECTS = "rejects.parquet"
MAX_FILE_BYTES = 4 << 30  # of what lies beside the shards; the largest is a model's weights


class DatasetError(ValueError):
    """A dataset that is missing, not sealed, or not what was asked for: one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Index:
    """A sealed dataset: what index.json says, and the identity that it was claimed with."""

    identity: dict[str, Any]
    shards: tuple[ShardRecord, ...]
    files: dict[str, str]  # name -> sha256 of everything beside shards and parts
    root: str  # the hash that names the dataset: over identity and shards
    # Of a selection's view (pipelines/selection.py): the indices that it holds, ascending, one as often as it is to
    # come. `shards` then count these.
    chosen_N: np.ndarray | None = field(default=None, compare=False)

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def classes(self) -> list[str] | None:
        names: list[str] | None = self.identity.get("classes")
        return names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels, the same for every image."""
        return self.identity["image_size"], self.identity["image_size"], self.identity["channels"]


def num_shards(identity: Mapping[str, Any]) -> int:
    return -(-int(identity["count"]) // int(identity["shard_size"]))


def shard_range(identity: Mapping[str, Any], shard: int) -> range:
    """The global indices that a shard owns."""
    size = identity["shard_size"]
    return range(shard * size, min((shard + 1) * size, identity["count"]))


def check_size(identity: Mapping[str, Any]) -> None:
    """For producers, before they start. Raises DatasetError for shards that are too many or too large."""
    try:
        schema.check_size(*(identity[name] for name in ("count", "shard_size", "image_size", "channels")))
    except SchemaError as error:
        raise DatasetError(str(error)) from error


def claim(
    folder: Folder, identity: Mapping[str, Any], settings: Mapping[str, Any], facts: Mapping[str, Any] | None = None
) -> None:
    """Take the folder for a dataset of this identity, or go on with one that has it.

    A larger `count` with all else equal extends: the seal is taken off, a short last shard is to be done again.

    Args:   facts: what the claim says beside the two, for people; nobody compares it.
    Raises: DatasetError naming the first field that differs, both values and what to do.
    """
    try:
        differences = claim_file.take(folder, CLAIM, identity, settings, facts)
    except ClaimError as error:
        raise DatasetError(str(error)) from error
    if not differences:
        return
    first = differences[0]
    if [d.field for d in differences] == ["count"] and first.now > first.before:
        # In this order a crash at any point leaves a dataset that the next start completes right.
        folder.delete(SEAL)
        if first.before % identity["shard_size"]:
            folder.delete(manifest.part_name(first.before // identity["shard_size"]))
        folder.write(CLAIM, claim_file.encode(identity, settings, facts))
        return
    raise DatasetError(f"{folder}: {first}; use the same settings to go on, or another --output")


def read_claim(folder: Folder) -> dict[str, Any]:
    """dataset.json. Raises DatasetError if there is none or it cannot be read by this version."""
    try:
        data = folder.read(CLAIM, schema.MAX_CLAIM_BYTES)
    except MissingError as error:
        raise DatasetError(f"{folder}: no dataset here ({CLAIM} is missing); check the URL") from error
    claimed: dict[str, Any] = _json(data, f"{folder}/{CLAIM}")
    if claimed.get("format") != FORMAT:
        version = str(claimed.get("format"))[:40]
        raise DatasetError(f"{folder}/{CLAIM}: format {version}; this version reads format {FORMAT}")
    if damage := claim_file.damage(claimed):
        raise CorruptError(f"{folder}/{CLAIM}: damaged, not a claim: {damage}")
    try:
        schema.check_identity(claimed["identity"])
    except SchemaError as error:
        raise DatasetError(f"{folder}/{CLAIM}: {error}") from error
    return claimed


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


class Journal:
    """The records of finished shards, some hundreds to a file, so that a restart needs no request a shard.

    Only a shortcut: a shard that it does not know is read, and a record that does not fit the part's listed size is not
    used. Each file holds its own hash, taken over the dataset's identity too: one that is damaged, or of another
    dataset, is as good as none. Its files go when the dataset is sealed.
    """

    SHARDS_A_FILE = 256

    def __init__(self, folder: Folder, identity: Mapping[str, Any]) -> None:
        self._folder, self.identity = folder, identity
        self._names = sorted(folder.list("journal"))
        self._new: list[ShardRecord] = []
        self.records: dict[int, ShardRecord] = {}
        for name in self._names:
            for entry in self._read(f"journal/{name}"):
                self.records[entry["shard"]] = ShardRecord(**entry)

    def _read(self, name: str) -> list[dict[str, Any]]:
        try:
            noted = json.loads(self._folder.read(name))
            entries: list[dict[str, Any]] = noted["records"]
            return entries if noted["sha256"] == self._hash(entries) else []
        except (KeyError, RecursionError, TypeError, ValueError, StorageError):
            return []

    def _hash(self, entries: list[dict[str, Any]]) -> str:
        return hashlib.sha256(canonical([self.identity, entries])).hexdigest()

    def add(self, record: ShardRecord, has_rejects: bool) -> None:
        """Note a finished shard. One with rejects is left out: they stand in its part only."""
        if not has_rejects:
            self._new.append(record)
        if len(self._new) >= self.SHARDS_A_FILE:
            self.flush()

    def flush(self) -> None:
        """Write down what is noted, if the storage lets us: what is lost here costs a request a shard, and no more."""
        noted, self._new = self._new, []
        if noted:
            name = f"{noted[0].shard:06d}.json"
            with contextlib.suppress(OSError):
                entries = [asdict(record) for record in noted]
                self._folder.write(f"journal/{name}", canonical({"records": entries, "sha256": self._hash(entries)}))
                self._names.append(name)

    def delete(self) -> None:
        """Remove the files; what cannot be removed now is tried again at the next start."""
        with contextlib.suppress(OSError):
            for name in self._names:
                self._folder.delete(f"journal/{name}")
            self._folder.sweep("journal")
            self._folder.remove("journal")


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


def _finished(folder: Folder, identity: Mapping[str, Any], shard: int) -> tuple[Part, ShardRecord]:
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


def read_part(folder: Folder, shard: int) -> tuple[Part, ShardRecord]:
    """One shard's manifest rows, and what a seal says of it. Raises PartError for a file that is no part."""
    name = manifest.part_name(shard)
    try:
        data = folder.read(name, MAX_PART_BYTES)
    except TooLargeError as error:
        raise PartError(str(error)) from error
    part = manifest.decode(data, f"{folder}/{name}")
    return part, manifest.record(data, part)


def read_image(folder: Folder, row: Mapping[str, Any]) -> bytes:
    """An image by its row of the manifest: a range read. Raises CorruptError naming tar and sample for other bytes."""
    tar = manifest.tar_name(row["shard"])
    try:
        image = folder.read_range(tar, row["offset"], row["size"])
    except StorageError as error:  # missing, or cut short
        raise CorruptError(str(error)) from error
    if hashlib.sha256(image).digest() != row["sha256"]:
        raise CorruptError(f"{folder}/{tar}: sample {row['key']} is not what its row in the manifest says")
    return image


def check_rows(identity: Mapping[str, Any], part: Part, shard: int, where: str) -> None:
    """That a part is of this shard and dataset, as far as it tells. Raises CorruptError; `where` is the part's URL."""
    owned = shard_range(identity, shard)
    rejected = {reject.index for reject in part.rejects}
    kept = [index for index in owned if index not in rejected]
    columns = part.table.column_names
    if columns != manifest.columns(identity["producer"]):
        raise CorruptError(f"{where}: its columns are {', '.join(columns)}, not those of {identity['producer']}")
    if part.table["index"].to_pylist() != kept or part.shard != shard:
        raise CorruptError(f"{where}: its rows are not the indices {owned.start} to {owned.stop - 1}")
    expected: dict[str, list[Any]] = {"key": [shards.key(index) for index in kept], "shard": [shard] * len(kept)}
    if "seed" in columns:
        expected["seed"] = [identity["seed_start"] + index for index in kept]
    for name, values in expected.items():
        if part.table[name].to_pylist() != values:
            raise CorruptError(f"{where}: its column {name} is not that of its indices")


def seal(
    folder: Folder,
    identity: Mapping[str, Any],
    records: Mapping[int, ShardRecord],
    extras: Mapping[str, bytes],
    existing: Collection[str] = (),
) -> Index:
    """Check that every shard is there, whole and of the right size, then publish `extras` and the seal.

    Args:   records: every shard of the dataset. extras: name -> content of the files that go beside the shards.
            existing: names of files that are there already and are sealed too.
    Raises: CorruptError naming shards that are missing or short.
    """
    wrong = _not_listed(folder, records.values())
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
    index = Index(dict(identity), tuple(records[shard] for shard in sorted(records)), hashes, "")
    sealed = _seal_json(index)
    folder.write(SEAL, canonical(sealed) + b"\n")
    return Index(index.identity, index.shards, index.files, sealed["root"])


def open_sealed(folder: Folder) -> Index:
    """The index of a sealed dataset; the only way in for readers.

    Raises: DatasetError if there is no dataset or it has no seal; CorruptError if the seal contradicts itself.
    """
    identity = read_claim(folder)["identity"]
    many, names = num_shards(identity), len(canonical(identity["classes"]))
    try:
        data = folder.read(SEAL, schema.max_seal_bytes(many, names))
    except MissingError as error:
        raise DatasetError(
            f"{folder}: not finished ({SEAL} is missing); run the job that makes it again to complete it"
        ) from error
    if data.count(b"{") + data.count(b"[") > many + len(identity["classes"] or []) + 1000 + names:
        raise CorruptError(f"{folder}/{SEAL}: more entries than {many:,} shards have")  # parsed, they fill the memory
    sealed = _json(data, f"{folder}/{SEAL}")
    try:
        schema.check_seal(sealed)
        records = tuple(ShardRecord(shard=number, **entry) for number, entry in enumerate(sealed["shards"]))
        index = Index(identity, records, sealed["files"], sealed["root"])
        agrees = data == canonical(_seal_json(index)) + b"\n"
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{folder}/{SEAL}: not an index: {error}") from error
    if not agrees:
        raise CorruptError(
            f"{folder}/{SEAL}: does not agree with itself or with {CLAIM}; it was changed after the seal"
        )
    pixels = math.prod(index.image_shape)
    for record in records:
        owned = len(shard_range(identity, record.shard))
        if record.samples > owned or record.bytes > schema.max_tar_bytes(record.samples, pixels):
            raise CorruptError(
                f"{folder}/{SEAL}: {record.tar}: {record.samples:,} samples in {record.bytes:,} bytes, more than a "
                f"shard of {owned:,} can have"
            )
    if len(records) != many:
        raise CorruptError(f"{folder}/{SEAL}: {len(records):,} shards, {CLAIM} says {many:,}")
    return index


def samples(folder: Folder, index: Index, record: ShardRecord) -> Iterator[Sample]:
    """A sealed shard's samples in order, or those that a view has chosen: the only way in for whoever decodes them.

    Raises: CorruptError or ShardError, naming the shard and the sample, for a tar that is not as sealed, and for
    samples that are fewer or more, of another shard, of an unknown class, or whose image declares another size.
    """
    if index.chosen_N is not None and not record.samples:
        return
    where = f"{folder}/{record.tar}"
    owned, classes, (height, width, _) = shard_range(index.identity, record.shard), index.classes, index.image_shape
    copies_S = _copies(index, owned)
    found = 0
    for sample in shards.unpack(read_shard(folder, record), where):
        what = f"{where}: sample {shards.key(sample.index)}"
        if sample.index not in owned:
            raise CorruptError(f"{what}: the shard owns {owned.start} to {owned.stop - 1}")
        if (sample.label is None) != (classes is None) or (classes and (sample.label or 0) >= len(classes)):
            raise CorruptError(f"{what}: its class is {sample.label}, of {len(classes or [])}")
        if dimensions(sample.image) != (height, width):
            size = dimensions(sample.image)
            says = f"declares {size[1]}x{size[0]} pixels" if size else "is no PNG, JPEG or WebP"
            raise CorruptError(f"{what}: its image {says}; all are {width}x{height}")
        for _ in range(int(copies_S[sample.index - owned.start])):
            found += 1
            yield sample
    if found != record.samples:
        meant = "sealed with" if index.chosen_N is None else "the selection names"
        raise CorruptError(f"{where}: {found:,} samples, {meant} {record.samples:,}")


def read_shard(folder: Folder, record: ShardRecord) -> bytes:
    """A shard's tar, checked against the seal. Raises CorruptError naming it."""
    return _checked(folder, record.tar, record.bytes, record.sha256)


def read_sealed_part(folder: Folder, record: ShardRecord) -> Part:
    """A shard's manifest rows, checked against the seal. Raises CorruptError naming the part."""
    return manifest.decode(
        _checked(folder, record.part, record.part_bytes, record.part_sha256), f"{folder}/{record.part}"
    )


def check_files(folder: Folder, index: Index) -> None:
    """Everything beside the shards: each sealed file is there and unchanged, and no shard or part is there unsealed."""
    for name, sha256 in index.files.items():
        _checked(folder, name, None, sha256)
    sealed = {name for record in index.shards for name in (record.tar, record.part)}
    strangers = sorted(({*_prefixed(folder, "shards")} | {*_prefixed(folder, "manifest")}) - sealed)
    if strangers:
        raise CorruptError(f"{folder}/{strangers[0]}: not in the seal")


def check_listed(folder: Folder, index: Index) -> None:
    """That every shard and part is there, of its size: what one listing of each tells. Raises CorruptError."""
    if wrong := _not_listed(folder, index.shards):
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CorruptError(
            f"{folder}/{wrong[0]}: missing, or of another size than was sealed{more}; to have it made anew delete "
            f"{SEAL} and its part under manifest/, and start the same command again"
        )


def check_shard(folder: Folder, index: Index, record: ShardRecord) -> int:
    """Check one shard: both hashes, that tar and part say the same of every sample, one for one, and every image.

    Returns the number of samples, counted in the tar. Raises CorruptError naming file and sample.
    """
    where = f"{folder}/{record.tar}"
    data = read_shard(folder, record)
    part = read_sealed_part(folder, record)
    rows = part.table.to_pylist()
    check_rows(index.identity, part, record.shard, f"{folder}/{record.part}")
    found = list(samples(folder, index, record))
    if len(found) != len(rows):
        raise CorruptError(f"{where}: {len(found)} samples, its part has {len(rows)} rows")
    for sample, row in zip(found, rows, strict=True):
        image = data[row["offset"] : row["offset"] + row["size"]]
        if (
            sample.index != row["index"]
            or sample.label != row["label"]
            or image != sample.image
            or hashlib.sha256(image).digest() != row["sha256"]
        ):
            raise CorruptError(f"{where}: sample {row['key']} is not what its row in {record.part} says")
        pixels(folder, index, sample)
    return len(found)


def pixels(folder: Folder, index: Index, sample: Sample) -> Pixels:
    """A sealed sample's image, decoded. Raises CorruptError naming shard and sample for one that cannot be."""
    try:
        image = images.decode(sample.image, index.image_shape[2])
        if image.shape != index.image_shape:
            raise ImageError(f"{'x'.join(map(str, image.shape))} pixels")
        return image
    except ImageError as error:
        tar = manifest.tar_name(sample.index // index.identity["shard_size"])
        raise CorruptError(f"{folder}/{tar}: sample {shards.key(sample.index)}: its image is {error}") from error


def _copies(index: Index, owned: range) -> np.ndarray:
    """copies_S: how often each sample comes that a shard may have; all once, or as a view has chosen."""
    if index.chosen_N is None:
        return np.ones(len(owned), np.int64)
    start, stop = np.searchsorted(index.chosen_N, (owned.start, owned.stop))
    return np.bincount(index.chosen_N[start:stop] - owned.start, minlength=len(owned))


def _seal_json(index: Index) -> dict[str, Any]:
    entries = []
    for record in index.shards:
        entry = asdict(record)
        del entry["shard"]  # its place in the list
        entries.append(entry)
    return {
        "format": FORMAT,
        "samples": index.samples,
        "bytes": index.bytes,
        "classes": index.classes,
        "shards": entries,
        "files": index.files,
        "root": hashlib.sha256(canonical({"identity": index.identity, "shards": entries})).hexdigest(),
    }


def _checked(folder: Folder, name: str, size: int | None, sha256: str) -> bytes:
    try:
        data = folder.read(name, MAX_FILE_BYTES if size is None else size)
    except MissingError as error:
        raise CorruptError(f"{folder}/{name}: missing") from error
    except TooLargeError as error:
        raise CorruptError(f"{folder}/{name}: more than {size or MAX_FILE_BYTES:,} bytes, sealed with fewer") from error
    if size is not None and len(data) != size:
        raise CorruptError(f"{folder}/{name}: {len(data)} bytes, sealed with {size}")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptError(f"{folder}/{name}: changed after the seal (its sha256 is another)")
    return data


def _not_listed(folder: Folder, records: Iterable[ShardRecord]) -> list[str]:
    """The shards and parts that the listings do not have, or with another size."""
    listed = {**_prefixed(folder, "shards"), **_prefixed(folder, "manifest")}
    sizes = {name: size for r in records for name, size in ((r.tar, r.bytes), (r.part, r.part_bytes))}
    return sorted(name for name, size in sizes.items() if listed.get(name) != size)


def _prefixed(folder: Folder, name: str) -> dict[str, int]:
    return {f"{name}/{file}": size for file, size in folder.list(name).items()}


def _json(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{where}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptError(f"{where}: not a JSON object")
    return value
