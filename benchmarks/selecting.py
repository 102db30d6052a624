#!/usr/bin/env python3
"""What selection buys by the discriminator's logit, as the training left it and after it was trained on.

python benchmarks/selecting.py --data D/mnist --holdout D/mnist-test --images 2e5 --keep D/score --json selecting.json

Takes the networks that `benchmarks/score.py --keep` left, or trains them. The discriminator is trained on as by
`jobs/score.py`. Both logits are measured and calibrated on the holdout. Then rules select from fakes that neither has
seen. Every selection is measured by as many of its images, drawn at random `--draws` times,
against as many training images; so is the holdout, as what a perfect generator would reach.
"""

import json
from dataclasses import asdict

import numpy as np
import torch
from score import Images, Run, number, parser

from dcgan.evaluation import calibration, classifier, distances
from dcgan.evaluation.classifier import Classifier
from dcgan.evaluation.distances import Sums
from jobs.cluster.process import keep_freed_memory
from jobs.selection import rules
from jobs.selection.rules import Scores
from pipelines.storage.folder import Folder

FAKES = 2**43  # seeds of the images that are selected from
MEASURES = ("precision", "recall", "density", "coverage", "frechet")


class Measured:
    """Selections, each measured by as many images, in pixels and in a classifier's last hidden layer."""

    def __init__(self, run: Run, real: tuple[np.ndarray, np.ndarray], count: int, draws: int, seen: int) -> None:
        self.count, self.draws = count, draws
        self.spaces = {"pixels": lambda x: x.reshape(len(x), -1).astype(np.float32) / 255}
        if run.index.classes:
            learnt = classifier.train(
                run.index.image_shape,
                len(run.index.classes),
                ((one.images_BHWC, one.labels_B) for one in run.batches(run.training.seed + 2)),
                seen // run.settings.batch_size,
                run.training.seed,
            )
            self.spaces["classifier"] = lambda x: _features(learnt, x)
        self.real = {name: space(real[0][:count]) for name, space in self.spaces.items()}

    def __call__(self, images_NHWC: np.ndarray) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation over draws, by space and measure."""
        rng = np.random.default_rng(0)
        found: dict[str, list[float]] = {}
        for _ in range(self.draws):
            drawn = images_NHWC[rng.permutation(len(images_NHWC))[: self.count]]
            for name, space in self.spaces.items():
                other_NF, real_NF = space(drawn), self.real[name]
                values = asdict(distances.manifold_metrics(real_NF, other_NF))
                values["frechet"] = distances.frechet_distance(Sums.of(real_NF), Sums.of(other_NF))
                for measure in MEASURES:
                    found.setdefault(f"{name}: {measure}", []).append(values[measure])
        return {name: (float(np.mean(values)), float(np.std(values, ddof=1))) for name, values in found.items()}


@torch.inference_mode()
def _features(learnt: Classifier, images_NHWC: np.ndarray) -> np.ndarray:
    starts = range(0, len(images_NHWC), classifier.BATCH)
    batches = (classifier.scaled(images_NHWC[start : start + classifier.BATCH]) for start in starts)
    return np.concatenate([learnt.features(batch).numpy() for batch in batches])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--fakes", type=number, default=20_000, help="to select from")
    options.add_argument("--on", type=number, default=50_000, help="real images to train the discriminator on with")
    options.add_argument("--seen", type=number, default=100_000, help="images that the features' classifier sees")
    options.add_argument("--drawn", type=number, default=4000, help="images of each selection that are measured")
    options.add_argument("--draws", type=int, default=3, help="of each selection")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    run = Run(arguments)
    last = run.discriminators()["discriminator last"]
    images = Images(run, Folder(arguments.holdout), arguments.measured)
    conditional = bool(run.network.num_classes)
    label_N = np.arange(arguments.fakes) % max(1, run.network.num_classes)
    fake_NHWC = images.fakes(label_N, FAKES)
    held_NHWC, held_N = images.sets["holdout"]
    held_fake_NHWC = images.fake["holdout"]
    by = {
        "last": images.sampler(run.network_of(last)),
        "trained on": images.sampler(images.trained_on(last, arguments.on)),
    }
    chosen, facts = {"all": np.ones(len(label_N), bool)}, {}
    for name, sampler in by.items():
        real_N, other_N = (sampler.score(x, held_N if conditional else None) for x in (held_NHWC, held_fake_NHWC))
        logit_N = sampler.score(fake_NHWC, label_N if conditional else None)
        scores = Scores(np.arange(len(label_N)), label_N.astype(np.int32), logit_N)
        fit = calibration.calibrate(real_N, other_N, 0)
        facts[name] = {"auc": calibration.area(real_N, other_N), **asdict(fit.after)}
        print(f"{name}: area {facts[name]['auc']:.3f}, Brier {fit.after.brier:.3f}, calibration {fit.after.error:.3f}")
        chosen[f"{name}: top half"] = rules.top(scores, 0.5).selected_N
        calibrated = scores._replace(logit_N=fit(scores.logit_N).astype(np.float32))
        chosen[f"{name}: drs at 80"] = rules.drs(calibrated, None, 80.0, 0).selected_N
    count = min(arguments.drawn, len(held_N), *(int(one.sum()) for one in chosen.values()))
    measured = Measured(run, images.sets["training"], count, arguments.draws, arguments.seen)
    table = {name: measured(fake_NHWC[selected_N]) for name, selected_N in chosen.items()}
    table["holdout"] = measured(held_NHWC)
    print(f"{count:,} images of each, mean and standard deviation of {arguments.draws} draws")
    print(f"{'':<24}" + "".join(f"{name:>22}" for name in table))
    print(f"{'selected':<24}" + "".join(f"{int(one.sum()):>22,}" for one in chosen.values()))
    for measure in table["all"]:
        values = [f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in (row[measure] for row in table.values())]
        print(f"{measure:<24}" + "".join(f"{value:>22}" for value in values))
    if arguments.json:
        arguments.json.write_text(json.dumps({"ratios": {}, "figures": {"scores": facts, "measures": table}}, indent=1))


if __name__ == "__main__":
    main()
