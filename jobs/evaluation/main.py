"""Compare a synthetic dataset with a real one: fidelity, diversity, usefulness, and copies of training images."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np

from dcgan.evaluation import classifier
from dcgan.evaluation.distances import NEIGHBOURS
from dcgan.evaluation.features import LITE, Features, FeaturesError
from jobs.cluster import connection
from jobs.command import feature_weights
from jobs.command.errors import UsageError
from jobs.evaluation import accuracy_score, feature_pass, metrics, mode_count, report, score_quality
from jobs.evaluation.accuracy_score import ClassifierTraining
from jobs.evaluation.feature_pass import DatasetFeatures, PassPlan
from jobs.evaluation.metrics import ClassifierTest, Row, Sample
from jobs.evaluation.mode_count import ModeCount
from jobs.evaluation.report import Pair
from jobs.evaluation.settings import FEWEST, EvaluateSettings
from pipelines import images
from pipelines.dataset import claim, layout, reader, selection, writer
from pipelines.dataset.layout import Index
from pipelines.images import Pixels
from pipelines.loading import loader
from pipelines.pages.engine import number
from pipelines.storage.folder import Folder

RESULT = "evaluation.json"
REPORT = "evaluation.html"
PAIRS = 12
GRID = 10  # rows and columns of the pictures side by side


def main(settings: EvaluateSettings) -> None:
    folders = {"real": Folder(settings.real), "fake": Folder(settings.fake)}
    if settings.holdout:
        folders["holdout"] = Folder(settings.holdout)
    selections = {"fake": settings.selection} if settings.selection else {}
    beside = (settings.selection or settings.fake).removesuffix(".parquet")
    output = Folder(settings.output or f"{beside}-evaluation")
    if output.exists(layout.CLAIM):
        raise UsageError(f"--output {output}: a dataset is here; name another folder")
    indexes = {role: selection.open_through(folder, selections.get(role)) for role, folder in folders.items()}
    classes = _common(folders, indexes)
    trainings = _classifier_trainings(settings, folders, indexes, len(classes))
    plan = PassPlan(
        {role: folder.url for role, folder in folders.items()},
        settings.features or _default_features(indexes["real"].image_shape),
        _weights(settings, trainings, output),
        settings.images,
        settings.seed,
        len(classes),
        selections,
    )
    if plan.features != "classifier":
        _features(plan, indexes["real"])  # an error in the features shows before Ray starts
    with connection.connect(settings.workers, "cpu", verbose=settings.verbose, wait_s=settings.wait_s) as pool:
        wrong = accuracy_score.train_classifiers(trainings, output, pool)
        protocol = _protocol(settings, plan, folders, indexes, _features(plan, indexes["real"]))
        key = hashlib.sha256(claim.canonical(protocol)).hexdigest()[:16]
        measured = feature_pass.run_pass(plan, indexes, output, key, pool)
        stacked = settings.classifier_images and mode_count.is_stacked(classes, indexes["real"].image_shape)
        modes = mode_count.count_modes(_mode_count(settings, plan, indexes), output, pool) if stacked else []
        score = score_quality.measure(folders, indexes, settings.images, pool)
    tests = _classifier_tests(plan, measured, trainings, wrong)
    samples = metrics.samples(measured)
    rows = metrics.rows(measured, samples, len(classes), settings.repeats, settings.seed, tests) + modes
    grids = {role: _first_images(folders[role], indexes[role], len(classes)) for role in ("real", "fake")}
    pairs = _pairs(folders, indexes, metrics.closest(samples["fake"], measured["fake"].position_N, PAIRS))
    _write(output, protocol, classes, rows, samples, grids, pairs, score)
    writer.discard(output, feature_pass.PARTS)
    _print(rows, protocol, settings)
    if score:
        print(
            f"evaluate: the score, on {score['images']:,} images of {score['against']} and as many of fake: "
            f"AUC {score['auc']:.3f} (0.5: chance), Brier score {score['brier']:.3f} (0.25: chance), calibration error "
            f"{score['calibration_error']:.3f}{'' if score['calibrated'] else '; the model has no calibration'}"
        )
    print(f"evaluate: {output}/{RESULT} and {REPORT}")


def _write(
    output: Folder,
    protocol: Mapping[str, Any],
    classes: Sequence[str],
    rows: Sequence[Row],
    samples: Mapping[str, Sample],
    grids: Mapping[str, Pixels],
    pairs: Sequence[Pair],
    score: Mapping[str, Any] | None,
) -> None:
    """Write the report, then the numbers."""
    result = {
        "format": 1,
        "protocol": protocol,
        "classes": classes,
        "results": [asdict(row) for row in rows],
        "score": score,
        "closest": [{"distance": pair.distance, "fake": pair.fake_key, "real": pair.real_key} for pair in pairs],
    }
    html = report.render_html(protocol, classes, rows, metrics.nearest_distances(samples), grids, pairs, score)
    output.write(REPORT, html)
    output.write(RESULT, json.dumps(result, indent=1, allow_nan=False).encode() + b"\n")


def _common(folders: Mapping[str, Folder], indexes: Mapping[str, Index]) -> list[str]:
    """The common classes; none if a dataset has none. Raises UsageError for datasets that cannot be compared."""
    real = indexes["real"]
    for role, index in indexes.items():
        if index.samples < FEWEST:
            raise UsageError(f"--{role} {folders[role]}: {index.samples} images; at least {FEWEST} are needed")
        if index.image_shape != real.image_shape:
            there, here = ("x".join(map(str, i.image_shape)) for i in (index, real))
            raise UsageError(f"--{role} {folders[role]} holds {there}, but --real {folders['real']} holds {here}")
        if index.classes and real.classes and index.classes != real.classes:
            there, here = (", ".join(i.classes or [])[:60] for i in (index, real))
            raise UsageError(
                f"--{role} {folders[role]} has the classes {there}, but --real {folders['real']} has {here}"
            )
    return list(real.classes or []) if all(index.classes for index in indexes.values()) else []


def _classifier_trainings(
    settings: EvaluateSettings, folders: Mapping[str, Folder], indexes: Mapping[str, Index], classes: int
) -> dict[str, ClassifierTraining]:
    """The classifiers to train, by role: on fakes; on reals too for a holdout, or if they make the features."""
    if not classes or not settings.classifier_images:
        return {}
    tested = "holdout" if "holdout" in folders else "real"
    trained = ["fake"] if tested == "real" and settings.features != "classifier" else ["real", "fake"]
    chosen_by = {"selection": settings.selection, "selected": _selection_facts(settings).get("digest")}
    return {
        role: ClassifierTraining(
            trained=folders[role].url,
            trained_root=indexes[role].root,
            tested=folders[tested].url,
            tested_root=indexes[tested].root,
            classes=classes,
            images=settings.classifier_images,
            seed=settings.seed,
            **(chosen_by if role == "fake" else {}),
        )
        for role in trained
    }


def _mode_count(settings: EvaluateSettings, plan: PassPlan, indexes: Mapping[str, Index]) -> ModeCount:
    roots = {role: index.root for role, index in indexes.items()}
    selected = _selection_facts(settings).get("digest")
    return ModeCount(plan.urls, roots, plan.selections, selected, settings.classifier_images, settings.seed)


def _selection_facts(settings: EvaluateSettings) -> dict[str, Any]:
    """The selection in the protocol; empty without one."""
    return selection.read(settings.selection).protocol() if settings.selection else {}


def _weights(settings: EvaluateSettings, trainings: Mapping[str, ClassifierTraining], output: Folder) -> str | None:
    """The URL of the features' weights, which may not exist yet."""
    if settings.features != "classifier":
        return settings.inception_weights
    if not trainings:
        raise UsageError(
            "--features classifier needs datasets with classes, and --classifier-images above 0; use vgg16-random, "
            "which needs neither"
        )
    return f"{output}/{trainings['real'].weights}"


def _classifier_tests(
    plan: PassPlan,
    measured: Mapping[str, DatasetFeatures],
    trainings: Mapping[str, ClassifierTraining],
    wrong: Mapping[str, np.ndarray],
) -> list[ClassifierTest]:
    """The tests of the classifiers on images that they were not trained on."""
    tests = metrics.nearest_neighbour_tests(measured, plan.tested) if plan.tested else []
    for role, training in trainings.items():
        if training.trained != training.tested:
            note = f"share of right labels; a classifier trained on {role}, {training.images:,} images seen"
            size = measured[role].sums.count
            tests.append(ClassifierTest("accuracy_score", role, plan.tested or "", size, ~wrong[role], note))
    return tests


def _default_features(image_shape: tuple[int, int, int]) -> str:
    if not feature_weights.wanted(image_shape):
        return "vgg16-random"
    if not feature_weights.installed():
        print(f"evaluate: vgg16-random, as {feature_weights.MISSING}", flush=True)
        return "vgg16-random"
    return LITE


def _features(plan: PassPlan, real: Index) -> Features:
    try:
        return feature_pass.make_features(plan, real.image_shape)
    except FeaturesError as error:
        raise UsageError(f"--inception-weights {plan.weights or '(not given)'}: {error}") from error


def _protocol(
    settings: EvaluateSettings,
    plan: PassPlan,
    folders: Mapping[str, Folder],
    indexes: Mapping[str, Index],
    chosen: Features,
) -> dict[str, Any]:
    """The protocol of the numbers. Equal protocols give equal numbers on one kind of machine."""
    datasets = {}
    for role, index in indexes.items():
        datasets[role] = {
            "url": folders[role].url,
            "root": index.root,
            "images": index.samples,
            "drawn": min(index.samples, settings.images),
            "producer": index.identity.producer,
            "split": reader.read_claim(folders[role]).settings.get("split"),
            "shape": list(index.image_shape),
        }
    datasets["real"]["searched"] = len(feature_pass.searched("real", indexes["real"], plan, chosen.size))
    if settings.selection:
        datasets["fake"]["selection"] = _selection_facts(settings)
    return {
        "datasets": datasets,
        "features": {"name": chosen.name, "size": chosen.size, "digest": chosen.digest, "what": chosen.protocol},
        "seed": settings.seed,
        "repeats": settings.repeats,
        "spread": f"standard deviation over {settings.repeats} random halves of the drawn images",
        "neighbours": NEIGHBOURS,
        "classifier": {"images": settings.classifier_images, "what": classifier.PROTOCOL},
        "software": {name: version(name) for name in ("torch", "torchvision", "scikit-learn", "numpy")},
    }


def _pairs(
    folders: Mapping[str, Folder], indexes: Mapping[str, Index], closest: Sequence[tuple[float, int, int]]
) -> list[Pair]:
    """The closest pairs of a fake and a real image, given by their positions."""
    found = []
    for distance, fake, real in closest:
        fake_key, fake_image = loader.at(folders["fake"], indexes["fake"], fake)
        real_key, real_image = loader.at(folders["real"], indexes["real"], real)
        found.append(Pair(distance, fake_key, real_key, fake_image, real_image))
    return found


def _first_images(folder: Folder, index: Index, classes: int) -> Pixels:
    """The first images as a grid: a row a class (the first ten classes), or ten rows. Reads three shards at most."""
    rows: dict[int, list[Pixels]] = {row: [] for row in range(min(classes or GRID, GRID))}
    filled = 0
    for record in [record for record in index.shards if record.samples][:3]:
        for sample in reader.samples(folder, index, record):
            row = rows.get((sample.label or 0) if classes else filled // GRID)
            if row is not None and len(row) < GRID:
                row.append(reader.pixels(folder, index, sample))
                filled += 1
            if filled == GRID * len(rows):
                break
    return images.grid([row for row in rows.values() if row])


def _print(rows: Sequence[Row], protocol: Mapping[str, Any], settings: EvaluateSettings) -> None:
    kind = protocol["features"]
    counts = ", ".join(f"{d['images']:,} {role}" for role, d in protocol["datasets"].items())
    print(f"evaluate: {counts} images; {kind['name']} ({kind['size']} features, {kind['digest'][:12]})")
    print(f"evaluate: {kind['what']}")
    print(f"evaluate: spread: {protocol['spread']}; seed {settings.seed}")
    print(f"{'measure':<24}{'of':<9}{'against':<9}{'value':>11}{'spread':>11}{'n of':>13}{'n against':>13}")
    for row in [row for row in rows if row.label is None]:
        value, spread = number(row.value), number(row.spread)
        counts = f"{row.n_of:>13,}{row.n_against:>13,}"
        print(f"{row.measure:<24}{row.of:<9}{row.against:<9}{value:>11}{spread:>11}{counts}  {row.note}".rstrip())
    if any(row.label is not None for row in rows):
        print(f"evaluate: class by class in {REPORT}")
