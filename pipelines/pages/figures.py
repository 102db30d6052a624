"""Figures as SVG in the page itself, drawn by pygal. Their colours and type are those of `style.css`, light or dark.

pygal and not matplotlib: it is there in 0.06 s and draws a figure in 0.01 s, which took 0.65 s and 0.12 s (one busy
core), and a page is written at every tick of a training.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from markupsafe import Markup

MAX_POINTS = 800  # of a line: more than a figure has pixels
_LEFT_OUT = ("comment", "defs", "desc", "title", "script")
_OVERLAYS = ("plot text-overlay", "plot tooltip-overlay")
_STEPS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure, its title, and its content in words, also for those who do not see it."""

    title: str
    svg: "Markup"
    words: str


def lines(
    title: str,
    words: str,
    x_label: str,
    x_N: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    log: bool = False,
    mark: tuple[float, float] | None = None,
) -> Chart:
    """Curves over one axis, by name.

    Args: log: values that are all positive, on a logarithmic axis. mark: a point to ring.
    """
    step = -(-len(x_N) // MAX_POINTS)
    curves = {name: [*zip(x_N[::step], y_N[::step], strict=True)] for name, y_N in series.items()}
    if step > 1:  # the last one, whatever the step
        curves = {name: [*points, (x_N[-1], series[name][-1])] for name, points in curves.items()}
    return Chart(title, _draw(x_label, curves, mark, log), words)


def histograms(
    title: str, words: str, x_label: str, edges_B: Sequence[float], counts: Mapping[str, Sequence[float]]
) -> Chart:
    """Histograms over the same bins, by name, each in shares of its own sum."""
    curves = {}
    for name, count_B in counts.items():
        total = float(sum(count_B)) or 1.0
        bins = zip(pairwise(edges_B), count_B, strict=True)
        curves[name] = [(edge, count / total) for edges, count in bins for edge in edges]
    return Chart(title, _draw(x_label, curves, include_x_axis=True), words)


def short(value: float) -> str:
    """A number on an axis: 1.2M."""
    unit, letter = next(((unit, letter) for unit, letter in _STEPS if abs(value) >= unit), (1, ""))
    return f"{value / unit:.3g}{letter}"


def _draw(
    x_label: str,
    curves: Mapping[str, list[tuple[float, float]]],
    mark: tuple[float, float] | None = None,
    log: bool = False,
    **options: Any,
) -> "Markup":
    """Curves as an <svg>. Equal curves give equal bytes."""
    import pygal
    from markupsafe import Markup

    def height(value: float) -> float:
        return math.log10(value) if log else value  # pygal's own `logarithmic` takes the logarithm of x too

    chart = pygal.XY(
        width=340,
        height=210,
        margin=4,
        show_dots=False,
        show_legend=len(curves) > 1,
        legend_at_bottom=True,
        legend_box_size=10,
        x_title=x_label,
        value_formatter=lambda value: short(10**value if log else value),
        x_value_formatter=short,
        x_labels_major_count=5,
        show_minor_x_labels=False,
        y_labels_major_count=4,
        show_minor_y_labels=False,
        truncate_legend=-1,
        truncate_label=-1,
        css=[],
        js=[],
        no_prefix=True,
        **options,
    )
    for name, points in curves.items():
        chart.add(name, [(x, height(y)) for x, y in points if math.isfinite(y)])
    if mark:
        chart.add(None, [(mark[0], height(mark[1]))], show_dots=True, dots_size=5)
    chart.add_xml_filter(_clean)
    return Markup(chart.render(is_unicode=True, disable_xml_declaration=True))


def _clean(root: "Element") -> "Element":
    """Without pygal's script and styles, the date of drawing, tooltips, and the ids, which would be twice in a page."""
    for parent in [*root.iter()]:
        parent.attrib.pop("id", None)
        for child in [*parent]:
            kind = child.tag.rpartition("}")[2] if isinstance(child.tag, str) else "comment"
            if kind in _LEFT_OUT or child.get("class") in _OVERLAYS:
                parent.remove(child)
    root.attrib["aria-hidden"] = "true"  # the words beside it say it
    return root
