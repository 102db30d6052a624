"""Open a sealed dataset, read its samples, and check every byte of it."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from pipelines import images
from pipelines.dataset import claim as claim_file
from pipelines.dataset import identity as identity_file
from pipelines.dataset import manifest, schema, shards
from pipelines.dataset.attribution import Attribution
from pipelines.dataset.claim import FORMAT, canonical
from pipelines.dataset.identity import Identity
from pipelines.dataset.layout import CLAIM, SEAL, Index, num_shards, shard_range
from pipelines.dataset.manifest import Part, PartError, ShardRecord
from pipelines.dataset.schema import MAX_PART_BYTES, SchemaError
from pipelines.dataset.shards import Sample
from pipelines.errors import CorruptError, DatasetError
from pipelines.image_header import dimensions
from pipelines.images import ImageError, Pixels
from pipelines.storage.folder import Folder, MissingError, StorageError, TooLargeError


class Claim(NamedTuple):
    """dataset.json: the identity, the settings with which the dataset was made, and the facts for its cards."""

    identity: Identity
    settings: dict[str, Any]
    attribution: Attribution | None  # None: claimed by a version that had none


MAX_FILE_BYTES = 4 << 30  # of a file beside the shards; the largest are a model's weights


def read_claim(folder: Folder) -> Claim:
    """dataset.json. Raises DatasetError if there is none, or if this version cannot read it."""
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
        identity = identity_file.from_json(claimed["identity"])
        attribution = schema.validate(Attribution, claimed["attribution"]) if "attribution" in claimed else None
    except SchemaError as error:
        raise DatasetError(f"{folder}/{CLAIM}: {error}") from error
    return Claim(identity, claimed["settings"], attribution)


def read_part(folder: Folder, shard: int) -> tuple[Part, ShardRecord]:
    """One shard's manifest rows, and its entry in the seal. Raises PartError for a file that is no part."""
    name = manifest.part_name(shard)
    try:
        data = folder.read(name, MAX_PART_BYTES)
    except TooLargeError as error:
        raise PartError(str(error)) from error
    part = manifest.decode(data, f"{folder}/{name}")
    return part, manifest.record(data, part)


def read_image(folder: Folder, row: Mapping[str, Any]) -> bytes:
    """An image by its manifest row: one range read. Raises CorruptError naming tar and sample for wrong bytes."""
    tar = manifest.tar_name(row["shard"])
    try:
        image = folder.read_range(tar, row["offset"], row["size"])
    except StorageError as error:  # missing, or cut short
        raise CorruptError(str(error)) from error
    if hashlib.sha256(image).digest() != row["sha256"]:
        raise CorruptError(f"{folder}/{tar}: sample {row['key']} does not match its row in the manifest")
    return image


def check_rows(identity: Identity, part: Part, shard: int, where: str) -> None:
    """Check that a part belongs to this shard and dataset. Raises CorruptError; `where` is the part's URL."""
    owned = shard_range(identity, shard)
    rejected = {reject.index for reject in part.rejects}
    kept = [index for index in owned if index not in rejected]
    columns = part.table.column_names
    if columns != manifest.columns(identity.producer):
        raise CorruptError(f"{where}: its columns are {', '.join(columns)}, not those of {identity.producer}")
    if part.table["index"].to_pylist() != kept or part.shard != shard:
        raise CorruptError(f"{where}: its rows are not the indices {owned.start} to {owned.stop - 1}")
    expected: dict[str, list[Any]] = {"key": [shards.key(index) for index in kept], "shard": [shard] * len(kept)}
    if "seed" in columns:
        expected["seed"] = [identity.seed_start + index for index in kept]
    for name, values in expected.items():
        if part.table[name].to_pylist() != values:
            raise CorruptError(f"{where}: its column {name} is not that of its indices")


def open_sealed(folder: Folder) -> Index:
    """The index of a sealed dataset. Every reader starts here.

    Raises: DatasetError if there is no dataset or it has no seal; CorruptError if the seal contradicts itself.
    """
    identity = read_claim(folder).identity
    many, names = num_shards(identity), len(canonical(identity.classes))
    try:
        data = folder.read(SEAL, schema.max_seal_bytes(many, names))
    except MissingError as error:
        raise DatasetError(
            f"{folder}: not finished ({SEAL} is missing); run the job that makes it again to complete it"
        ) from error
    if data.count(b"{") + data.count(b"[") > many + len(identity.classes or []) + 1000 + names:
        raise CorruptError(f"{folder}/{SEAL}: more entries than {many:,} shards have")  # they would fill the memory
    sealed = _json(data, f"{folder}/{SEAL}")
    try:
        schema.check_seal(sealed)
        records = tuple(ShardRecord(shard=number, **entry) for number, entry in enumerate(sealed["shards"]))
        index = Index(identity, records, sealed["files"], sealed["root"])
        agrees = data == canonical(seal_json(index)) + b"\n"
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{folder}/{SEAL}: not an index: {error}") from error
    if not agrees:
        raise CorruptError(f"{folder}/{SEAL}: contradicts itself or {CLAIM}; it was changed after the seal")
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
    """A sealed shard's samples in order, or only the selected ones. All decoding starts here.

    Raises: CorruptError or ShardError, naming the shard and the sample, for a tar that changed after the seal, and for
            too few or too many samples, samples of another shard or of an unknown class, and images that declare
            another size.
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
        expected = "sealed with" if index.chosen_N is None else "the selection has"
        raise CorruptError(f"{where}: {found:,} samples, {expected} {record.samples:,}")


def read_shard(folder: Folder, record: ShardRecord) -> bytes:
    """A shard's tar, checked against the seal. Raises CorruptError naming the tar."""
    return _checked(folder, record.tar, record.bytes, record.sha256)


def read_sealed_part(folder: Folder, record: ShardRecord) -> Part:
    """A shard's manifest rows, checked against the seal. Raises CorruptError naming the part."""
    return manifest.decode(
        _checked(folder, record.part, record.part_bytes, record.part_sha256), f"{folder}/{record.part}"
    )


def read_sealed_file(folder: Folder, index: Index, name: str) -> bytes:
    """A file beside the shards, checked against the seal. Raises CorruptError naming it."""
    return _checked(folder, name, None, index.files[name])


def check_files(folder: Folder, index: Index) -> None:
    """Check that every sealed file exists and is unchanged, and that no shard or part exists that is not sealed."""
    for name, sha256 in index.files.items():
        _checked(folder, name, None, sha256)
    sealed = {name for record in index.shards for name in (record.tar, record.part)}
    unsealed = sorted(({*_prefixed(folder, "shards")} | {*_prefixed(folder, "manifest")}) - sealed)
    if unsealed:
        raise CorruptError(f"{folder}/{unsealed[0]}: not in the seal")


def check_listed(folder: Folder, index: Index) -> None:
    """Check that every shard and part exists with its size, by two listings. Raises CorruptError."""
    if wrong := not_listed(folder, index.shards):
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CorruptError(
            f"{folder}/{wrong[0]}: missing, or of another size than was sealed{more}; to make it again, delete "
            f"{SEAL} and its part under manifest/, and start the same command again"
        )


def check_shard(folder: Folder, index: Index, record: ShardRecord) -> int:
    """Check one shard: both hashes, every sample of the tar against its row in the part, and every image.

    Returns: the number of samples, counted in the tar.
    Raises:  CorruptError naming file and sample.
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
            raise CorruptError(f"{where}: sample {row['key']} does not match its row in {record.part}")
        pixels(folder, index, sample)
    return len(found)


def pixels(folder: Folder, index: Index, sample: Sample) -> Pixels:
    """A sealed sample's image, decoded. Raises CorruptError naming shard and sample if it cannot be decoded."""
    try:
        image = images.decode(sample.image, index.image_shape[2])
        if image.shape != index.image_shape:
            raise ImageError(f"{'x'.join(map(str, image.shape))} pixels")
        return image
    except ImageError as error:
        tar = manifest.tar_name(sample.index // index.identity.shard_size)
        raise CorruptError(f"{folder}/{tar}: sample {shards.key(sample.index)}: its image is {error}") from error


def _copies(index: Index, owned: range) -> np.ndarray:
    """copies_S: how often each sample of a shard occurs: once, or as the selection says."""
    if index.chosen_N is None:
        return np.ones(len(owned), np.int64)
    start, stop = np.searchsorted(index.chosen_N, (owned.start, owned.stop))
    return np.bincount(index.chosen_N[start:stop] - owned.start, minlength=len(owned))


def seal_json(index: Index) -> dict[str, Any]:
    entries = []
    for record in index.shards:
        entry = asdict(record)
        del entry["shard"]  # its place in the list
        entries.append(entry)
    """The content of index.json."""
    return {
        "format": FORMAT,
        "samples": index.samples,
        "bytes": index.bytes,
        "classes": index.classes,
        "shards": entries,
        "files": index.files,
        "root": hashlib.sha256(canonical({"identity": index.identity.to_json(), "shards": entries})).hexdigest(),
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
        raise CorruptError(f"{folder}/{name}: changed after the seal (its sha256 differs)")
    return data


def not_listed(folder: Folder, records: Iterable[ShardRecord]) -> list[str]:
    """The shards and parts that are missing in the listings, or have another size there."""
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
