"""The classifier: it learns what can be learnt and nothing else, the same from the same seed."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from dcgan.evaluation import classifier, features
from dcgan.evaluation.classifier import Classifier
from dcgan.model_files import to_bytes


def bars(seed: int, *, size: int = 28, told: bool = True) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Noise with a bright bar: upright for class 1, lying for 0, or for no reason."""
    rng = np.random.default_rng(seed)
    while True:
        label_B = rng.integers(0, 2, 32)
        images = rng.integers(0, 100, (32, size, size, 1), np.uint8)
        for image, label in zip(images, label_B if told else rng.integers(0, 2, 32), strict=True):
            place = rng.integers(2, size - 4)
            (image if label == 0 else image.swapaxes(0, 1))[place : place + 3] += 155
        yield images, label_B


def right(trained: Classifier, seed: int, *, size: int = 28) -> float:
    batches = bars(seed, size=size)
    return float(np.mean([np.mean(classifier.classify(trained, x) == y) for x, y in (next(batches) for _ in range(8))]))


@pytest.mark.parametrize("size", [28, 64])
def test_it_learns_what_can_be_learnt(size: int) -> None:
    trained = classifier.train((size, size, 1), 2, bars(0, size=size), 40, 0)
    assert right(trained, 1, size=size) > 0.95


def test_it_learns_nothing_from_labels_that_say_nothing() -> None:
    trained = classifier.train((28, 28, 1), 2, bars(0, told=False), 40, 0)
    assert 0.2 < right(trained, 1) < 0.8


def test_the_seed_decides_and_the_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    one, same, other = (classifier.train((28, 28, 1), 2, bars(0), 3, seed) for seed in (0, 0, 1))
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)
    states = [network.state_dict()["head.1.weight"] for network in (one, same, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_its_features_know_the_classes() -> None:
    trained = classifier.train((28, 28, 1), 2, bars(0), 40, 0)
    found = features.make("classifier", (28, 28, 1), to_bytes(trained.state_dict()))
    images, label = next(bars(1))
    drawn = found(images)
    assert drawn.shape == (32, classifier.FEATURES)
    assert (found.size, len(found.digest)) == (classifier.FEATURES, 64)
    between = np.linalg.norm(drawn[label == 0].mean(0) - drawn[label == 1].mean(0))
    within = np.linalg.norm(drawn[label == 0] - drawn[label == 0].mean(0), axis=1).mean()
    assert between > within
