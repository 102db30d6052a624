"""An evaluation as one self-contained HTML page: tables, a histogram as SVG, the closest pairs as PNG."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from jobs.evaluation.metrics import Row

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:64em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .7em;border-bottom:1px solid #ddd;text-align:left}"
    "td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}img{image-rendering:pixelated;max-width:100%}"
    "svg text{font:12px sans-serif;fill:#444}code{word-break:break-all}"
)
_COLOURS = {"fake": "#c2410c", "holdout": "#1d4ed8", "real": "#15803d"}
_WIDTH, _HEIGHT = 720, 220
_BINS = 50


def render_html(
    protocol: Mapping[str, Any],
    classes: Sequence[str],
    rows: Sequence[Row],
    distances: Mapping[tuple[str, str], np.ndarray],
    closest_png: bytes,
) -> str:
    """The page. `distances`: distance_N by (of, against), from `metrics.nearest_distances`."""
    datasets = protocol["datasets"]
    whole = [row for row in rows if row.label is None]
    of_class = [row for row in rows if row.label is not None]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Evaluation</title><style>{_STYLE}</style>",
        f"<h1>{escape(datasets['fake']['url'])} against {escape(datasets['real']['url'])}</h1>",
        "<p>docs/quality.md explains each number and its limits.</p>",
        _results(whole),
        "<h2>Distance of each image to its nearest neighbour</h2>",
        _histogram(distances),
        f"<h2>The closest pairs</h2><p>Top: the synthetic images that are nearest to one of the "
        f"{datasets['real']['drawn']:,} sampled real images. Bottom: the real images.</p>",
        f'<img alt="closest pairs" src="data:image/png;base64,{base64.b64encode(closest_png).decode()}">',
    ]
    if of_class:
        parts += ["<h2>Class by class</h2>", _class_table(of_class, classes)]
    return "\n".join([*parts, "<h2>Protocol</h2>", _protocol(protocol)]) + "\n"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _results(rows: Sequence[Row]) -> str:
    head = (
        "<tr><th>measure<th>of<th>against<th class=n>value<th class=n>spread<th class=n>n of<th class=n>n against<th>"
    )
    lines = [
        f"<tr><td>{row.measure.replace('_', ' ')}<td>{row.of}<td>{row.against}<td class=n>{number(row.value)}"
        f"<td class=n>{number(row.spread)}<td class=n>{row.n_of:,}<td class=n>{row.n_against:,}<td>{escape(row.note)}"
        for row in rows
    ]
    return "\n".join(["<table>", head, *lines, "</table>"])


def _class_table(rows: Sequence[Row], classes: Sequence[str]) -> str:
    """A line for each class and set, a column for each measure. Notes below give the reason for a missing number."""
    measures = list(dict.fromkeys(row.measure for row in rows))
    columns = "".join(f"<th class=n>{measure.replace('_', ' ')}" for measure in measures)
    cells = {(row.label, row.of, row.measure): row for row in rows}
    lines = []
    for label, of in dict.fromkeys((row.label, row.of) for row in rows):
        found = [cells[label, of, measure] for measure in measures]
        values = "".join(f"<td class=n>{_with_spread(row)}" for row in found)
        drawn = cells[label, of, "kernel_distance"]
        name = escape(classes[label or 0])
        lines.append(f"<tr><td>{name}<td>{of}<td class=n>{drawn.n_of:,}<td class=n>{drawn.n_against:,}{values}")
    notes = dict.fromkeys(f"{row.measure.replace('_', ' ')}: {row.note}" for row in rows if row.note)
    head = f"<tr><th>class<th>of<th class=n>sampled<th class=n>real sampled{columns}"
    return "\n".join(["<table>", head, *lines, "</table>", *(f"<p>{escape(note)}</p>" for note in notes)])


def _with_spread(row: Row) -> str:
    return number(row.value) if row.spread is None else f"{number(row.value)} ± {number(row.spread)}"


def _histogram(distances: Mapping[tuple[str, str], np.ndarray]) -> str:
    """A histogram of the distances to the nearest real image, as step curves."""
    shown = {of: distance_N for (of, against), distance_N in distances.items() if against == "real"}
    high = max(float(distance_N.max()) for distance_N in shown.values()) or 1.0
    shares = {of: np.histogram(d, _BINS, (0.0, high))[0] / len(d) for of, d in shown.items()}
    top = max(float(share.max()) for share in shares.values())
    lines = []
    for place, (of, share) in enumerate(shares.items()):
        points = " ".join(
            f"{x * _WIDTH / _BINS:.1f},{_HEIGHT * (1 - y / top):.1f}" for n, y in enumerate(share) for x in (n, n + 1)
        )
        name = "real to another real" if of == "real" else f"{of} to real"
        lines.append(f'<polyline points="{points}" fill="none" stroke="{_COLOURS[of]}" stroke-width="2"/>')
        lines.append(f'<text x="{_WIDTH - 148}" y="{16 + 16 * place}">{name}</text>')
        lines.append(f'<rect x="{_WIDTH - 165}" y="{7 + 16 * place}" width="10" height="10" fill="{_COLOURS[of]}"/>')
    axis = (
        f'<line x1="0" y1="{_HEIGHT}" x2="{_WIDTH}" y2="{_HEIGHT}" stroke="#888"/>'
        f'<text x="0" y="{_HEIGHT + 16}">0</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 16}" text-anchor="end">distance {number(high)}</text>'
    )
    size = f'viewBox="-5 -5 {_WIDTH + 10} {_HEIGHT + 30}" width="{_WIDTH}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{axis}{"".join(lines)}</svg>'


def _protocol(protocol: Mapping[str, Any]) -> str:
    flat = {name: value for name, value in protocol.items() if not isinstance(value, dict)}
    nested = {
        f"{name}: {key}": ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        for name, inner in protocol.items()
        if isinstance(inner, dict)
        for key, value in inner.items()
    }
    lines = [f"<tr><td>{escape(k)}<td><code>{escape(str(v))}</code>" for k, v in {**nested, **flat}.items()]
    return "\n".join(["<table>", *lines, "</table>"])
