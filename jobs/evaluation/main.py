"""Compare a synthetic dataset with a real one: fidelity, diversity, usefulness, and copies of training images."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np

from dcgan.evaluation import classifier, features
from dcgan.evaluation.distances import NEIGHBOURS
from dcgan.evaluation.features import Features, FeaturesError
from jobs.cluster import connection
from jobs.command.errors import UsageError
from jobs.evaluation import accuracy_score, feature_pass, metrics, report, score_quality
from jobs.evaluation.accuracy_score import ClassifierTraining
from jobs.evaluation.feature_pass import DatasetFeatures, PassPlan
from jobs.evaluation.metrics import ClassifierTest, Row
from jobs.evaluation.settings import FEWEST, EvaluateSettings
from pipelines import images
from pipelines.dataset import claim, layout, reader, selection, writer
from pipelines.dataset.layout import Index
from pipelines.images import Pixels
from pipelines.loading import loader
from pipelines.storage.folder import Folder

RESULT = "evaluation.json"
REPORT = "evaluation.html"
PAIRS = 12


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
        settings.features,
        _weights(settings, trainings, output),
        settings.images,
        settings.seed,
        len(classes),
        selections,
    )
    if settings.features != "classifier":
        _features(plan, indexes["real"])  # an error in the features shows before Ray starts
    with connection.connect(settings.workers, "cpu", verbose=settings.verbose, wait_s=settings.wait_s) as pool:
        wrong = accuracy_score.train_classifiers(trainings, output, pool)
        protocol = _protocol(settings, folders, indexes, _features(plan, indexes["real"]))
        key = hashlib.sha256(claim.canonical(protocol)).hexdigest()[:16]
        measured = feature_pass.run_pass(plan, indexes, output, key, pool)
        score = score_quality.measure(folders, indexes, settings.images, pool)
    tests = _classifier_tests(plan, measured, trainings, wrong)
    rows = metrics.rows(measured, len(classes), settings.repeats, settings.seed, tests)
    _write(output, protocol, classes, rows, measured, _pairs(folders, indexes, measured), score)
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
    measured: Mapping[str, DatasetFeatures],
    pairs: Sequence[tuple[float, str, str, tuple[Pixels, Pixels]]],
    score: Mapping[str, Any] | None,
) -> None:
    """Write the report, then the numbers."""
    result = {
        "format": 1,
        "protocol": protocol,
        "classes": classes,
        "results": [asdict(row) for row in rows],
        "score": score,
        "closest": [{"distance": distance, "fake": fake, "real": real} for distance, fake, real, _ in pairs],
    }
    picture = images.grid([[p[n] for *_, p in pairs] for n in range(2)], scale=max(1, 64 // pairs[0][3][0].shape[0]))
    samples = {role: metrics.Sample(one.features_NF, one.label_N) for role, one in measured.items()}
    html = report.render_html(protocol, classes, rows, metrics.nearest_distances(samples), images.encode(picture))
    output.write(REPORT, html.encode())
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


def _features(plan: PassPlan, real: Index) -> Features:
    try:
        return features.make(plan.features, real.image_shape, feature_pass.read_weights(plan.weights))
    except FeaturesError as error:
        raise UsageError(f"--inception-weights {plan.weights or '(not given)'}: {error}") from error


def _protocol(
    settings: EvaluateSettings, folders: Mapping[str, Folder], indexes: Mapping[str, Index], chosen: Features
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
    folders: Mapping[str, Folder], indexes: Mapping[str, Index], measured: Mapping[str, DatasetFeatures]
) -> list[tuple[float, str, str, tuple[Pixels, Pixels]]]:
    """The closest pairs of a fake and a real image: distance, both keys, both pictures."""
    found = []
    for distance, fake, real in metrics.closest(measured["real"], measured["fake"], PAIRS):
        fake_key, fake_image = loader.at(folders["fake"], indexes["fake"], fake)
        real_key, real_image = loader.at(folders["real"], indexes["real"], real)
        found.append((distance, fake_key, real_key, (fake_image, real_image)))
    return found


def _print(rows: Sequence[Row], protocol: Mapping[str, Any], settings: EvaluateSettings) -> None:
    kind = protocol["features"]
    counts = ", ".join(f"{d['images']:,} {role}" for role, d in protocol["datasets"].items())
    print(f"evaluate: {counts} images; {kind['name']} ({kind['size']} features, {kind['digest'][:12]})")
    print(f"evaluate: {kind['what']}")
    print(f"evaluate: spread: {protocol['spread']}; seed {settings.seed}")
    print(f"{'measure':<24}{'of':<9}{'against':<9}{'value':>11}{'spread':>11}{'n of':>13}{'n against':>13}")
    for row in [row for row in rows if row.label is None]:
        value, spread = report.number(row.value), report.number(row.spread)
        counts = f"{row.n_of:>13,}{row.n_against:>13,}"
        print(f"{row.measure:<24}{row.of:<9}{row.against:<9}{value:>11}{spread:>11}{counts}  {row.note}".rstrip())
    if any(row.label is not None for row in rows):
        print(f"evaluate: class by class in {REPORT}")
