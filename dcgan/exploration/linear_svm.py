"""A linear classifier on features, and how sure its error is. N images, F features.

The classifier is scikit-learn's (liblinear): one against all, squared hinge, L2.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

CHOICES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TUNED_ON = 10_000  # labels at most; C is then used with all
FOLDS = 5
_FOLDED = 2_000  # with more labels one of the folds is enough to tell
# liblinear's own for the dual problem (scikit-learn's is 1e-4). On 5,000 digits in 3,072 features the primal solver,
# converged, took 6 to 14 times as long, and the error on 10,000 others was the same to 0.0001.
_TOLERANCE = 0.1
_MAX_ITER = 100

PROTOCOL = (
    f"one-against-all linear SVM (liblinear: squared hinge, L2, dual, tolerance {_TOLERANCE:g}, at most {_MAX_ITER} "
    "iterations) on features of mean 0, all divided by one number: their root mean square deviation"
)
CHOSEN = (
    f"C from {CHOICES[0]:g} up in powers of ten to {CHOICES[-1]:g} until the error no longer falls, by training on "
    f"four fifths of the training labels and testing on the other: each fifth in turn for up to {_FOLDED:,} labels, "
    f"else one fifth of at most {TUNED_ON:,}"
)


@dataclass(frozen=True, slots=True)
class LinearClassifier:
    """Scaling and weights."""

    mean_F: np.ndarray
    scale: float
    svm: LinearSVC

    def error(self, features_NF: np.ndarray, label_N: np.ndarray) -> float:
        """The share of images that get another label."""
        # the scaling goes into the weights: no copy of the features
        weights_KF = self.svm.coef_ / self.scale
        score_NK = features_NF @ weights_KF.astype(np.float32).T + (self.svm.intercept_ - weights_KF @ self.mean_F)
        at_N = (score_NK[:, 0] > 0).astype(int) if score_NK.shape[1] == 1 else score_NK.argmax(1)
        return float((self.svm.classes_[at_N] != label_N).mean())


def train(features_NF: np.ndarray, label_N: np.ndarray, c: float, seed: int) -> LinearClassifier:
    """The classifier of these labels.

    One scale for all features: each divided by its own deviation, what is nearly constant (a corner's pixel) would be
    as loud as what tells. With 1,000 labels of MNIST that cost pixels 15.0 % for 13.9 %, and others nothing or little.

    Of fewer images than features only their coordinates in the space that they span are looked at. The weights lie in
    it, and the solver goes by inner products, which stay: the classifier is the same, and sooner there.
    """
    mean_F = features_NF.mean(0, dtype=np.float64)
    scaled_NF = features_NF - mean_F.astype(np.float32)
    scale = float(np.linalg.norm(scaled_NF)) / math.sqrt(scaled_NF.size) or 1.0
    scaled_NF /= np.float32(scale)
    span_FN = None
    if len(scaled_NF) < scaled_NF.shape[1]:
        span_FN, upper_NN = np.linalg.qr(scaled_NF.T)
        scaled_NF = np.ascontiguousarray(upper_NN.T)
    svm = LinearSVC(C=c, dual=True, tol=_TOLERANCE, max_iter=_MAX_ITER, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the error on unseen images judges it
        svm.fit(scaled_NF, label_N)
    if span_FN is not None:
        svm.coef_ = svm.coef_ @ span_FN.T
    return LinearClassifier(mean_F, scale, svm)


def choose(features_NF: np.ndarray, label_N: np.ndarray, seed: int) -> tuple[float, dict[str, float]]:
    """The C for these labels, and the error of each that was tried: see CHOSEN. No other label is looked at."""
    order = np.random.default_rng([seed, 1]).permutation(len(label_N))[:TUNED_ON]
    parts = np.array_split(order, FOLDS)
    folds = range(FOLDS if len(order) <= _FOLDED else 1)
    best, errors = CHOICES[0], {}
    for c in CHOICES:
        found = []
        for fold in folds:
            rest = np.concatenate([part for n, part in enumerate(parts) if n != fold])
            classifier = train(features_NF[rest], label_N[rest], c, seed)
            found.append(classifier.error(features_NF[parts[fold]], label_N[parts[fold]]))
        errors[f"{c:g}"] = float(np.mean(found))
        if c != best and errors[f"{c:g}"] >= errors[f"{best:g}"]:
            break
        best = c
    return best, errors


def few(label_N: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The positions of `count` random images, as many of each class as there are, in order."""
    order = np.random.default_rng([seed, 2]).permutation(len(label_N))
    turn = np.zeros(len(order), np.int64)
    for label in np.unique(label_N):
        mine = label_N[order] == label
        turn[mine] = np.arange(mine.sum())
    found: np.ndarray = np.sort(order[np.argsort(turn, kind="stable")[:count]])
    return found


def wilson(error: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share that was found among `count`. Source: Wilson 1927."""
    z = 1.959964
    middle = (error + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(error * (1 - error) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
