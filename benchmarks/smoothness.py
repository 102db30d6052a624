#!/usr/bin/env python3
"""How much fine detail images have, and what that does to the error of a nearest-neighbour classifier in pixels.

python benchmarks/smoothness.py --train D/mnist D/synth50k --holdout D/mnist-test

Each `--train` dataset's first `--images` classify the holdout as they are and smoothed, by a Gaussian blur or by what
is left of them in the first principal components of the first of the datasets. The holdout stays as it is. Beside it:
how much of an image the blur takes away, and how much lies beyond 200 of those components, as mean squared lengths.
"""

import argparse
from itertools import chain, islice

import cv2
import numpy as np

from dcgan.evaluation.distances import Answers, NearestNeighbour
from pipelines.dataset import reader
from pipelines.loading import loader
from pipelines.storage.folder import Folder

BLURS = (0.4, 0.6, 0.8, 1.0)  # standard deviations, pixels
COMPONENTS = (20, 50, 100, 200)
SHOWN_BLUR = 0.6
BATCH = 500


def read(url: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """images_NHW from 0 to 1, of grey images, and label_N."""
    folder = Folder(url)
    index = reader.open_sealed(folder)
    batches = chain.from_iterable(loader.in_order(folder, index, record, BATCH) for record in index.shards)
    images, labels = zip(*islice(batches, -(-count // BATCH)), strict=True)
    return np.concatenate(images)[:count, :, :, 0].astype(np.float32) / 255, np.concatenate(labels)[:count]


def classes_of(parser: argparse.ArgumentParser, *urls: str) -> list[str]:
    """Those of the first of these datasets. Ends the program if one of them has other than grey images with classes."""
    indexes = [reader.open_sealed(Folder(url)) for url in urls]
    for url, index in zip(urls, indexes, strict=True):
        channels, classes = index.image_shape[2], len(index.classes or [])
        if channels != 1 or not classes:
            parser.error(f"{url}: {channels} channels and {classes} classes; give grey images with classes")
    return list(indexes[0].classes or [])


def blurred(images_NHW: np.ndarray, sigma: float) -> np.ndarray:
    """Beyond the edges it is black."""
    return np.stack([cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT) for image in images_NHW])


class Components:
    """The principal components of some images."""

    def __init__(self, images_NHW: np.ndarray) -> None:
        x_NF = images_NHW.reshape(len(images_NHW), -1).astype(np.float64)
        self._mean_F = x_NF.mean(0)
        self._axes_FF = np.linalg.eigh(np.cov(x_NF, rowvar=False))[1][:, ::-1].astype(np.float32)

    def kept(self, images_NHW: np.ndarray, count: int) -> np.ndarray:
        """The images with nothing but their first components."""
        axes_FK = self._axes_FF[:, :count]
        x_NF = images_NHW.reshape(len(images_NHW), -1) - self._mean_F.astype(np.float32)
        kept_NF: np.ndarray = x_NF @ axes_FK @ axes_FK.T + self._mean_F.astype(np.float32)
        return kept_NF.reshape(images_NHW.shape)


def error(classifier: NearestNeighbour, wanted_M: np.ndarray, images_NHW: np.ndarray, label_N: np.ndarray) -> str:
    answers = Answers.none(classifier.tests)
    for start in range(0, len(images_NHW), BATCH):
        rows = slice(start, start + BATCH)
        answers += classifier.answers(images_NHW[rows].reshape(len(images_NHW[rows]), -1), label_N[rows])
    return f"{100 * (answers.label_M != wanted_M).mean():.2f} %"


def mean_square(difference_NHW: np.ndarray) -> str:
    return f"{np.square(difference_NHW).sum((1, 2)).mean():.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", required=True, help="sealed datasets of grey images with classes")
    parser.add_argument("--holdout", required=True, help="the dataset that is classified")
    parser.add_argument("--images", type=lambda text: int(float(text)), default=50_000, help="of each dataset")
    arguments = parser.parse_args()
    classes_of(parser, *arguments.train, arguments.holdout)
    tested_MHW, wanted_M = read(arguments.holdout, 10**9)
    classifier = NearestNeighbour(tested_MHW.reshape(len(tested_MHW), -1))
    components: Components | None = None
    for url in arguments.train:
        images_NHW, label_N = read(url, arguments.images)
        components = components or Components(images_NHW)
        print(f"\n{url}: {len(images_NHW):,} images")
        print(f"  taken away by a blur of {SHOWN_BLUR}: {mean_square(images_NHW - blurred(images_NHW, SHOWN_BLUR))}")
        beyond = images_NHW - components.kept(images_NHW, COMPONENTS[-1])
        print(f"  beyond {COMPONENTS[-1]} components: {mean_square(beyond)}")
        print(f"  error as they are: {error(classifier, wanted_M, images_NHW, label_N)}", flush=True)
        for sigma in BLURS:
            smooth_NHW = blurred(images_NHW, sigma)
            print(f"  blurred by {sigma}: {error(classifier, wanted_M, smooth_NHW, label_N)}", flush=True)
        for count in COMPONENTS:
            kept_NHW = components.kept(images_NHW, count)
            print(f"  {count} components: {error(classifier, wanted_M, kept_NHW, label_N)}", flush=True)


if __name__ == "__main__":
    main()
