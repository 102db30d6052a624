"""Select images of a synthetic dataset by their discriminator logits: a small file beside it, never a copy."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dcgan.evaluation.calibration import CalibrationError
from jobs.cluster import connection, real_scores
from jobs.command import model_store
from jobs.command.errors import UsageError
from jobs.command.progress import Progress
from jobs.selection import rules
from jobs.selection.rules import RuleResult, Scores
from jobs.selection.settings import CurateSettings
from pipelines.dataset import layout, reader, selection
from pipelines.dataset import scores as second_scores
from pipelines.dataset.layout import Index
from pipelines.dataset.manifest import ShardRecord
from pipelines.dataset.schema import MAX_SELECTED
from pipelines.dataset.selection import Facts
from pipelines.errors import CorruptError
from pipelines.storage.folder import Folder

_READERS = 8
_PRINTED = 20  # classes


def main(settings: CurateSettings) -> None:
    folder = Folder(settings.dataset)
    index = reader.open_sealed(folder)
    if index.identity.producer != "generate":
        raise UsageError(
            f"--dataset {folder}: it was ingested and has no scores; only generated images can be selected"
        )
    if index.samples > MAX_SELECTED:
        raise UsageError(f"--dataset {folder}: {index.samples:,} images; at most {MAX_SELECTED:,} are possible")
    output = settings.output or f"{folder}-{settings.rule}.parquet"
    if output.startswith(f"{folder}/"):
        raise UsageError(f"--output {output}: this is inside the dataset, which is sealed; name another place")
    second = second_scores.read(settings.scores, index.root) if settings.scores else None
    real_N, about = None, dict[str, Any]()
    if settings.rule == "drs" and second is None:
        real_N, about = _real_logits(settings, folder, index)
    scores = read_scores(folder, index)
    if second is not None:
        scores, about = scores._replace(logit_N=second.logit_N), {"scores": second.facts.protocol}
    result = _choose(settings, scores, real_N)
    if not result.selected_N.any():
        hint = "; use a lower --min-logit" if settings.rule == "threshold" else ""
        raise UsageError(f"{folder}: no image is selected; the largest logit is {scores.logit_N.max():.4g}{hint}")
    classes = rules.counts(scores.label_N, result.selected_N)
    facts = Facts(
        dataset=index.root,
        rule=settings.rule,
        parameters={**result.parameters, **({"scores": second.digest} if second else {})},
        images=index.samples,
        classes=classes,
        report={**result.report, **result.columns, **about},
    )
    data = selection.encode(facts, scores.index_N[result.selected_N])
    new = _publish(output, data)
    _print(folder, index, facts, result)
    digest = selection.decode(data, output).digest
    print(f"curate: {output}: {len(data):,} bytes, sha256 {digest[:12]}{'' if new else '; it existed already'}")
    print(f"curate: next: jobs/evaluate.py --fake {folder} --selection {output}")
    print(f"curate:   or: jobs/train.py --data {folder} --selection {output} --run URL")


def read_scores(folder: Folder, index: Index) -> Scores:
    """Read the scores of all images, and check them. Raises CorruptError for rows that do not match the seal."""

    def read(record: ShardRecord) -> Scores:
        table = reader.read_sealed_part(folder, record).table
        if "logit" not in table.column_names:
            raise CorruptError(f"{folder}/{record.part}: no logits, though its dataset was generated")
        columns = [table[name] for name in ("index", "label", "logit")]
        scores = Scores(columns[0].to_numpy(), columns[1].fill_null(-1).to_numpy(), columns[2].to_numpy())
        owned = layout.shard_range(index.identity, record.shard)
        in_order = np.array_equal(scores.index_N, owned)
        known = np.all((scores.label_N >= first) & (scores.label_N < max(1, len(index.classes or [])) + first))
        if not in_order or not known or not np.all(np.isfinite(scores.logit_N)):
            raise CorruptError(
                f"{folder}/{record.part}: its rows are not the indices {owned.start} to {owned.stop - 1}, each with a "
                "class of the dataset and a finite logit"
            )
        return scores

    first = 0 if index.classes else -1
    found, count = [], 0
    with ThreadPoolExecutor(_READERS) as readers, Progress("curate", index.samples, "rows") as progress:
        for scores in readers.map(read, index.shards):
            found.append(scores)
            count += len(scores.index_N)
            progress.update(count)
    return Scores(*(np.concatenate(columns) for columns in zip(*found, strict=True)))


def _choose(settings: CurateSettings, scores: Scores, real_N: np.ndarray | None) -> RuleResult:
    if settings.rule == "threshold":
        return rules.threshold(scores, settings.min_logit)
    if settings.rule == "top":
        return rules.top(scores, settings.share)
    try:
        return rules.drs(scores, real_N, settings.gamma, settings.seed)
    except CalibrationError as error:
        raise UsageError(f"--rule drs: {error}; nothing was selected") from error


def _real_logits(settings: CurateSettings, folder: Folder, index: Index) -> tuple[np.ndarray, dict[str, Any]]:
    """The logits of real images in order, and facts about them for the selection's report."""
    if settings.holdout is None:
        raise UsageError(
            "--rule drs needs --holdout: a dataset of real images that the model was not trained on, as "
            "jobs/ingest.py --holdout makes one"
        )
    holdout = Folder(settings.holdout)
    real = reader.open_sealed(holdout)
    if real.image_shape != index.image_shape:
        sizes = ["x".join(map(str, one.image_shape)) for one in (real, index)]
        raise UsageError(f"--holdout {holdout} holds {sizes[0]}, but --dataset {folder} holds {sizes[1]}")
    if index.classes and real.classes != index.classes:
        names = [", ".join(one.classes or ["none"])[:60] for one in (real, index)]
        raise UsageError(f"--holdout {holdout} has the classes {names[0]}, but --dataset {folder} has {names[1]}")
    model = model_store.load_copy(folder / model_store.IN_DATASET, index.identity.model)
    trained_on = model.provenance.get("data") == real.root
    if trained_on:
        print(
            f"curate: the model was trained on --holdout {holdout}: its discriminator knows these images, so the "
            "calibration is too optimistic",
            flush=True,
        )
    with connection.connect(
        settings.workers, settings.device, verbose=settings.verbose, wait_s=settings.wait_s
    ) as pool:
        logit_N, here = real_scores.first_logits(folder, index, holdout, real, settings.images, pool, "curate")
    about = {"real": {"root": real.root, "images": len(logit_N), "trained_on": trained_on}, "scored_by": here}
    return logit_N, about


def _publish(output: str, data: bytes) -> bool:
    """Write the selection, if it is new. Raises UsageError if another one is here: runs may have been trained on it."""
    parent, name = selection.split(output)
    if not parent.exists(name):
        parent.write(name, data)
        return True
    if parent.read(name, len(data) + 1) != data:
        raise UsageError(f"--output {output}: another file is here, and a selection never changes; name another file")
    return False


def _print(folder: Folder, index: Index, facts: Facts, result: RuleResult) -> None:
    """Print the numbers of selected images, by class if there are few, and the parameters of the rule."""
    report, taken = facts.report, int(result.selected_N.sum())
    if "calibration" in report:
        _print_calibration(report)
    print(
        f"{'class':<16}{'images':>10}{'selected':>10}{'share':>9}" + "".join(f"{name:>14}" for name in result.columns)
    )
    for row, one in enumerate(facts.classes[:_PRINTED]):
        name = "all" if one["label"] is None else (index.classes or [])[one["label"]][:15]
        numbers = "".join(f"{values[row]:>14.4g}" for values in result.columns.values())
        share = (one["taken"] or 0) / (one["of"] or 1)
        print(f"{name:<16}{one['of']:>10,}{one['taken']:>10,}{share:>9.1%}{numbers}")
    if len(facts.classes) > _PRINTED:
        print(f"curate: and {len(facts.classes) - _PRINTED} more classes, in the file's footer")
    if report.get("tied_left_out"):
        print(
            f"curate: {report['tied_left_out']:,} images tie with the last ones selected: the lowest keys are selected"
        )
    settings = ", ".join(f"{name} {value:g}" for name, value in result.parameters.items())
    settings += f", scores {str(facts.parameters['scores'])[:12]}" if "scores" in facts.parameters else ""
    share = taken / facts.images
    print(f"curate: {folder}: {facts.rule} ({settings}): {taken:,} of {facts.images:,} images selected ({share:.1%})")
    if facts.rule == "drs":
        print(f"curate: acceptance rate {report['acceptance']:.4f}, expected {report['expected_acceptance']:.4f}")


def _print_calibration(report: Mapping[str, Any]) -> None:
    fit, real = report["calibration"], report["real"]
    print(
        f"curate: calibrated logit = {fit['slope']:.4g} x logit {fit['intercept']:+.4g}, fitted to {fit['fitted']:,} "
        f"real and as many synthetic images, measured on {fit['measured']:,} others of each"
        + (" (the model was trained on all real images)" if real["trained_on"] else "")
    )
    print(f"{'measure':<34}{'before':>10}{'after':>10}")
    for name, caption in (("brier", "Brier score (0.25: chance)"), ("error", "calibration error")):
        print(f"{caption:<34}{fit['before'][name]:>10.4f}{fit['after'][name]:>10.4f}")
    print(f"{'AUC (0.5: chance)':<34}{fit['auc']:>10.4f}{fit['auc']:>10.4f}")
