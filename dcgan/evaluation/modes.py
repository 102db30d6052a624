"""Modes reached and their divergence, for stacked MNIST: K = 1,000 classes, the three digits of an image.

A classifier of single digits reads each channel. Source: Metz et al. 2016, arXiv:1611.02163, sec. 3.3.1; 26,000 images
as in Srivastava et al. 2017 (VEEGAN), arXiv:1705.07761.
"""

import numpy as np

from dcgan.evaluation import classifier
from dcgan.evaluation.classifier import Classifier

IMAGES = 26_000
CLASSES = 1000
PLACES_3 = np.array([100, 10, 1])  # of red, green and blue in the class's number


def digits_of(label_B: np.ndarray) -> np.ndarray:
    """digit_B3 of classes 0 to 999."""
    digit_B3: np.ndarray = label_B[:, None] // PLACES_3 % 10
    return digit_B3


def classes_of(reader: Classifier, images_BHWC: np.ndarray) -> np.ndarray:
    """label_B of stacked images, uint8, by a classifier of single grey digits."""
    digits = [classifier.classify(reader, np.ascontiguousarray(images_BHWC[..., c : c + 1])) for c in range(3)]
    label_B: np.ndarray = np.stack(digits, 1) @ PLACES_3
    return label_B


def shares(label_N: np.ndarray) -> np.ndarray:
    """share_K of the classes, from how often each digit is in each channel: the channels are independent."""
    red, green, blue = (np.bincount(column, minlength=10) / len(label_N) for column in digits_of(label_N).T)
    share_K: np.ndarray = (red[:, None, None] * green[:, None] * blue).reshape(-1)
    return share_K


def reached(count_K: np.ndarray) -> int:
    """The number of classes with an image."""
    return int(np.count_nonzero(count_K))


def divergence(count_K: np.ndarray, share_K: np.ndarray) -> float:
    """KL(counts || shares) in nats. Of n images with these shares it is about (K - 1) / 2n, by chance alone."""
    found_K = count_K / count_K.sum()
    seen_K = found_K > 0
    return float((found_K[seen_K] * np.log(found_K[seen_K] / share_K[seen_K])).sum())
