#!/usr/bin/env python3
"""Look into a model: what its discriminator knows and looks at, and what lies between its latents. As pictures."""

if __name__ == "__main__":
    from jobs.command import signals

    signals.arm()

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, ClassVar, Literal

from pydantic import Field

from dcgan import model_files
from dcgan.evaluation.features import FeaturesError
from dcgan.exploration.discriminator_features import convolution_blocks
from jobs.command.entry import run
from jobs.command.errors import UsageError
from jobs.command.model_store import BEST
from jobs.command.settings import JobSettings, Number, Url
from jobs.exploration import inputs, latent_traversal, linear_probe, unit_saliency
from jobs.exploration.inputs import Inputs
from jobs.exploration.linear_probe import ProbeResult
from pipelines import images
from pipelines.dataset import layout, reader
from pipelines.images import Pixels
from pipelines.storage.folder import Folder


class ExploreSettings(JobSettings):
    """The settings of `jobs/explore.py`."""

    resumable: ClassVar[bool] = False
    command: ClassVar[str] = "explore"
    about: ClassVar[str] = (
        "What a model's discriminator knows and looks at, and walks between its latents: numbers and pictures. "
        "It runs in one process, where it is started, on that machine's CPUs. docs/quality.md says what each shows."
    )
    examples: ClassVar[tuple[str, ...]] = (
        "jobs/explore.py",
        "jobs/explore.py --model /data/run --data /data/mnist --holdout /data/mnist-test --output /data/explored",
        "jobs/explore.py --what walks --model s3://bucket/run --data s3://bucket/faces",
    )

    model: Url = Field("{root}/run", description="a model, or a run, whose best model is taken")
    data: Url = Field("{root}/real", description="the real dataset, which the model was trained on")
    holdout: Url | None = Field(
        None, description="real images that it was not trained on: what classifiers are tested on"
    )
    output: Url | None = Field(None, description="where pictures and results go; default: {model}-explored")
    what: Literal["all", "features", "backprop", "walks"] = Field("all", description="which part to do")
    images: Number = Field(
        60_000, ge=10, le=10**7, description="images of each dataset at most; all are held in memory"
    )
    labels: Number = Field(1000, ge=10, le=10**6, description="how many labels the classifier has, beside all of them")
    repeats: Number = Field(5, ge=1, le=100, description="draws of so few labels")
    centroids: Number = Field(400, ge=2, le=10_000, description="of the k-means features that are compared with")
    seed: Number = Field(0, ge=0, le=2**20, description="draws images, labels, patches, latents, and untrained weights")


def main(settings: ExploreSettings) -> None:
    output = Folder(settings.output or f"{settings.model}-explored")
    for name in (layout.CLAIM, model_files.CARD, BEST):
        if output.exists(name):
            raise UsageError(f"--output {output}: a dataset, model or run is here; name another folder")
    found = inputs.open_inputs(settings.model, settings.data, settings.holdout, settings.images, settings.seed)
    trained = found.model.provenance.get("images")
    print(
        f"explore: model {found.digest[:12]} of {found.model_folder}, {trained or 'unknown'} images trained", flush=True
    )
    if found.model.provenance.get("data") != reader.open_sealed(found.real_folder).root:
        print(f"explore: note: it was not trained on --data {found.real_folder}, or not as that is now")
    for part in _parts(found, settings.what):
        if part == "backprop":
            _backprop(found, output)
        elif part == "walks":
            _walks(found, output)
        elif settings.what == "all" and not linear_probe.has_classes(found):
            print("explore: no classes, so nothing for a classifier to tell: features are left out")
        else:
            _features(found, output, settings)


def _parts(found: Inputs, what: str) -> tuple[str, ...]:
    """What is to be done. Raises UsageError for what the discriminator does not have."""
    try:
        convolution_blocks(found.model.discriminator)
    except FeaturesError as error:
        if what in ("features", "backprop"):
            raise UsageError(f"--model {found.model_folder}: {error}; only --what walks goes without") from error
        print(f"explore: {error}: walks only")
        return ("walks",)
    return ("backprop", "walks", "features") if what == "all" else (what,)


def _backprop(found: Inputs, output: Folder) -> None:
    result, picture = unit_saliency.explore(found)
    _write(output, "backprop.json", result)
    _show(output, {"backprop": picture})


def _walks(found: Inputs, output: Folder) -> None:
    result, pictures = latent_traversal.explore(found)
    _write(output, "walks.json", result)
    results = result["results"]
    near = results["interpolation"]
    print(
        f"explore: median distance of walked images to the nearest training image "
        f"{near['nearest_distance_median']:.3f}"
        + (f", of the holdout's {near['nearest_distance_median_of_holdout']:.3f}" if len(near) > 1 else "")
    )
    sums = results["arithmetic"]
    print(
        f"explore: arithmetic: {sums['on_the_right_side_of_both_medians']:.0%} of {sums['results']} results are "
        f"{sums['expected']} (by chance 25%)"
    )
    for name, moved in results["directions"].items():
        ranks = moved["mean_rank_by_step"]
        print(f"explore: direction of {name}: mean rank {ranks[0]:.2f}, {ranks[len(ranks) // 2]:.2f}, {ranks[-1]:.2f}")
    _show(output, pictures)


def _features(found: Inputs, output: Folder, settings: ExploreSettings) -> None:
    head = f"{'features':<16}{'size':>8}{'labels':>9}{'error':>9}  {'interval':<18}C"
    print(f"explore: the error of a linear L2-SVM on\n{head}", flush=True)
    result = linear_probe.explore(found, settings.labels, settings.repeats, settings.centroids, _tell)
    _write(output, "features.json", result)
    protocol = result["protocol"]
    print(f"explore: tested on {protocol['tested_on']:,} images: {protocol['test']}")
    print("explore: interval: with all labels Wilson's 95 %, else one standard deviation over draws of the labels")
    if protocol["labels_seen_in_training"]:
        print(
            "explore: this discriminator was trained with the labels of all its images: its errors are not those of "
            "features learnt without labels (train with --no-conditional for these)"
        )
    print(f"explore: {output}/features.json")


def _tell(line: ProbeResult) -> None:
    chosen = ", ".join(dict.fromkeys(f"{one['C']:g}" for one in line.repeats))
    interval = f"{line.low:.2%} to {line.high:.2%}"
    start = f"{line.features:<16}{line.size:>8,}{line.labels:>9,}"
    print(f"{start}{line.error:>9.2%}  {interval:<18}{chosen}", flush=True)


def _write(output: Folder, name: str, result: Mapping[str, Any]) -> None:
    software = {package: version(package) for package in ("torch", "scikit-learn", "numpy")}
    data = {**result, "protocol": {**result["protocol"], "software": software}}
    output.write(name, json.dumps(data, indent=1, allow_nan=False).encode() + b"\n")


def _show(output: Folder, pictures: Mapping[str, Pixels]) -> None:
    for name, picture in pictures.items():
        output.write(f"{name}.png", images.encode(picture))
    print(f"explore: look at {', '.join(f'{output}/{name}.png' for name in pictures)}")


if __name__ == "__main__":
    run(main, ExploreSettings)
