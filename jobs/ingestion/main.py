"""Turn images from anywhere into a sealed dataset."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import PIL.features
import pyarrow

from dcgan.families.family import IMAGE_SIZES
from jobs.cluster import connection
from jobs.cluster.connection import Pool
from jobs.cluster.shard_job import ShardJob, run_shard_job
from jobs.command.errors import LostWorkError, UsageError
from jobs.command.scratch import Scratch
from jobs.ingestion import duplicate_search
from jobs.ingestion.duplicate_search import DatasetInProgress
from jobs.ingestion.rejects import check_rejects, count_by_reason, print_balance
from jobs.ingestion.settings import IngestSettings
from jobs.ingestion.worker import IngestShard
from pipelines import images
from pipelines.dataset import attribution, layout, writer
from pipelines.dataset.attribution import Attribution
from pipelines.dataset.identity import Dedupe, Holdout, ImageFormat, IngestIdentity, Limits
from pipelines.ingest import catalogue, duplicates
from pipelines.ingest.catalogue import Catalogue
from pipelines.ingest.relabel import Relabelling
from pipelines.sources import registry
from pipelines.sources.base import Choice, Item, Source
from pipelines.sources.registry import Origin
from pipelines.storage.folder import Folder


def main(settings: IngestSettings) -> None:
    kind = registry.kind_of(settings.source) if settings.kind == "auto" else settings.kind
    choice = Choice(
        settings.split, settings.base, settings.image_column, settings.label_column, settings.max_image_bytes
    )
    origin = Origin(settings.source, kind, choice)
    source = registry.open_source(origin.url, origin.kind, origin.choice)
    relabelling = Relabelling(_read_relabel(settings.relabel))
    with Scratch("ingest") as scratch:
        kept, held = catalogue.plan(
            _relabelled(source, relabelling, settings),
            settings.source,
            relabelling.classes(source),
            settings.labels == "auto",
            settings.seed,
            settings.holdout,
            Path(scratch),
        )
        found, left_out = len(kept) + len(held or ()), sum(source.tally.ignored.values())
        if source.tally.listed != found + left_out:
            raise LostWorkError(
                f"{settings.source}: {source.tally.listed:,} listed, but {found:,} images and {left_out:,} ignored: "
                "some are lost without a word, which is a fault of ganmill's; please report it"
            )
        _make(settings, origin, source, relabelling.names, kept, held)


def _make(
    settings: IngestSettings,
    origin: Origin,
    source: Source,
    relabel: Mapping[str, str | None],
    kept: Catalogue,
    held: Catalogue | None,
) -> None:
    """Claim, compare if asked, ingest and seal: the dataset, and the holdout after it."""
    parts = _claim(settings, origin, source, relabel, kept, held)
    first = parts[0][1]
    print(
        f"ingest: {' and '.join(f'{len(part):,}' for _, _, part in parts)} images ({origin.kind}), "
        f"{len(first.classes or []) or 'no'} classes, to {first.image_size}x{first.image_size}x{first.channels} in "
        f"{' and '.join(f'{layout.num_shards(identity):,}' for _, identity, _ in parts)} shards",
        flush=True,
    )
    with connection.connect(settings.workers, "cpu", verbose=settings.verbose, wait_s=settings.wait_s) as pool:
        taken = _take(settings, origin, parts, pool)
    for folder, _, _ in parts:
        duplicate_search.discard_scratch(folder)
    print_balance(source.tally.listed, taken, sum(len(part) for _, _, part in parts) - taken, source.tally.ignored)
    print(f"ingest: next: jobs/train.py --data {parts[0][0]}")


def _take(settings: IngestSettings, origin: Origin, parts: list[DatasetInProgress], pool: Pool) -> int:
    """Find duplicates if asked, then make each dataset. Returns the number of images in all."""
    unsealed = [part for part in parts if layout.SEAL not in part[0].list()]
    # A sealed dataset is compared too: its images exclude their duplicates from the other one.
    compared = parts if unsealed and settings.dedupe != "none" else []
    for folder, _, part in compared or unsealed:
        part.publish(folder, settings.shard_size)
    if compared:
        duplicate_search.find_duplicates(compared, origin, pool)
    return sum(_ingest_part(settings, origin, folder, identity, pool) for folder, identity, _ in parts)


def _claim(
    settings: IngestSettings,
    origin: Origin,
    source: Source,
    relabel: Mapping[str, str | None],
    kept: Catalogue,
    held: Catalogue | None,
) -> list[DatasetInProgress]:
    """Claim the output, and the holdout's where there is one."""
    listing = {"listed": source.tally.listed, "ignored": source.tally.ignored}
    found = registry.attribution(origin, source).over(Attribution(date=attribution.today()))
    outputs = [settings.output, settings.holdout_output or f"{settings.output}-holdout"]
    parts: list[DatasetInProgress] = []
    for output, part in zip(outputs, (kept, held), strict=True):
        if part is None:
            continue
        if not len(part):
            raise UsageError(
                f"--holdout {settings.holdout}: with so few images one of the two datasets is empty; use another share"
            )
        folder, identity = Folder(output), _identity(settings, source, relabel, part, kept)
        writer.check_size(identity.count, identity.shard_size, identity.image_size, identity.channels)
        writer.claim(folder, identity, settings.stored(), {"listing": listing}, settings.asked(), found)
        parts.append((folder, identity, part))
    return parts


def _ingest_part(settings: IngestSettings, origin: Origin, folder: Folder, identity: IngestIdentity, pool: Pool) -> int:
    """Make one dataset, and print what it holds. Returns the number of its images."""
    job = ShardJob(
        command="ingest",
        folder=folder,
        identity=identity,
        worker=IngestShard,
        arguments={"output": folder.url, "origin": origin},
        check=lambda rejects: check_rejects(rejects, settings.max_rejects, folder, identity.count),
    )
    result = run_shard_job(job, pool)
    index = result.index
    assert index is not None, "ingest has no limit"
    for reason, number in count_by_reason(result.rejects).items():
        print(f"ingest: {number:,} not taken: {reason} (each with its source in {folder}/{layout.REJECTS})")
    print(f"ingest: {folder}: {index.samples:,} images, {index.bytes / 1e6:,.1f} MB, sealed; root {index.root[:12]}")
    return index.samples


def _identity(
    settings: IngestSettings, source: Source, relabel: Mapping[str, str | None], part: Catalogue, kept: Catalogue
) -> IngestIdentity:
    """All that decides the dataset's bytes."""
    size, channels = _shape(settings, source)
    dedupe = None
    if settings.dedupe != "none":
        near = {"bits": duplicates.NEAR_BITS, "levels": duplicates.NEAR_LEVELS} if settings.dedupe == "near" else {}
        dedupe = Dedupe(mode=settings.dedupe, against=None if part is kept else kept.digest, **near)
    holdout = None
    if settings.holdout:
        holdout = Holdout(share=settings.holdout, part="kept" if part is kept else "held out")
    revision: dict[str, Any] = {"reader": source.revision} if source.revision > 1 else {}
    return IngestIdentity(
        producer="ingest",
        source=part.digest,
        count=len(part),
        shard_size=settings.shard_size,
        seed=settings.seed,
        image=ImageFormat(format="png", resize=settings.resize, background=images.colour(settings.background)),
        image_size=size,
        channels=channels,
        classes=part.classes,
        relabel=dict(relabel) or None,
        dedupe=dedupe,
        holdout=holdout,
        limits=Limits(bytes=settings.max_image_bytes, pixels=settings.max_image_pixels),
        arithmetic={
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "pillow": PIL.__version__,
            "jpeg": str(PIL.features.version("jpg")),
            "pyarrow": pyarrow.__version__,
        },
        **revision,
    )


def _shape(settings: IngestSettings, source: Source) -> tuple[int, int]:
    """The dataset's image size and channels: as asked, else the source's own, else 64x64 in colour."""
    own_size, own_channels = source.shape or (64, 3)
    size = settings.image_size or (own_size if own_size in IMAGE_SIZES else 64)
    if size not in IMAGE_SIZES:
        raise UsageError(f"--image-size {size}: must be one of {', '.join(map(str, IMAGE_SIZES))}")
    return size, settings.channels or own_channels


def _read_relabel(path: Path | None) -> dict[str, str | None]:
    if path is None:
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--relabel {path}: cannot be read: {error}") from error
    if not isinstance(value, dict) or not all(new is None or isinstance(new, str) for new in value.values()):
        raise UsageError(f'--relabel {path}: must be a JSON object of class names, as {{"tabby": "cat", "car": null}}')
    return value


def _relabelled(source: Source, relabelling: Relabelling, settings: IngestSettings) -> Iterator[Item]:
    yield from relabelling.items(source)
    if relabelling.unused:
        raise UsageError(f"--relabel {settings.relabel}: no image of class {relabelling.unused[0]!r}; check the name")
