"""Pages: self-contained HTML files from templates. A page asks for nothing: style, script and pictures are inside it.

Each page has a template of its own in `templates/`, which extends `base.html`. What a page shows is gathered where the
facts are: jobs/training/report.py, jobs/evaluation/report.py, pipelines/dataset/page.py.
"""

import base64
import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.images import Pixels

if TYPE_CHECKING:
    import jinja2

_TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **facts: Any) -> bytes:
    """The page of a template, as UTF-8. Every fact is escaped, but for the figures of `figures.py`.

    Raises: jinja2.UndefinedError for a fact that the template needs and that is not given.
    """
    return _environment().get_template(template).render(facts).encode()


def number(value: float | None) -> str:
    """Four digits; `-` for a number that was not measured."""
    return "-" if value is None else f"{value:.4g}"


def content_policy() -> str:
    """The content security policy: no request at all, and no script but the page's own."""
    digest = base64.b64encode(hashlib.sha256(text("page.js").encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


@functools.cache
def text(name: str) -> str:
    """A file beside the templates: `style.css`, `page.js`."""
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def data_url(picture: bytes) -> str:
    """An encoded picture as the source of an <img>. PNG, JPEG or WebP, by its first bytes."""
    kind = next((kind for start, kind in _KINDS.items() if picture.startswith(start)), "webp")
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


_KINDS = {b"\x89PNG": "png", b"\xff\xd8": "jpeg"}


def png(image_HWC: Pixels) -> str:
    """Pixels as the source of an <img>, without loss."""
    from pipelines import images  # needs OpenCV

    return data_url(images.encode(image_HWC))


@functools.cache
def _environment() -> "jinja2.Environment":
    import jinja2  # with its sandbox and parser it takes 50 ms
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "data_url": data_url, "png": png}
    environment.globals |= {
        "content_policy": content_policy(),
        "style": markupsafe.Markup(text("style.css")),
        "script": markupsafe.Markup(text("page.js")),
    }
    return environment
