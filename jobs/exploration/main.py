"""Explore a model: a linear probe and the saliency of its discriminator, and traversals of its latent space."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from dcgan import model_card
from dcgan.evaluation.features import FeaturesError
from dcgan.exploration.discriminator_features import convolution_blocks
from jobs.command.errors import UsageError
from jobs.command.model_store import BEST
from jobs.exploration import inputs, latent_traversal, linear_probe, unit_saliency
from jobs.exploration.inputs import Inputs
from jobs.exploration.linear_probe import ProbeResult
from jobs.exploration.settings import ExploreSettings
from pipelines import images
from pipelines.dataset import layout, reader
from pipelines.images import Pixels
from pipelines.storage.folder import Folder


def main(settings: ExploreSettings) -> None:
    output = Folder(settings.output or f"{settings.model}-explored")
    for name in (layout.CLAIM, model_card.CARD, BEST):
        if output.exists(name):
            raise UsageError(f"--output {output}: a dataset, model or run is here; name another folder")
    found = inputs.open_inputs(settings.model, settings.data, settings.holdout, settings.images, settings.seed)
    trained = found.model.provenance.get("images")
    print(
        f"explore: model {found.digest[:12]} of {found.model_folder}, {trained or 'unknown'} images trained", flush=True
    )
    if found.model.provenance.get("data") != reader.open_sealed(found.real_folder).root:
        print(f"explore: note: it was not trained on --data {found.real_folder}, or that has changed since")
    for part in _parts(found, settings.what):
        if part == "backprop":
            _backprop(found, output)
        elif part == "walks":
            _walks(found, output)
        elif settings.what == "all" and not linear_probe.has_classes(found):
            print("explore: no classes, so the linear probe is left out")
        else:
            _features(found, output, settings)


def _parts(found: Inputs, what: str) -> tuple[str, ...]:
    """The parts to do. Raises UsageError for a part that the discriminator does not support."""
    try:
        convolution_blocks(found.model.discriminator)
    except FeaturesError as error:
        if what in ("features", "backprop"):
            raise UsageError(f"--model {found.model_folder}: {error}; only --what walks works without them") from error
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
        f"explore: median distance of interpolated images to the nearest training image "
        f"{near['nearest_distance_median']:.3f}"
        + (f"; of holdout images {near['nearest_distance_median_of_holdout']:.3f}" if len(near) > 1 else "")
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
    result = linear_probe.explore(found, settings.labels, settings.repeats, settings.centroids, _print_result)
    _write(output, "features.json", result)
    protocol = result["protocol"]
    print(f"explore: tested on {protocol['tested_on']:,} images: {protocol['test']}")
    print("explore: interval: with all labels Wilson's 95 %, else one standard deviation over draws of the labels")
    if protocol["labels_seen_in_training"]:
        print(
            "explore: this discriminator was trained with all labels, so these are not errors of features learnt "
            "without labels (train with --no-conditional for those)"
        )
    print(f"explore: {output}/features.json")


def _print_result(result: ProbeResult) -> None:
    chosen = ", ".join(dict.fromkeys(f"{one['C']:g}" for one in result.repeats))
    interval = f"{result.low:.2%} to {result.high:.2%}"
    start = f"{result.features:<16}{result.size:>8,}{result.labels:>9,}"
    print(f"{start}{result.error:>9.2%}  {interval:<18}{chosen}", flush=True)


def _write(output: Folder, name: str, result: Mapping[str, Any]) -> None:
    software = {package: version(package) for package in ("torch", "scikit-learn", "numpy")}
    data = {**result, "protocol": {**result["protocol"], "software": software}}
    output.write(name, json.dumps(data, indent=1, allow_nan=False).encode() + b"\n")


def _show(output: Folder, pictures: Mapping[str, Pixels]) -> None:
    for name, picture in pictures.items():
        output.write(f"{name}.png", images.encode(picture))
    print(f"explore: look at {', '.join(f'{output}/{name}.png' for name in pictures)}")
