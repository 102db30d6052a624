"""What the last convolution's units look at, trained beside untrained, as one picture."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from dcgan.exploration.discriminator_features import untrained
from dcgan.exploration.guided_backpropagation import Gaze, Regard
from dcgan.families.family import Discriminator
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


@dataclass(frozen=True, slots=True)
class UnitSaliency:
    """One unit: the images that move it most, and what it saw in each."""

    unit: int
    position_T: np.ndarray  # among the images that were searched
    response_T: np.ndarray
    regard: Regard
    field: int


def explore(inputs: Inputs) -> tuple[dict[str, Any], Pixels]:
    """The result as JSON, and the picture: a row a unit."""
    images = inputs.holdout if inputs.holdout is not None else inputs.real
    networks = {
        "trained": inputs.model.discriminator,
        "untrained": untrained(inputs.model.config, inputs.seed),
    }
    found, silent = {}, {}
    for name, network in networks.items():
        found[name], silent[name] = _look(network, images.images_NHWC[:SEARCHED])
    protocol = {
        **inputs.protocol(),
        "searched": f"{min(len(images), SEARCHED):,} images of {images.folder}",
        "units": f"the first {UNITS} of the last convolution layer that answer any of these images at all",
        "gradient": "guided backpropagation from the unit at the place where it answers most",
        "silent_units": silent,
        "positions": "among the images that were drawn, in the dataset's order",
    }
    results = {
        name: [
            {"unit": one.unit, "positions": one.position_T.tolist(), "responses": one.response_T.tolist()}
            for one in units
        ]
        for name, units in found.items()
    }
    return {"format": 1, "protocol": protocol, "results": results}, _picture(images, found, inputs.digest)


def _look(network: Discriminator, images_NHWC: np.ndarray) -> tuple[list[UnitSaliency], int]:
    """The first units that answer at all, and how many of the layer's never do."""
    gaze = Gaze(network)
    response_NU = gaze.responses(images_NHWC)
    awake = np.flatnonzero(response_NU.max(0) > 0)
    seen = []
    for unit in awake[:UNITS].tolist():
        position_T = np.argsort(-response_NU[:, unit], kind="stable")[:TOP]
        regard = gaze.regard(images_NHWC[position_T], unit)
        seen.append(UnitSaliency(unit, position_T, response_NU[position_T, unit], regard, gaze.field))
    return seen, response_NU.shape[1] - len(awake)


def _picture(images: Images, found: dict[str, list[UnitSaliency]], digest: str) -> Pixels:
    """A row a unit; on the left the trained network's, on the right the untrained one's, each with its own images."""
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
        columns[block * (2 * TOP + 1)] = f"{name}: what moves the unit most, and behind each what of it does"
    title = (
        "What the last convolution's units look at. Framed: what a unit sees of the image. Behind it, enlarged: guided "
        "backpropagation from the unit (light: more light there would move it more,\ndark: less; mid-grey: nothing). "
        f"Model {digest[:12]}, images of --{images.role}"
    )
    return figure.draw(title, rows, columns, scale=1)


def _cells(images_NHWC: np.ndarray, one: UnitSaliency) -> list[Pixels]:
    """Each image with a frame around the unit's field, and beside it the gradient in the field."""
    height = images_NHWC.shape[1]
    scale = max(1, _CELL // height)
    # One scale for a unit's pictures: the strongest 0.5 % of the pixels it sees are black or white.
    seen_THWC = np.stack([_field(g, one, n) for n, g in enumerate(one.regard.gradient_NHWC)])
    strongest = max(float(np.quantile(np.abs(seen_THWC), 0.995)), 1e-30)
    levels_THWC = np.clip(_GREY + 127.0 * seen_THWC / strongest, 0, 255).round().astype(np.uint8)
    at = np.arange(height * scale) * one.field // (height * scale)
    cells = []
    for n, position in enumerate(one.position_T):
        large = np.broadcast_to(images_NHWC[position], (height, height, 3)).repeat(scale, 0).repeat(scale, 1)
        corner = int(one.regard.left_N[n]) * scale, int(one.regard.top_N[n]) * scale
        far = corner[0] + one.field * scale - 1, corner[1] + one.field * scale - 1
        framed = cv2.rectangle(large.copy(), corner, far, _FRAME, 1)
        cells += [framed, levels_THWC[n][at][:, at]]
    return cells


def _field(gradient_HWC: np.ndarray, one: UnitSaliency, n: int) -> np.ndarray:
    """The part of a gradient that the unit sees; 0 where that is padding."""
    pad = one.field
    padded = np.pad(gradient_HWC, ((pad, pad), (pad, pad), (0, 0)))
    top, left = one.regard.top_N[n] + pad, one.regard.left_N[n] + pad
    return padded[top : top + one.field, left : left + one.field]
