"""A linear classifier on features, and the confidence interval of its error. N images, F features, K classes.

The classifier is scikit-learn's LinearSVC (liblinear): one against all, squared hinge, L2.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

C_CHOICES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
MAX_TUNING_LABELS = 10_000  # C is chosen on at most so many labels; the classifier is trained on all
FOLDS = 5
_MAX_FOLDED_LABELS = 2_000  # with more labels one fold is enough to choose C
# liblinear's default for the dual problem; scikit-learn's is 1e-4. On 5,000 digits in 3,072 features the converged
# primal solver took 6 to 14 times as long, and the errors on 10,000 other digits differed by less than 0.0001.
_TOLERANCE = 0.1
_MAX_ITER = 100

PROTOCOL = (
    f"one-against-all linear SVM (liblinear: squared hinge, L2, dual, tolerance {_TOLERANCE:g}, at most {_MAX_ITER} "
    "iterations) on features of mean 0, all divided by one number: their root mean square deviation"
)
C_SELECTION = (
    f"C from {C_CHOICES[0]:g} up in powers of ten to {C_CHOICES[-1]:g} until the error no longer falls, by training on "
    "four fifths of the training labels and testing on the other: each fifth in turn for up to "
    f"{_MAX_FOLDED_LABELS:,} labels, else one fifth of at most {MAX_TUNING_LABELS:,}"
)


@dataclass(frozen=True, slots=True)
class LinearClassifier:
    """A trained classifier: the standardisation of its features, and its weights."""

    mean_F: np.ndarray
    scale: float
    svm: LinearSVC

    def error(self, features_NF: np.ndarray, label_N: np.ndarray) -> float:
        """The share of images that are classified wrongly."""
        # The scaling is applied to the weights, so the features need no copy.
        weights_KF = self.svm.coef_ / self.scale
        score_NK = features_NF @ weights_KF.astype(np.float32).T + (self.svm.intercept_ - weights_KF @ self.mean_F)
        class_N = (score_NK[:, 0] > 0).astype(int) if score_NK.shape[1] == 1 else score_NK.argmax(1)
        return float((self.svm.classes_[class_N] != label_N).mean())


def train(features_NF: np.ndarray, label_N: np.ndarray, c: float, seed: int) -> LinearClassifier:
    """Train the classifier. The seed decides the order in which the solver visits the images.

    All features are divided by one number. Divided by its own deviation, a nearly constant feature, such as a pixel in
    a corner, would weigh as much as an informative one. With 1,000 labels of MNIST the error in pixels rose from 13.9 %
    to 15.0 % that way; other features lost little or nothing.

    With fewer images than features the solver works in the space that the images span. The weights lie in that space
    and the solver uses inner products only, so the classifier is the same and takes less time.
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
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is judged by its error on unseen images
        svm.fit(scaled_NF, label_N)
    if span_FN is not None:
        svm.coef_ = svm.coef_ @ span_FN.T
    return LinearClassifier(mean_F, scale, svm)


def choose_c(features_NF: np.ndarray, label_N: np.ndarray, seed: int) -> tuple[float, dict[str, float]]:
    """The best C, and the error of each C that was tried, as C_SELECTION describes. Uses these labels only."""
    order = np.random.default_rng([seed, 1]).permutation(len(label_N))[:MAX_TUNING_LABELS]
    parts = np.array_split(order, FOLDS)
    folds = range(FOLDS if len(order) <= _MAX_FOLDED_LABELS else 1)
    best, errors = C_CHOICES[0], {}
    for c in C_CHOICES:
        fold_errors = []
        for fold in folds:
            rest = np.concatenate([part for n, part in enumerate(parts) if n != fold])
            classifier = train(features_NF[rest], label_N[rest], c, seed)
            fold_errors.append(classifier.error(features_NF[parts[fold]], label_N[parts[fold]]))
        errors[f"{c:g}"] = float(np.mean(fold_errors))
        if c != best and errors[f"{c:g}"] >= errors[f"{best:g}"]:
            break
        best = c
    return best, errors


def balanced_subset(label_N: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The sorted positions of `count` random images, as evenly over the classes as their sizes allow."""
    order = np.random.default_rng([seed, 2]).permutation(len(label_N))
    rank_N = np.zeros(len(order), np.int64)  # of an image within its class
    for label in np.unique(label_N):
        of_class_N = label_N[order] == label
        rank_N[of_class_N] = np.arange(of_class_N.sum())
    subset: np.ndarray = np.sort(order[np.argsort(rank_N, kind="stable")[:count]])
    return subset


def wilson_interval(error: float, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of an error rate that was measured on `count` images. Source: Wilson 1927."""
    z = 1.959964
    middle = (error + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(error * (1 - error) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
