"""Check every byte of a sealed dataset; make some of its images again and compare the pixels."""

from typing import Any

from jobs.cluster import actor_pool, connection
from jobs.cluster.connection import Pool
from jobs.cluster.probe import fingerprint, probe
from jobs.cluster.shard_worker import ShardOutcome, ShardWorker
from jobs.command.errors import UsageError
from jobs.command.progress import Progress
from jobs.verification import source_comparison
from jobs.verification.settings import VerifySettings
from jobs.verification.source_comparison import SourceListing
from pipelines.dataset import reader
from pipelines.dataset.layout import Index
from pipelines.errors import CorruptError
from pipelines.storage.folder import Folder


def main(settings: VerifySettings) -> None:
    folder = Folder(settings.dataset)
    index = reader.open_sealed(folder)
    synthetic = index.identity.producer == "generate"
    if settings.regenerate and not synthetic:
        raise UsageError(
            f"--regenerate {settings.regenerate}: {folder} was ingested; only generated images can be made again"
        )
    how = None if settings.against is None else source_comparison.source_reading(folder, settings.against)
    listing = None if how is None else SourceListing(how)
    reader.check_files(folder, index)
    device = settings.device if settings.regenerate else "cpu"
    with connection.connect(settings.workers, device, verbose=settings.verbose, wait_s=settings.wait_s) as pool:
        chosen = None
        if settings.regenerate:
            wanted = "bf16" if index.identity.arithmetic["dtype"] == "bfloat16" else "fp32"
            chosen, _ = probe(pool, wanted, fingerprint, min(pool.workers, len(index.shards)))
        arguments = {"url": folder.url, "regenerate": settings.regenerate, "chosen": chosen, "how": how}
        results = _check_shards(folder, index, arguments, pool)
    samples = sum(outcome.result["samples"] for outcome in results)
    if samples != index.samples:
        raise CorruptError(f"{folder}: {samples:,} samples counted, {index.samples:,} sealed")
    print(
        f"verify: {folder}: {samples:,} images in {len(index.shards):,} shards, every byte as sealed; "
        f"root {index.root[:12]}"
    )
    if settings.regenerate:
        _print_regenerated(results)
    if listing is not None:
        _compare(folder, index, listing, results)


def _make_worker(**arguments: Any) -> ShardWorker:
    from jobs.verification.worker import VerifyShard  # imports torch, which this process does not need

    return VerifyShard(**arguments)


def _print_regenerated(results: list[ShardOutcome]) -> None:
    made, exact = (sum(outcome.result[name] for outcome in results) for name in ("regenerated", "exact"))
    furthest = max(outcome.result["furthest"] for outcome in results)
    note = f"; the furthest pixel is off by {furthest} of 255 (another machine or library than it was made with)"
    print(
        f"verify: {made:,} images made again from their rows: {exact:,} equal in every pixel and score"
        f"{'' if exact == made else note}"
    )


def _compare(folder: Folder, index: Index, listing: SourceListing, results: list[ShardOutcome]) -> None:
    """Report the comparison with the source. Raises CorruptError if they differ."""
    found = [outcome.result for outcome in sorted(results, key=lambda outcome: outcome.shard)]
    left_out = source_comparison.missing(listing, (reader.read_sealed_part(folder, record) for record in index.shards))
    wrong = source_comparison.summarise([*(one["wrong"] for one in found), left_out], index.samples, listing.url)
    if wrong:
        raise CorruptError(f"{folder}: {wrong}")
    furthest, allowed = max(one["furthest"] for one in found), source_comparison.tolerance(index.identity)
    note = (
        f"; other versions of OpenCV, Pillow or libjpeg made it, so that a pixel may be off by {allowed} of 255: the "
        f"furthest is by {furthest}"
    )
    equal = sum(one["equal"] for one in found)
    print(f"verify: {equal:,} of {index.samples:,} images and labels equal to {listing.url}{note if allowed else ''}")


def _check_shards(folder: Folder, index: Index, arguments: dict[str, Any], pool: Pool) -> list[ShardOutcome]:
    """Check every shard. Raises CorruptError for the first one that differs from the seal."""
    results: list[ShardOutcome] = []
    with Progress("verify", index.samples, "images") as progress:
        count = 0
        for outcome in actor_pool.map_shards(_make_worker, arguments, range(len(index.shards)), pool):
            results.append(outcome)
            count += outcome.result.get("samples", 0)
            progress.update(count)
    bad = sorted((outcome for outcome in results if outcome.error), key=lambda outcome: outcome.shard)
    if bad:
        more = f" (and {len(bad) - 1} more shards)" if len(bad) > 1 else ""
        raise CorruptError(bad[0].error.partition(": ")[2] + more)
    return results
