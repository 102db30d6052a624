"""Train a model's discriminator on, and score a synthetic dataset by it. The dataset stays as it is."""

import hashlib
from typing import Any

import numpy as np

from dcgan.arithmetic import Arithmetic
from jobs.cluster import actor_pool, connection
from jobs.cluster.connection import Pool
from jobs.cluster.probe import fingerprint, probe
from jobs.cluster.shard_worker import ShardWorker
from jobs.command import model_store
from jobs.command.errors import LostWorkError, UsageError
from jobs.command.progress import Progress
from jobs.scoring.settings import FEWEST, ScoreSettings
from pipelines.dataset import reader, scores, selection
from pipelines.dataset.identity import ImageFormat
from pipelines.dataset.layout import Index
from pipelines.dataset.schema import MAX_SELECTED
from pipelines.dataset.scores import Facts
from pipelines.storage.folder import Folder

ENDING = ".parquet"


def main(settings: ScoreSettings) -> None:
    if settings.model is not None:
        return _make_model(settings, Folder(settings.model))
    _score_dataset(settings, Folder(settings.dataset))


def _make_model(settings: ScoreSettings, place: Folder) -> None:
    config, classes = model_store.read_card(place)
    shape = (config.image_size, config.image_size, config.channels)
    _check_real(settings, shape, classes, f"--model {place}")
    output = Folder(settings.output or f"{place}-scored")
    if output.list():
        raise UsageError(f"--output {output}: there are files here; name a new folder")
    with connection.connect(None, settings.device, verbose=settings.verbose, wait_s=settings.wait_s) as pool:
        chosen, here = probe(pool, settings.precision, fingerprint, 1)
        _train_on(settings, place, ImageFormat(format="png"), output, chosen, pool)
    print(f"score: {output}: a model, computed with {here['dtype']} on {here['device']}")
    print(f"score: next: jobs/generate.py --model {output} --count 1e4")


def _score_dataset(settings: ScoreSettings, folder: Folder) -> None:
    index = reader.open_sealed(folder)
    output = settings.output or f"{folder}-scores{ENDING}"
    parent, name = selection.split(output)
    if index.identity.producer != "generate":
        raise UsageError(f"--dataset {folder}: it was ingested; only generated images can be told from real ones")
    if index.samples > MAX_SELECTED:
        raise UsageError(f"--dataset {folder}: {index.samples:,} images; at most {MAX_SELECTED:,} are possible")
    if output.startswith(f"{folder}/"):
        raise UsageError(f"--output {output}: this is inside the dataset, which is sealed; name another place")
    if not name.endswith(ENDING):
        raise UsageError(f"--output {output}: name a file that ends in {ENDING}; the new model is written beside it")
    if parent.exists(name):
        raise UsageError(f"--output {output}: a file is here, and scores never change; name another one")
    _check_real(settings, index.image_shape, index.classes, f"--dataset {folder}")
    scorer = Folder(f"{output.removesuffix(ENDING)}-model")
    with connection.connect(
        settings.workers, settings.device, verbose=settings.verbose, wait_s=settings.wait_s
    ) as pool:
        wanted = "bf16" if index.identity.arithmetic["dtype"] == "bfloat16" else "fp32"  # as the images were made
        chosen, here = probe(pool, wanted, fingerprint, 1)
        protocol = _train_on(settings, folder / model_store.IN_DATASET, index.identity.image, scorer, chosen, pool)
        logit_N = _score(folder, index, scorer, chosen, pool)
    facts = Facts(dataset=index.root, images=index.samples, protocol={**protocol, "arithmetic": here})
    data = scores.encode(facts, logit_N)
    parent.write(name, data)  # last: its presence means that the model is whole
    below = ", ".join(f"{share:.0%} below {np.quantile(logit_N, share):.2f}" for share in (0.1, 0.5, 0.9))
    print(f"score: calibrated logits of the synthetic images: {below}")
    print(f"score: {output}: {len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()[:12]}; the model: {scorer}")
    print(f"score: next: jobs/curate.py --dataset {folder} --scores {output} --rule drs")


def _check_real(settings: ScoreSettings, shape: tuple[int, int, int], classes: list[str] | None, what: str) -> None:
    """Raises UsageError for real images that this model cannot be compared with."""
    real = reader.open_sealed(Folder(settings.real))
    if real.image_shape != shape:
        sizes = ["x".join(map(str, one)) for one in (real.image_shape, shape)]
        raise UsageError(f"--real {settings.real} holds {sizes[0]}, but {what} holds {sizes[1]}")
    if classes and real.classes != classes:
        names = [", ".join(one or ["none"])[:60] for one in (real.classes, classes)]
        raise UsageError(f"--real {settings.real} has the classes {names[0]}, but {what} has {names[1]}")
    if real.samples < FEWEST:
        raise UsageError(f"--real {settings.real}: {real.samples:,} images; at least {FEWEST:,} are needed")


def _train_on(
    settings: ScoreSettings, place: Folder, image: ImageFormat, output: Folder, chosen: Arithmetic, pool: Pool
) -> dict[str, Any]:
    """Train in one actor, which publishes the model. Returns the protocol of its score."""
    plan = {name: getattr(settings, name) for name in ("images", "held_out", "measured", "seed")}
    places = {"place": place.url, "real": Folder(settings.real).url, "output": output.url}
    print(
        f"score: training on with {settings.images:,} real images and as many synthetic ones of other seeds", flush=True
    )
    arguments = {**places, "image": image, "chosen": chosen, **plan}
    (done,) = actor_pool.map_shards(_make_trainer, arguments, [0], pool)
    if done.error:
        raise LostWorkError(f"the discriminator was not trained on: {done.error}")
    fit = done.result["calibration"]
    print(
        f"score: AUC {fit['auc']:.4f} (0.5: chance; before {done.result['auc_before']:.4f}), Brier score "
        f"{fit['after']['brier']:.4f} (0.25), calibration error {fit['after']['error']:.4f}, on {fit['measured']:,} "
        "images of each kind that it did not learn from" + (" (the model did)" if fit["real"]["trained_on"] else "")
    )
    return {**done.result, **plan}


def _score(folder: Folder, index: Index, scorer: Folder, chosen: Arithmetic, pool: Pool) -> np.ndarray:
    """logit_N, calibrated, of all images in order. Raises LostWorkError."""
    found: dict[int, np.ndarray] = {}
    arguments = {"url": folder.url, "scorer": scorer.url, "chosen": chosen}
    with Progress("score", index.samples, "images") as progress:
        for done in actor_pool.map_shards(_make_scorer, arguments, [one.shard for one in index.shards], pool):
            if done.error:
                raise LostWorkError(f"{folder}: shard {done.shard:06d} could not be scored: {done.error}")
            found[done.shard] = np.array(done.result["logits"], np.float32)
            progress.update(sum(map(len, found.values())))
    return np.concatenate([found[one.shard] for one in index.shards])


def _make_trainer(**arguments: Any) -> ShardWorker:
    from jobs.scoring.worker import TrainOn  # imports torch, which this process does not need

    return TrainOn(**arguments)


def _make_scorer(**arguments: Any) -> ShardWorker:
    from jobs.scoring.worker import ScoreShard

    return ScoreShard(**arguments)
