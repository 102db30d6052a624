"""A linear probe: the error of a linear SVM on a discriminator's features, and on three baselines."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dcgan.evaluation import features
from dcgan.evaluation.features import Features
from dcgan.exploration import kmeans_features, linear_svm
from dcgan.exploration.discriminator_features import discriminator_features, untrained
from jobs.command.errors import UsageError
from jobs.command.progress import Progress
from jobs.exploration.inputs import Inputs

_CHUNK = 512
MAX_FEATURE_BYTES = 4 << 30  # of one kind; the classifier takes five times as much again
_KEPT_BACK = 6  # without a holdout, every sixth image is the test set


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The error of one classifier; with repeats their mean, and their standard deviation."""

    features: str
    size: int
    labels: int
    error: float
    low: float
    high: float
    interval: str
    repeats: list[dict[str, Any]]  # error, C, and the error of each C that was tried


def explore(
    inputs: Inputs, labels: int, repeats: int, centroids: int, report: Callable[[ProbeResult], None]
) -> dict[str, Any]:
    """Train and test all classifiers. Returns the results as JSON types; `report` gets each as it is ready.

    Raises: UsageError if there are no classes, or too many features.
    """
    train, test = _split(inputs)
    shape = inputs.real.index.image_shape
    lines, described = [], []
    for make in _kinds(inputs, train[0], shape, centroids):
        kind = make()
        needed = (len(train[1]) + len(test[1])) * kind.size * 4
        if needed > MAX_FEATURE_BYTES:
            raise UsageError(
                f"--images {inputs.limit}: {kind.size:,} features of {len(train[1]) + len(test[1]):,} images take "
                f"{needed / 1e9:.1f} GB; at most {MAX_FEATURE_BYTES / 1e9:.1f} GB are held: use fewer"
            )
        described.append({"name": kind.name, "size": kind.size, "digest": kind.digest, "what": kind.protocol})
        together_NF = _compute(kind, np.concatenate([train[0], test[0]]))
        train_NF, test_NF = together_NF[: len(train[0])], together_NF[len(train[0]) :]
        if labels < len(train[1]):
            lines.append(_few_labels(kind, train_NF, train[1], test_NF, test[1], labels, repeats, inputs.seed))
            report(lines[-1])
        lines.append(_all_labels(kind, train_NF, train[1], test_NF, test[1], inputs.seed))
        report(lines[-1])
    protocol = {
        **inputs.protocol(),
        "trained_on": len(train[1]),
        "tested_on": len(test[1]),
        "test": "the holdout" if inputs.holdout is not None else f"every {_KEPT_BACK}th image, which D was trained on",
        "labels_seen_in_training": bool(inputs.model.config.num_classes),
        "features": described,
        "classifier": linear_svm.PROTOCOL,
        "chosen": linear_svm.C_SELECTION,
        "few_labels": f"{labels} labels, as many of each class as there are, drawn anew for each of {repeats} repeats",
    }
    results = [{name: getattr(line, name) for name in ProbeResult.__slots__} for line in lines]
    return {"format": 1, "protocol": protocol, "results": results}


def has_classes(inputs: Inputs) -> bool:
    """Whether the data, and the holdout if there is one, have classes."""
    return bool(inputs.real.index.classes) and (
        inputs.holdout_folder is None or inputs.holdout is None or bool(inputs.holdout.index.classes)
    )


def _split(inputs: Inputs) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Images and labels to train on, and to test on."""
    if not has_classes(inputs):
        raise UsageError(f"--what features: {inputs.real.folder} or the holdout has no classes")
    real, holdout = inputs.real, inputs.holdout
    if holdout is not None:
        parts = ((real.images_NHWC, real.label_N), (holdout.images_NHWC, holdout.label_N))
    else:
        back = np.arange(len(real)) % _KEPT_BACK == _KEPT_BACK - 1
        parts = ((real.images_NHWC[~back], real.label_N[~back]), (real.images_NHWC[back], real.label_N[back]))
    if any(len(np.unique(label_N)) < 2 for _, label_N in parts) or len(parts[0][1]) < 10:
        raise UsageError("--what features: at least two classes and ten images are needed")
    return parts


def _kinds(
    inputs: Inputs, train_NHWC: np.ndarray, shape: tuple[int, int, int], centroids: int
) -> Iterator[Callable[[], Features]]:
    """Features one after another, so that only one kind is in memory."""
    model, seed = inputs.model, inputs.seed
    trained = f"the discriminator of model {inputs.digest[:12]}"
    random = f"a discriminator of the same shape, its weights as training begins with them, from seed {seed}"
    yield lambda: features.make("pixels", shape)
    yield lambda: kmeans_features.kmeans_features(kmeans_features.learn(train_NHWC, centroids, seed), shape)
    yield lambda: discriminator_features(untrained(model.config, seed), "untrained", random)
    yield lambda: discriminator_features(model.discriminator, "discriminator", trained)


def _compute(kind: Features, images_NHWC: np.ndarray) -> np.ndarray:
    features_NF = np.empty((len(images_NHWC), kind.size), np.float32)
    with Progress(f"explore: {kind.name}", len(images_NHWC), "images") as progress:
        for start in range(0, len(images_NHWC), _CHUNK):
            stop = min(start + _CHUNK, len(images_NHWC))
            features_NF[start:stop] = kind(images_NHWC[start:stop])
            progress.update(stop)
    return features_NF


def _all_labels(
    kind: Features, train_NF: np.ndarray, label_N: np.ndarray, test_NF: np.ndarray, test_label_N: np.ndarray, seed: int
) -> ProbeResult:
    found = _once(train_NF, label_N, test_NF, test_label_N, seed)
    low, high = linear_svm.wilson_interval(found["error"], len(test_label_N))
    interval = "Wilson's 95 % of the test images"
    return ProbeResult(kind.name, kind.size, len(label_N), found["error"], low, high, interval, [found])


def _few_labels(
    kind: Features,
    train_NF: np.ndarray,
    label_N: np.ndarray,
    test_NF: np.ndarray,
    test_label_N: np.ndarray,
    labels: int,
    repeats: int,
    seed: int,
) -> ProbeResult:
    found = []
    for repeat in range(repeats):
        mine = linear_svm.balanced_subset(label_N, labels, seed * 1000 + repeat)
        found.append(_once(train_NF[mine], label_N[mine], test_NF, test_label_N, seed))
    errors = np.array([one["error"] for one in found])
    spread = float(errors.std(ddof=1)) if repeats > 1 else 0.0
    interval = f"one standard deviation over {repeats} draws of the labels"
    mean = float(errors.mean())
    return ProbeResult(kind.name, kind.size, labels, mean, mean - spread, mean + spread, interval, found)


def _once(
    train_NF: np.ndarray, label_N: np.ndarray, test_NF: np.ndarray, test_label_N: np.ndarray, seed: int
) -> dict[str, Any]:
    c, tried = linear_svm.choose_c(train_NF, label_N, seed)
    classifier = linear_svm.train(train_NF, label_N, c, seed)
    return {"error": classifier.error(test_NF, test_label_N), "C": c, "tried": tried}
