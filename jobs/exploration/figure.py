"""A figure: rows of images with captions beside and above them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.images import Pixels

_GAP, _PAD, _FONT = 3, 10, 13
_LINE = _FONT + 4
_INK = (40, 40, 40)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of images of one size; None leaves a place empty. A row without images is a gap."""

    caption: str
    images: Sequence[Pixels | None] = ()


def draw(title: str, rows: Sequence[Row], columns: Mapping[int, str], scale: int) -> Pixels:
    """Draw the rows below a title. `columns`: captions by column. Each pixel becomes `scale` x `scale`."""
    font = ImageFont.load_default(_FONT)
    height, width, _ = next(image for row in rows for image in row.images if image is not None).shape
    step_x, step_y = width * scale + _GAP, height * scale + _GAP
    left = _PAD + round(max(_widest(row.caption, font) for row in rows)) + _PAD
    top = _PAD + _LINE * (len(title.splitlines()) + max((text.count("\n") + 1 for text in columns.values()), default=0))
    words = [_PAD + font.getlength(line) for line in title.splitlines()]
    words += [left + place * step_x + _widest(text, font) for place, text in columns.items()]
    right = max(left + max(len(row.images) for row in rows) * step_x, *map(round, words))
    bottom = top + sum(step_y if row.images else _LINE for row in rows)
    canvas = Image.new("RGB", (right + _PAD, bottom + _PAD), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((_PAD, _PAD // 2), title, _INK, font)
    for place, text in columns.items():
        lines = text.count("\n") + 1
        pen.text((left + place * step_x, top - _LINE * lines), text, _INK, font)
    y = top
    for row in rows:
        lines = row.caption.count("\n") + 1
        middle = (height * scale - lines * _LINE) // 2 if row.images else 0
        pen.text((_PAD, y + middle), row.caption, _INK, font)
        for place, image in enumerate(row.images):
            if image is not None:
                canvas.paste(_enlarged(image, scale), (left + place * step_x, y))
        y += step_y if row.images else _LINE
    return np.asarray(canvas)


def _enlarged(image: Pixels, scale: int) -> Image.Image:
    return Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)).repeat(scale, 0).repeat(scale, 1))


def _widest(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> float:
    return max((font.getlength(line) for line in text.splitlines()), default=0.0)
