"""The classifier learns separable classes, learns nothing from random labels, and is determined by its seed."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from dcgan.evaluation import classifier, features
from dcgan.evaluation.classifier import Classifier
from dcgan.model_files import to_bytes


def bars(seed: int, *, size: int = 28, informative: bool = True) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Noise with a bright bar: vertical for class 1, horizontal for 0; at random if labels are not informative."""
    rng = np.random.default_rng(seed)
    while True:
        label_B = rng.integers(0, 2, 32)
        images = rng.integers(0, 100, (32, size, size, 1), np.uint8)
        for image, label in zip(images, label_B if informative else rng.integers(0, 2, 32), strict=True):
            position = rng.integers(2, size - 4)
            (image if label == 0 else image.swapaxes(0, 1))[position : position + 3] += 155
        yield images, label_B


def accuracy(trained: Classifier, seed: int, *, size: int = 28) -> float:
    batches = bars(seed, size=size)
    return float(np.mean([np.mean(classifier.classify(trained, x) == y) for x, y in (next(batches) for _ in range(8))]))


@pytest.mark.parametrize("size", [28, 64])
def test_it_learns_separable_classes(size: int) -> None:
    trained = classifier.train((size, size, 1), 2, bars(0, size=size), 40, 0)
    assert accuracy(trained, 1, size=size) > 0.95


def test_it_learns_nothing_from_random_labels() -> None:
    trained = classifier.train((28, 28, 1), 2, bars(0, informative=False), 40, 0)
    assert 0.2 < accuracy(trained, 1) < 0.8


def test_the_seed_decides_the_weights_and_the_global_random_state_stays() -> None:
    torch.manual_seed(5)
    one, same, other = (classifier.train((28, 28, 1), 2, bars(0), 3, seed) for seed in (0, 0, 1))
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)
    states = [network.state_dict()["head.1.weight"] for network in (one, same, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_its_features_separate_the_classes() -> None:
    trained = classifier.train((28, 28, 1), 2, bars(0), 40, 0)
    learnt = features.make("classifier", (28, 28, 1), to_bytes(trained.state_dict()))
    images, label = next(bars(1))
    features_NF = learnt(images)
    assert features_NF.shape == (32, classifier.FEATURES)
    assert (learnt.size, len(learnt.digest)) == (classifier.FEATURES, 64)
    between = np.linalg.norm(features_NF[label == 0].mean(0) - features_NF[label == 1].mean(0))
    within = np.linalg.norm(features_NF[label == 0] - features_NF[label == 0].mean(0), axis=1).mean()
    assert between > within
