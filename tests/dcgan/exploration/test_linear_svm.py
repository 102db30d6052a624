"""The linear classifier agrees with scikit-learn's; the choice of C and of labels; the confidence interval."""

import itertools

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from dcgan.exploration import linear_svm

Data = tuple[np.ndarray, np.ndarray]


def blobs(count: int, classes: int = 3, apart: float = 1.5, seed: int = 0) -> Data:
    """Overlapping classes, in features of very different scales."""
    rng = np.random.default_rng(seed)
    centre_KF = np.random.default_rng(9).normal(size=(classes, 12)) * apart
    label_N = rng.integers(0, classes, count)
    features_NF = (centre_KF[label_N] + rng.normal(size=(count, 12))) * np.geomspace(1, 5, 12) + 3
    return features_NF.astype(np.float32), label_N * 2  # labels need not be 0, 1, 2


@pytest.mark.parametrize("classes", [2, 3])
def test_the_error_agrees_with_scikit_learns_converged_primal_solver(classes: int) -> None:
    (train, label), (test, test_label) = blobs(300, classes, 0.4), blobs(500, classes, 0.4, seed=1)
    centred = (train - train.mean(0)) / np.sqrt(train.var(0).mean())
    exact = LinearSVC(C=1e-3, dual=False, tol=1e-8).fit(centred, label)
    expected = (exact.predict((test - train.mean(0)) / np.sqrt(train.var(0).mean())) != test_label).mean()
    found = linear_svm.train(train, label, 1e-3, seed=0).error(test, test_label)
    assert 0.02 < expected < 0.5
    assert found == pytest.approx(expected, abs=0.006)  # 3 of 500 images near the border: the solver's tolerance


def test_with_fewer_images_than_features_the_weights_agree_with_liblinear_in_all_features() -> None:
    rng = np.random.default_rng(5)
    (train, label), (test, test_label) = blobs(60, 3, 0.4), blobs(500, 3, 0.4, seed=1)
    turn_FG = np.linalg.qr(rng.normal(size=(200, 200)))[0][:12].astype(np.float32)
    beside_the_span = rng.normal(size=(500, 200)).astype(np.float32)
    train, test = train @ turn_FG, test @ turn_FG + beside_the_span
    found = linear_svm.train(train, label, 1e-2, seed=0)
    scaled = (train - train.mean(0)) / found.scale
    exact = LinearSVC(C=1e-2, dual=True, tol=1e-8, max_iter=100_000, random_state=0).fit(scaled, label)
    assert found.scale == pytest.approx(np.sqrt(train.var(0).mean()), rel=1e-5)
    np.testing.assert_allclose(found.svm.coef_, exact.coef_, atol=0.02 * np.abs(exact.coef_).max())
    expected = (exact.predict((test - train.mean(0)) / found.scale) != test_label).mean()
    assert found.error(test, test_label) == pytest.approx(expected, abs=0.006)


def test_all_features_are_divided_by_one_number() -> None:
    features_NF, label_N = blobs(100)
    features_NF[:, 0] = 7.0
    found = linear_svm.train(features_NF, label_N, 1e-3, seed=0)
    np.testing.assert_allclose(found.mean_F, features_NF.mean(0), rtol=1e-5)
    assert found.scale == pytest.approx(np.sqrt(features_NF.var(0).mean()), rel=1e-5)
    larger = linear_svm.train(features_NF * 100, label_N, 1e-3, seed=0)
    np.testing.assert_allclose(larger.svm.coef_, found.svm.coef_, atol=1e-3)
    nothing = linear_svm.train(np.zeros_like(features_NF), label_N, 1e-3, seed=0)
    assert np.isfinite(nothing.error(features_NF, label_N))


def test_c_is_the_best_value_tried_and_the_search_stops_when_the_error_no_longer_falls() -> None:
    features_NF, label_N = blobs(150, apart=0.3)
    c, errors = linear_svm.choose_c(features_NF, label_N, seed=0)
    tried = list(errors)
    assert tried == [f"{choice:g}" for choice in linear_svm.C_CHOICES[: len(tried)]]
    assert errors[f"{c:g}"] == min(errors.values())
    assert all(errors[b] < errors[a] for a, b in itertools.pairwise(tried[:-1]))
    assert linear_svm.choose_c(features_NF, label_N, seed=0) == (c, errors)


@pytest.mark.parametrize(("count", "each"), [(30, [10, 10, 10]), (100, [45, 45, 10]), (200, [90, 100, 10])])
def test_a_balanced_subset_is_as_even_as_the_classes_allow(count: int, each: list[int]) -> None:
    label_N = np.repeat([0, 1, 2], [90, 300, 10])
    chosen = linear_svm.balanced_subset(label_N, count, seed=0)
    assert sorted({*chosen}) == chosen.tolist()
    assert np.bincount(label_N[chosen]).tolist() == each
    assert not np.array_equal(chosen, linear_svm.balanced_subset(label_N, count, seed=1))


def test_wilsons_interval() -> None:
    """The interval for 0.1 of 100 is from a published table of binomial intervals."""
    assert linear_svm.wilson_interval(0.1, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)
    low, high = linear_svm.wilson_interval(0.0, 1000)
    assert low == pytest.approx(0.0, abs=1e-12)
    assert high == pytest.approx(0.00383, abs=1e-5)
