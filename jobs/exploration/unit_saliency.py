"""Unit saliency of the last convolution, trained beside untrained, as one figure (guided backpropagation)."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from dcgan.exploration.discriminator_features import untrained
from dcgan.exploration.guided_backpropagation import Saliency, UnitSaliency
from dcgan.families.networks import Discriminator
from jobs.exploration import figure
from jobs.exploration.figure import Row
from jobs.exploration.inputs import Images, Inputs
from pipelines.images import Pixels

UNITS = 12
TOP = 4
SEARCHED = 10_000  # images at most
_GREY = 128
_CELL = 84  # pixels of a picture's cell, about
_FRAME = (255, 120, 0)
_COLUMN = "the images that activate this unit most, each followed by its guided gradient"


@dataclass(frozen=True, slots=True)
class StudiedUnit:
    """One unit: the images that activate it most, and its guided gradient for each."""

    unit: int
    position_T: np.ndarray  # among the images that were searched
    response_T: np.ndarray
    gradients: Saliency
    field: int


def explore(inputs: Inputs) -> tuple[dict[str, Any], Pixels]:
    """The result as JSON types, and the figure: a row a unit."""
    images = inputs.holdout if inputs.holdout is not None else inputs.real
    networks = {
        "trained": inputs.model.discriminator,
        "untrained": untrained(inputs.model.config, inputs.seed),
    }
    found, silent = {}, {}
    for name, network in networks.items():
        found[name], silent[name] = _find_units(network, images.images_NHWC[:SEARCHED])
    protocol = {
        **inputs.protocol(),
        "searched": f"{min(len(images), SEARCHED):,} images of {images.folder}",
        "units": f"the first {UNITS} of the last convolution layer that any of these images activates",
        "gradient": "guided backpropagation from the unit at the position of its largest activation",
        "silent_units": silent,
        "positions": "among the sampled images, in the dataset's order",
    }
    results = {
        name: [
            {"unit": one.unit, "positions": one.position_T.tolist(), "responses": one.response_T.tolist()}
            for one in units
        ]
        for name, units in found.items()
    }
    return {"format": 1, "protocol": protocol, "results": results}, _picture(images, found, inputs.digest)


def _find_units(network: Discriminator, images_NHWC: np.ndarray) -> tuple[list[StudiedUnit], int]:
    """The first active units, and the number of units that no image activates."""
    saliency = UnitSaliency(network)
    response_NU = saliency.responses(images_NHWC)
    active = np.flatnonzero(response_NU.max(0) > 0)
    units = []
    for unit in active[:UNITS].tolist():
        position_T = np.argsort(-response_NU[:, unit], kind="stable")[:TOP]
        gradients = saliency.saliency(images_NHWC[position_T], unit)
        units.append(StudiedUnit(unit, position_T, response_NU[position_T, unit], gradients, saliency.receptive_field))
    return units, response_NU.shape[1] - len(active)


def _picture(images: Images, found: dict[str, list[StudiedUnit]], digest: str) -> Pixels:
    """A row a unit: the trained network on the left, the untrained one on the right, each with its own images."""
    rows = []
    for number in range(max(map(len, found.values()))):
        cells: list[Pixels | None] = []
        captions = []
        for units in found.values():
            cells += [None] if cells else []
            shown = _cells(images.images_NHWC, units[number]) if number < len(units) else []
            cells += [*shown, *[None] * (2 * TOP - len(shown))]
            captions.append(str(units[number].unit) if shown else "-")
        rows.append(Row(f"unit {captions[0]}" if len({*captions}) == 1 else f"units {', '.join(captions)}", cells))
    columns: dict[int, str] = {}
    for block, name in enumerate(found):
        columns[block * (2 * TOP + 1)] = f"{name}: {_COLUMN}"
    title = (
        "Unit saliency of the last convolution. Framed: the receptive field of the unit. After each image, enlarged: "
        "its guided gradient\n(light: a lighter pixel raises the activation; dark: a darker one; mid-grey: none). "
        f"Model {digest[:12]}, images of --{images.role}"
    )
    return figure.draw(title, rows, columns, scale=1)


def _cells(images_NHWC: np.ndarray, one: StudiedUnit) -> list[Pixels]:
    """Each image with a frame around the receptive field, followed by the gradient in that field."""
    height = images_NHWC.shape[1]
    scale = max(1, _CELL // height)
    # One scale for all gradients of a unit: the strongest 0.5 % of the pixels become black or white.
    seen_THWC = np.stack([_field(g, one, n) for n, g in enumerate(one.gradients.gradient_NHWC)])
    strongest = max(float(np.quantile(np.abs(seen_THWC), 0.995)), 1e-30)
    levels_THWC = np.clip(_GREY + 127.0 * seen_THWC / strongest, 0, 255).round().astype(np.uint8)
    at = np.arange(height * scale) * one.field // (height * scale)
    cells = []
    for n, position in enumerate(one.position_T):
        large = np.broadcast_to(images_NHWC[position], (height, height, 3)).repeat(scale, 0).repeat(scale, 1)
        corner = int(one.gradients.left_N[n]) * scale, int(one.gradients.top_N[n]) * scale
        far = corner[0] + one.field * scale - 1, corner[1] + one.field * scale - 1
        framed = cv2.rectangle(large.copy(), corner, far, _FRAME, 1)
        cells += [framed, levels_THWC[n][at][:, at]]
    return cells


def _field(gradient_HWC: np.ndarray, one: StudiedUnit, n: int) -> np.ndarray:
    """The gradient in the receptive field of the unit; 0 in the padding."""
    pad = one.field
    padded = np.pad(gradient_HWC, ((pad, pad), (pad, pad), (0, 0)))
    top, left = one.gradients.top_N[n] + pad, one.gradients.left_N[n] + pad
    return padded[top : top + one.field, left : left + one.field]
