#!/usr/bin/env python3
"""Check every byte of a sealed dataset; make some of its images again and compare the pixels."""

if __name__ == "__main__":
    from jobs import signals

    signals.arm()

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from dcgan import arithmetic
from dcgan.arithmetic import Arithmetic
from dcgan.sampling import Sampler
from jobs import against, cluster, generate, models
from jobs.against import Comparison, Listing, Reading
from jobs.cluster import Done, Pool
from jobs.progress import Progress
from jobs.settings import ClusterSettings, Number, Url, UsageError, run
from pipelines import dataset, images, manifest
from pipelines.dataset import CorruptError, Index
from pipelines.storage import Folder


class VerifySettings(ClusterSettings):
    """What `jobs/verify.py` takes."""

    goes_on: ClassVar[bool] = False
    command: ClassVar[str] = "verify"
    about: ClassVar[str] = (
        "Check that a dataset is what was sealed: every hash, count and index. Make its images again, if it was\n"
        "generated; compare them with their source, if it was ingested."
    )
    examples: ClassVar[tuple[str, ...]] = (
        "jobs/verify.py",
        "jobs/verify.py --dataset s3://bucket/faces-1m --regenerate 256",
        "jobs/verify.py --dataset s3://bucket/pictures --against ~/pictures",
    )

    dataset: Url = Field("{root}/synthetic", description="the dataset")
    regenerate: Number = Field(
        0, ge=0, le=10**7, description="how many images to make again from their rows, spread evenly"
    )
    against: str | None = Field(
        None, description="the source of an ingested dataset: read it again and compare every image and label"
    )
    workers: Number | None = Field(None, ge=1, le=10_000, description="actors; default: one a CPU")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where images are made again")


class VerifyShard:
    """An actor's work: check one shard a call, make some of its images again, compare all of them with the source."""

    def __init__(self, url: str, regenerate: int, chosen: Arithmetic | None, how: Reading | None = None) -> None:
        self.folder = Folder(url)
        self.index = dataset.open_sealed(self.folder)
        self.regenerate = regenerate
        self.maker = Maker(self.folder, self.index, chosen) if chosen else None
        self.comparison = Comparison(self.folder, self.index, how) if how else None

    def __call__(self, shard: int) -> dict[str, Any]:
        record = self.index.shards[shard]
        samples = dataset.check_shard(self.folder, self.index, record)
        result: dict[str, Any] = {"samples": samples, "regenerated": 0, "exact": 0, "furthest": 0}
        chosen = _chosen(self.index, shard, self.regenerate)
        if self.maker and chosen:
            result |= self.maker.compare(shard, chosen)
        if self.comparison:
            result |= self.comparison.compare(shard)
        return result


class Maker:
    """Makes images again from their rows, by the dataset's own copy of its model."""

    def __init__(self, folder: Folder, index: Index, chosen: Arithmetic) -> None:
        self.folder, self.index = folder, index
        model = models.load_named(folder / generate.MODEL, index.identity["model"])
        self.sampler = Sampler(model, chosen, index.identity["batch"])
        stored = index.identity["arithmetic"]
        here = arithmetic.fingerprint(chosen)
        equal = all(stored.get(name) == here[name] for name in here)
        self.tolerance = 0 if equal else arithmetic.grey_tolerance(stored)

    def compare(self, shard: int, positions: list[int]) -> dict[str, Any]:
        """Make some samples of a shard again. Raises CorruptError for a pixel, score, seed or label that is wrong."""
        record = self.index.shards[shard]
        rows = dataset.read_sealed_part(self.folder, record).table.take(positions).to_pylist()
        tar = dataset.read_shard(self.folder, record)
        channels = self.index.image_shape[2]
        exact = furthest = 0
        for row in rows:
            stored = images.decode(tar[row["offset"] : row["offset"] + row["size"]], channels)
            labels = generate.labels_of(self.index.identity, range(row["index"], row["index"] + 1))
            where = f"{self.folder}/{record.tar}: sample {row['key']}"
            if row["seed"] != self.index.identity["seed_start"] + row["index"]:
                raise CorruptError(f"{where}: its seed is {row['seed']}")
            if row["label"] != (None if labels is None else int(labels[0])):
                raise CorruptError(f"{where}: its label is {row['label']}")
            made = self.sampler.sample(range(row["seed"], row["seed"] + 1), labels)
            difference = self._difference(made.images_NHWC[0], stored)
            if difference > self.tolerance:
                raise CorruptError(
                    f"{where}: made again from seed {row['seed']} it differs by {difference} of 255 grey levels"
                )
            self.compare_score(row, stored, labels, where)
            exact += difference == 0
            furthest = max(furthest, difference)
        return {"regenerated": len(rows), "exact": exact, "furthest": furthest}

    def _difference(self, made: np.ndarray, stored: np.ndarray) -> int:
        """The furthest pixel, in grey levels, once the made image has gone through the dataset's format too."""
        image = self.index.identity["image"]
        if image["format"] != "png":
            made = images.decode(images.encode(made, image["format"], image["quality"]), made.shape[2])
        return int(np.abs(made.astype(int) - stored.astype(int)).max())

    def compare_score(self, row: dict[str, Any], stored: np.ndarray, labels: np.ndarray | None, where: str) -> None:
        """Raises CorruptError for a row whose logit or score is not what the discriminator says of its image."""
        logit = self.sampler.score(stored[None], labels)
        slack = arithmetic.logit_tolerance(self.index.identity["arithmetic"]) if self.tolerance else 0.0
        score = manifest.sigmoid(logit)[0]
        # Not `> slack`: NaN is never greater.
        if not (abs(float(logit[0]) - row["logit"]) <= slack and abs(float(score) - row["score"]) <= slack):
            raise CorruptError(
                f"{where}: its logit is {row['logit']:.6f} and its score {row['score']:.6f}; "
                f"the discriminator gives {float(logit[0]):.6f} and {float(score):.6f}"
            )


def _chosen(index: Index, shard: int, regenerate: int) -> list[int]:
    """Which of a shard's samples are made again: `regenerate` of the whole dataset, evenly spread."""
    total = index.samples
    owned = dataset.shard_range(index.identity, shard)
    number = min(regenerate, total)
    # sample floor(i * total / number) for i in range(number); those that this shard owns
    first = -(-owned.start * number // total)
    last = -(-owned.stop * number // total)
    return [i * total // number - owned.start for i in range(first, last)]


def main(settings: VerifySettings) -> None:
    folder = Folder(settings.dataset)
    index = dataset.open_sealed(folder)
    synthetic = index.identity["producer"] == "generate"
    if settings.regenerate and not synthetic:
        raise UsageError(
            f"--regenerate {settings.regenerate}: {folder} was ingested; only generated images can be made again"
        )
    how = None if settings.against is None else against.reading(folder, settings.against)
    listing = None if how is None else Listing(how)
    dataset.check_files(folder, index)
    pool = cluster.connect(
        settings.workers,
        settings.device if settings.regenerate else "cpu",
        verbose=settings.verbose,
        wait_s=settings.wait_s,
    )
    chosen = None
    if settings.regenerate:
        wanted = "bf16" if index.identity["arithmetic"]["dtype"] == "bfloat16" else "fp32"
        chosen, _ = cluster.probe(pool, wanted)
    arguments = {"url": folder.url, "regenerate": settings.regenerate, "chosen": chosen, "how": how}
    results = _check_shards(folder, index, arguments, pool)
    samples = sum(done.result["samples"] for done in results)
    if samples != index.samples:
        raise CorruptError(f"{folder}: {samples:,} samples counted, {index.samples:,} sealed")
    print(
        f"verify: {folder}: {samples:,} images in {len(index.shards):,} shards, every byte as sealed; "
        f"root {index.root[:12]}"
    )
    if settings.regenerate:
        made, exact, furthest = (
            sum(done.result["regenerated"] for done in results),
            sum(done.result["exact"] for done in results),
            max(done.result["furthest"] for done in results),
        )
        rest = (
            ""
            if exact == made
            else f"; the furthest pixel is off by {furthest} of 255 (another machine or library than it was made with)"
        )
        print(f"verify: {made:,} images made again from their rows: {exact:,} equal in every pixel and score{rest}")
    if listing is not None:
        _compare(folder, index, listing, results)


def _compare(folder: Folder, index: Index, listing: Listing, results: list[Done]) -> None:
    """Tell what the comparison with the source found. Raises CorruptError if the dataset is not the source's."""
    found = [done.result for done in sorted(results, key=lambda done: done.shard)]
    left_out = against.missing(listing, (dataset.read_sealed_part(folder, record) for record in index.shards))
    wrong = against.sum_up([*(one["wrong"] for one in found), left_out], index.samples, listing.url)
    if wrong:
        raise CorruptError(f"{folder}: {wrong}")
    furthest, allowed = max(one["furthest"] for one in found), against.tolerance(index.identity)
    rest = (
        f"; other versions of OpenCV, Pillow or libjpeg made it, so that a pixel may be off by {allowed} of 255: the "
        f"furthest is by {furthest}"
        if allowed
        else ""
    )
    equal = sum(one["equal"] for one in found)
    print(f"verify: {equal:,} of {index.samples:,} images and labels equal to {listing.url}{rest}")


def _check_shards(folder: Folder, index: Index, arguments: dict[str, Any], pool: Pool) -> list[Done]:
    """Every shard's result. Raises CorruptError with the first shards that are not as sealed."""
    results: list[Done] = []
    with Progress("verify", index.samples, "images") as progress:
        count = 0
        for done in cluster.map_shards(VerifyShard, arguments, range(len(index.shards)), pool):
            results.append(done)
            count += done.result.get("samples", 0)
            progress.update(count)
    bad = sorted((done for done in results if done.error), key=lambda done: done.shard)
    if bad:
        more = f" (and {len(bad) - 1} more shards)" if len(bad) > 1 else ""
        raise CorruptError(bad[0].error.partition(": ")[2] + more)
    return results


if __name__ == "__main__":
    run(main, VerifySettings)
