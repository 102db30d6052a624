"""How well the manifest's score tells real images from synthetic ones, and whether it is the probability it claims."""

from collections.abc import Mapping
from dataclasses import asdict
from itertools import accumulate
from typing import Any

import numpy as np

from dcgan.evaluation import calibration
from jobs.cluster import real_scores
from jobs.cluster.connection import Pool
from pipelines.dataset import manifest, reader
from pipelines.dataset.layout import Index
from pipelines.storage.folder import Folder


def measure(
    folders: Mapping[str, Folder], indexes: Mapping[str, Index], images: int, pool: Pool
) -> dict[str, Any] | None:
    """The `score` of evaluation.json, or None for a dataset without scores.

    Real images are the first ones of the holdout, else of the real dataset, which the discriminator was trained on.
    Synthetic ones are the first of the whole dataset, as many; a selection changes nothing.
    """
    role = "holdout" if "holdout" in folders else "real"
    fake, real = reader.open_sealed(folders["fake"]), indexes[role]
    if fake.identity.producer != "generate" or (fake.classes and fake.classes != real.classes):
        return None
    images = min(images, real.samples, fake.samples)
    real_N, _ = real_scores.first_logits(folders["fake"], fake, folders[role], real, images, pool, "evaluate")
    ends = accumulate(record.samples for record in fake.shards)
    needed = [one for one, end in zip(fake.shards, ends, strict=True) if end - one.samples < images]
    parts = [reader.read_sealed_part(folders["fake"], record) for record in needed]
    fake_N = np.concatenate([part.table["logit"].to_numpy() for part in parts])[:images]
    line = parts[0].calibration
    probability_N = manifest.sigmoid(np.concatenate([real_N, fake_N]), line).astype(np.float64)
    is_real_N = np.repeat([1.0, 0.0], images)
    fit = calibration.measure_fit(probability_N, is_real_N)
    return {
        "against": role,
        "images": images,
        "calibrated": line != manifest.NONE,
        "auc": calibration.area(real_N, fake_N),
        "brier": fit.brier,
        "calibration_error": fit.error,
        "reliability": [asdict(one) for one in calibration.reliability(probability_N, is_real_N)],
    }
