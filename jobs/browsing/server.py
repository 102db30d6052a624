"""The pages of a dataset. Each is made on the server: a browser gets HTML, one style sheet and images, no script."""

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from dcgan.errors import ModelError
from jobs.browsing import views
from jobs.browsing.guard import App, Guard
from jobs.browsing.near import Helper
from jobs.browsing.rows import PAGE, Filter, Rows
from pipelines.dataset import reader, selection
from pipelines.dataset.facts import Facts
from pipelines.dataset.layout import Index
from pipelines.dataset.manifest import tar_name
from pipelines.errors import CorruptError, DatasetError
from pipelines.image_header import dimensions
from pipelines.storage.folder import Folder

_REACH = 8  # neighbours on each side
_MIME = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_SHOWABLE = (CorruptError, DatasetError, ModelError, OSError)


class BadRequestError(ValueError):
    """A value in an address or a form that is not allowed. The text names it."""


@dataclass(frozen=True, kw_only=True)
class Browser:
    """A dataset as it is shown."""

    folder: Folder
    index: Index
    facts: Facts
    rows: Rows
    helper: Helper
    selected: bool  # whether a selection was given
    beyond: str  # why the training images are not within reach; '' if they are

    def application(self, token: str, port: int) -> App:
        """The server's application, which answers those who have the token."""
        form = secrets.token_urlsafe(16)  # in each form: so that only our own pages can send one
        routes = [
            Route("/", self._page(lambda request: self.overview(request, form))),
            Route("/image/{key}", self._page(self.image)),
            Route("/picture/{key}", self._page(self.picture)),
            Route("/save", self._page(lambda request: self.save(request, form)), methods=["POST"]),
            Route("/style.css", self._page(lambda request: Response(views.style(), media_type="text/css"))),
        ]
        return Guard(Starlette(routes=routes, exception_handlers={404: _missing, 405: _missing}), token, port)

    def _page(self, answer: Callable[[Any], Response]) -> Callable[[Request], Any]:
        """An endpoint that says in one line what is wrong with a request, or with the dataset."""

        async def endpoint(request: Request) -> Response:
            body = await request.body()
            try:
                return await run_in_threadpool(answer, _Given(request.path_params, request.url.query, body))
            except BadRequestError as error:
                return views.message(str(error), 400)
            except _SHOWABLE as error:
                return views.message(str(error), 502)

        return endpoint

    def overview(self, given: "_Given", form: str) -> Response:
        """A page of images, with the form that filters them."""
        chosen, order, page = self._filter(given.query), self._order(given.query), given.number("page", 0, 10**9)
        count = self.rows.count(chosen)
        return views.overview(
            self.facts,
            rows=self.rows.page(chosen, order, page),
            count=count,
            page=page,
            pages=max(1, -(-count // PAGE)),
            chosen=chosen,
            order=order,
            orders=self.rows.orders,
            selectable=self.selected,
            address=lambda **changes: self._address(given.query, changes),
            form=form,
            saved=given.query.get("saved", "")[:200],
        )

    def image(self, given: "_Given") -> Response:
        """An image with its row and its neighbours; made again and compared, if asked."""
        row = self._row(given.path["key"])
        again = self.helper.again(row) if "again" in given.query and self.rows.synthetic else None
        nearest = self.helper.nearest(row) if "nearest" in given.query and not self.beyond else None
        return views.image(
            self.facts,
            row=row,
            tar=f"{self.folder}/{tar_name(row['shard'])}",
            neighbours=self.rows.neighbours(row, _REACH),
            last=self.index.identity.count - 1,
            again=again,
            nearest=nearest,
            beyond=self.beyond,
        )

    def picture(self, given: "_Given") -> Response:
        """An image's bytes: one range read, checked against the hash in its row."""
        row = self._row(given.path["key"])
        data = reader.read_image(self.folder, row)
        if dimensions(data) != self.index.image_shape[:2]:
            raise CorruptError(f"{self.folder}: sample {row['key']}: its image declares another size, or none")
        return Response(data, media_type=_MIME[self.index.identity.image.format])

    def save(self, given: "_Given", form: str) -> Response:
        """Write the indices of all images that the filter shows as a selection beside the dataset."""
        sent = dict(parse_qsl(given.body.decode("utf-8", "replace")))
        if not secrets.compare_digest(sent.get("form", "").encode(), form.encode()):
            raise BadRequestError("the form is of an earlier start of the server: load the page again")
        name = sent.get("name", "")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name):
            raise BadRequestError(f"name {name[:60]!r}: letters, digits, - and _ only, and at most 60")
        query = dict(parse_qsl(sent.get("filter", "")))
        chosen = self._filter(query)
        url = f"{self.folder}-{name}.parquet"
        parent, file = selection.split(url)
        if not parent.create(file, self._encode(chosen)):
            raise BadRequestError(f"{url}: is there already, and a selection never changes; use another name")
        return RedirectResponse("/?" + urlencode({**query, "saved": url}), 303)

    def _encode(self, chosen: Filter) -> bytes:
        index_N = self.rows.indices(chosen)
        if not len(index_N):
            raise BadRequestError("the filter shows no image: there is nothing to select")
        parameters: dict[str, str | int | float | None] = {
            "label": chosen.label, "low": chosen.low, "high": chosen.high, "source": chosen.source or None,
            "selected": "yes" if chosen.selected else "no",
        }  # fmt: skip
        facts = selection.Facts(
            dataset=self.index.root,
            rule="browse",
            parameters=parameters,
            images=self.index.samples,
            classes=[{"label": label, "taken": taken, "of": of} for label, taken, of in self.rows.classes(chosen)],
        )
        return selection.encode(facts, index_N)

    def _filter(self, query: Mapping[str, str]) -> Filter:
        """The filter that an address asks for. Raises BadRequestError."""
        given = _Given({}, urlencode(query), b"")
        classes = self.index.classes or []
        return Filter(
            label=given.number("label", 0, len(classes) - 1) if query.get("label") else None,
            low=given.score("low") if self.rows.synthetic else None,
            high=given.score("high") if self.rows.synthetic else None,
            source="" if self.rows.synthetic else query.get("source", "")[:1000],
            selected=self.selected and query.get("selected") == "1",
        )

    def _order(self, query: Mapping[str, str]) -> str:
        order = query.get("order", "index")
        if order not in self.rows.orders:
            raise BadRequestError(f"order {order[:40]!r}: must be one of {', '.join(self.rows.orders)}")
        return order

    def _row(self, key: str) -> dict[str, Any]:
        row = self.rows.row(int(key)) if re.fullmatch(r"[0-9]{12}", key) else None
        if row is None:
            raise BadRequestError(f"{key[:60]!r}: the dataset has no image of this key")
        return row

    def _address(self, query: Mapping[str, str], changes: Mapping[str, Any]) -> str:
        kept = {name: value for name, value in query.items() if name in _KNOWN and value}
        return "/?" + urlencode({**kept, **changes})


_KNOWN = ("label", "low", "high", "source", "selected", "order", "page")


class _Given:
    """The values of a request."""

    def __init__(self, path: Mapping[str, Any], query: str, body: bytes) -> None:
        self.path, self.body = path, body
        try:
            self.query = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=50, errors="strict"))
        except ValueError as error:
            raise BadRequestError(f"the address cannot be read: {error}") from error

    def number(self, name: str, low: int, high: int) -> int:
        """A whole number of the query; `low` if it is not there."""
        text = self.query.get(name, "")
        if not text:
            return low
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise BadRequestError(f"{name} {text[:40]!r}: must be a whole number from {low} to {high}")
        return int(text)

    def score(self, name: str) -> float | None:
        """A score of the query; None if it is not there."""
        text = self.query.get(name, "")
        if not text:
            return None
        if not re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]{1,2})?", text[:40]) or not 0 <= float(text) <= 1:
            raise BadRequestError(f"{name} {text[:40]!r}: must be a score from 0 to 1")
        return float(text)


async def _missing(request: Request, error: Exception) -> Response:
    return views.message("there is no such page", 404)
