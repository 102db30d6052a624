"""The HTML of the pages, by templates that escape every value."""

import base64
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from starlette.responses import HTMLResponse

from jobs.browsing.near import Again, Nearest
from pipelines.dataset.facts import Facts
from pipelines.pages import engine

_TEMPLATES = Path(__file__).parent / "templates"


def overview(facts: Facts, *, count: int, address: Callable[..., str], **values: Any) -> HTMLResponse:
    """A page of images. `address` gives the address of the same page with changed values."""
    return _render("overview.html", facts=facts, count=count, address=address, **values)


def image(facts: Facts, *, again: Again | None, nearest: Nearest | None, **values: Any) -> HTMLResponse:
    """One image."""
    return _render("image.html", facts=facts, again=again, nearest=nearest, **values)


def message(text: str, status: int) -> HTMLResponse:
    """One line, and the way back."""
    return _render("message.html", status=status, text=text)


@cache
def style() -> str:
    """The style of all pages, and what forms need."""
    return engine.text("style.css") + (_TEMPLATES / "forms.css").read_text()


def _render(template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    return HTMLResponse(_environment().get_template(template).render(**values), status)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["data_url"] = lambda png: f"data:image/png;base64,{base64.b64encode(png).decode()}"
    environment.filters["class_name"] = _class_name
    return environment


def _class_name(label: int | None, facts: Facts) -> str:
    """A label as `3: cat`; '' without classes."""
    names = facts.identity.classes
    if label is None or names is None:
        return ""
    return f"{label}: {names[label]}" if 0 <= label < len(names) else str(label)
