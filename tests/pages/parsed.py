"""A page as a reader's program takes it apart, and what must hold for every page of ganmill."""

import base64
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise

from pipelines import images

_VOID = {"meta", "link", "img", "input", "br", "hr", "rect", "path", "circle", "line"}
_REFERENCES = ("src", "href", "srcset", "action", "data", "poster", "xlink:href")


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    inside: tuple[str, ...] = ()


@dataclass
class Page(HTMLParser):
    """All elements in their order, each with the text directly in it."""

    source: bytes
    elements: list[Element] = field(default_factory=list)
    open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source.decode())
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len({*names}), attrs
        element = Element(tag, dict(attrs), "", tuple(one.tag for one in self.open))
        self.elements.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs), "", tuple(one.tag for one in self.open)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.open[-1].text += data

    def all(self, *tags: str) -> list[Element]:
        return [element for element in self.elements if element.tag in tags]

    @property
    def words(self) -> str:
        """The text that is read, its white space as one space."""
        texts = (element.text for element in self.elements if element.tag not in ("style", "script"))
        return " ".join(" ".join(texts).split())


def check(source: bytes) -> Page:
    """A page that needs no other file, shows its pictures, and can be read by everyone."""
    page = Page(source)
    assert source.startswith(b"<!doctype html>")
    [html], [title], [h1] = page.all("html"), page.all("title"), page.all("h1")
    assert html.attributes["lang"] == "en"
    assert title.text.strip()
    assert h1.text.strip()
    _asks_for_nothing(page)
    _has_names(page)
    levels = [int(element.tag[1]) for element in page.all("h1", "h2", "h3", "h4")]
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    return page


def _asks_for_nothing(page: Page) -> None:
    for element in page.elements:
        for name, value in element.attributes.items():
            assert not name.startswith("on"), f"a handler in {element}"
            if name in _REFERENCES:
                assert (value or "").startswith(("data:", "#")), element
    assert {"iframe", "object", "embed", "base", "form"}.isdisjoint(element.tag for element in page.elements)
    [policy] = [e for e in page.all("meta") if e.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert (policy.attributes["content"] or "").startswith("default-src 'none'; img-src data:; ")
    assert all("url(" not in element.text and "@import" not in element.text for element in page.all("style"))
    assert len(page.all("script")) == 1
    for element in page.all("img"):
        kind, _, data = (element.attributes["src"] or "").partition(";base64,")
        assert kind in ("data:image/png", "data:image/webp")
        assert images.decode(base64.b64decode(data, validate=True), 3).size


def _has_names(page: Page) -> None:
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(ids) == len({*ids})
    assert all((element.attributes.get("alt") or "").strip() for element in page.all("img"))
    labels = {element.attributes.get("for") for element in page.all("label")}
    for element in page.all("input", "select"):
        assert element.attributes.get("id") in labels or "label" in element.inside, element
    for element in page.all("svg"):
        assert element.attributes["aria-hidden"] == "true"  # its caption says it
        assert "figure" in element.inside
    assert len(page.all("figcaption")) >= len(page.all("svg"))
    for element in page.elements:
        if element.attributes.get("class") == "scroll":
            assert element.attributes["tabindex"] == "0"
            assert element.attributes["aria-label"]
