#!/usr/bin/env python3
"""Where a classifier errs that has learnt from synthetic images only, and how scarce those are there.

python benchmarks/scarcity.py --real D/mnist --fake D/synth50k --holdout D/mnist-test

Two classifiers of the accuracy score learn, one from each dataset. Then, in the last hidden layer of the one that
learnt from real images: of the 50 nearest to a holdout image among as many real as synthetic ones of its class, how
many are synthetic? Half of them, where the generator makes as many of the kind as there are.
"""

import argparse
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from smoothness import classes_of, read

from dcgan.evaluation import classifier
from dcgan.evaluation.classifier import Classifier

NEIGHBOURS = 50
EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.01)
BATCH = 500


def images_of(url: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """images_NHWC, uint8, and label_N."""
    images_NHW, label_N = read(url, count)
    return np.rint(images_NHW * 255).astype(np.uint8)[..., None], label_N


def learn(images_NHWC: np.ndarray, label_N: np.ndarray, classes: int, seen: int, seed: int) -> Classifier:
    """The accuracy score's classifier, after `seen` images: the dataset in another order each time through."""
    rng = np.random.default_rng(seed)

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while True:
            order_N = rng.permutation(len(images_NHWC))
            for start in range(0, len(order_N) - classifier.BATCH + 1, classifier.BATCH):
                rows_B = order_N[start : start + classifier.BATCH]
                yield images_NHWC[rows_B], label_N[rows_B]

    return classifier.train(images_NHWC.shape[1:], classes, batches(), seen // classifier.BATCH, seed)


def answers(learnt: Classifier, images_NHWC: np.ndarray) -> np.ndarray:
    starts = range(0, len(images_NHWC), BATCH)
    return np.concatenate([classifier.classify(learnt, images_NHWC[start : start + BATCH]) for start in starts])


@torch.inference_mode()
def features(learnt: Classifier, images_NHWC: np.ndarray) -> torch.Tensor:
    starts = range(0, len(images_NHWC), BATCH)
    return torch.cat([learnt.features(classifier.scaled(images_NHWC[start : start + BATCH])) for start in starts])


def synthetic_share(real_NF: torch.Tensor, fake_NF: torch.Tensor, tested_MF: torch.Tensor) -> np.ndarray:
    """share_M of the fakes among each one's nearest, of as many real as fake."""
    count = min(len(real_NF), len(fake_NF))
    both = torch.cat([real_NF[:count], fake_NF[:count]])
    nearest_MK = torch.cdist(tested_MF, both).topk(NEIGHBOURS, largest=False).indices
    share_M: np.ndarray = (nearest_MK >= count).double().mean(1).numpy()
    return share_M


def percent(chosen: np.ndarray) -> str:
    return f"{100 * chosen.mean():.2f} %" if len(chosen) else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for role in ("real", "fake", "holdout"):
        parser.add_argument(f"--{role}", required=True, help="sealed dataset of grey images with classes")
    number = {"type": lambda text: int(float(text))}
    parser.add_argument("--images", default=50_000, help="of --real and of --fake", **number)
    parser.add_argument("--classifier-images", default=300_000, help="that each classifier sees", **number)
    parser.add_argument("--seed", default=0, help="of the classifiers", **number)
    given = parser.parse_args()
    names = classes_of(parser, given.real, given.fake, given.holdout)
    tested_MHWC, wanted_M = images_of(given.holdout, 10**9)
    (real_NHWC, real_N), (fake_NHWC, fake_N) = (images_of(url, given.images) for url in (given.real, given.fake))

    learnt = learn(real_NHWC, real_N, len(names), given.classifier_images, given.seed)
    wrong = {"real": answers(learnt, tested_MHWC) != wanted_M}
    other_N = answers(learnt, fake_NHWC) != fake_N
    of_fakes = learn(fake_NHWC, fake_N, len(names), given.classifier_images, given.seed)
    wrong["fake"] = answers(of_fakes, tested_MHWC) != wanted_M
    share_M = np.empty(len(wanted_M))
    real_NF, fake_NF, tested_MF = (features(learnt, images) for images in (real_NHWC, fake_NHWC, tested_MHWC))
    for label in range(len(names)):
        share_M[wanted_M == label] = synthetic_share(
            real_NF[real_N == label], fake_NF[fake_N == label], tested_MF[wanted_M == label]
        )

    lost_M = wrong["fake"] & ~wrong["real"]
    print(f"errors on the holdout, learnt from real {percent(wrong['real'])}, from fakes {percent(wrong['fake'])}")
    print(f"fakes that the first calls another class: {percent(other_N)}")
    print(f"{lost_M.sum()} holdout images are lost to the second only")
    print(
        f"fakes among the {NEIGHBOURS} nearest: {share_M.mean():.3f} of all, {share_M[lost_M].mean():.3f} of those lost"
    )
    print(f"\n{'class':>12} {'images':>7} {'real':>5} {'fakes':>5} {'share':>6} {'called another':>15}")
    for label, name in enumerate(names):
        its_M = wanted_M == label
        errors = [int(wrong[role][its_M].sum()) for role in ("real", "fake")]
        called = percent(other_N[fake_N == label])
        print(f"{name:>12} {its_M.sum():>7} {errors[0]:>5} {errors[1]:>5} {share_M[its_M].mean():>6.3f} {called:>15}")
    print(f"\n{'share of fakes':>15} {'images':>7} {'real errs':>10} {'fakes err':>10} {'lost':>5}")
    for low, high in pairwise(EDGES):
        its_M = (share_M >= low) & (share_M < high)
        errs = [percent(wrong[role][its_M]) for role in ("real", "fake")]
        print(
            f"{low:>8.1f} - {min(high, 1.0):.1f} {its_M.sum():>8} {errs[0]:>10} {errs[1]:>10} {lost_M[its_M].sum():>5}"
        )


if __name__ == "__main__":
    main()
