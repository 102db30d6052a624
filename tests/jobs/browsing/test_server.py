"""Who gets an answer of jobs/browse.py, which one, and what a stranger's dataset can do to it."""

import dataclasses
import hashlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from jobs.browsing import rows
from pipelines.dataset import reader, selection
from pipelines.errors import CorruptError
from pipelines.storage.folder import Folder
from tests.jobs.browsing.conftest import COUNT, HOSTILE, TOKEN, Site, make


class Page(HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def shown(self) -> list[str]:
        """The images of an overview."""
        sources = [str(found["src"]) for tag, found in self.elements if tag == "img"]
        return [source.removeprefix("/picture/") for source in sources]

    def value(self, name: str) -> str:
        [found] = [found for tag, found in self.elements if tag == "input" and found.get("name") == name]
        return str(found["value"])


PATHS = ("/", "/?label=1", "/image/000000000003", "/picture/000000000003", "/style.css", "/save", "/nothing")


class TestWhoIsLetIn:
    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize(
        "cookie",
        [None, "", "x", f"ganmill={TOKEN}", "ganmill-{port}=", "ganmill-{port}=wrong", "ganmill-{port}=\u00e9"],
    )
    def test_nobody_without_the_token(self, site: Site, path: str, cookie: str | None) -> None:
        sent = None if cookie is None else cookie.format(port=site.port)
        answer = site.get(path, Cookie=sent)
        assert answer.status == 403
        assert answer.text == "no right token: open the address that jobs/browse.py printed"
        assert "set-cookie" not in answer.headers

    @pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], f"{TOKEN}x", "%C3%A9", "%00"])
    def test_nobody_with_a_wrong_one_in_the_address(self, site: Site, token: str) -> None:
        answer = site.get(f"/?token={token}", Cookie=None)
        assert (answer.status, "set-cookie" in answer.headers) == (403, False)

    def test_the_right_one_becomes_a_cookie_and_leaves_the_address(self, site: Site) -> None:
        answer = site.get(f"/?label=1&token={TOKEN}", Cookie=None)
        assert (answer.status, answer.headers["location"]) == (303, "/?label=1")
        cookie = answer.headers["set-cookie"].lower()
        assert cookie.startswith(f"ganmill-{site.port}={TOKEN};")
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert site.get("/", Cookie=answer.headers["set-cookie"].split(";")[0]).status == 200

    @pytest.mark.parametrize(
        "host", [None, "", "evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "0.0.0.0:{port}"]
    )
    def test_no_name_that_was_made_to_point_here(self, site: Site, host: str | None) -> None:
        """DNS rebinding: a page of evil.example sends its own name, though its address is ours by now."""
        answer = site.get("/", Host=None if host is None else host.format(port=site.port))
        assert answer.status == 400
        assert b"<" not in answer.body

    @pytest.mark.parametrize("origin", [None, "null", "https://evil.example", "http://127.0.0.1:1"])
    def test_no_form_of_another_page(self, site: Site, origin: str | None) -> None:
        before = site.folder.tree()
        assert site.post("/save", {"name": "x", "filter": ""}, Origin=origin).status == 403
        assert site.folder.tree() == before

    @pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
    def test_no_other_method(self, site: Site, method: str) -> None:
        assert site.ask(method, "/", None, {}).status == 405

    def test_no_large_form(self, site: Site) -> None:
        assert site.post("/save", {"name": "x" * (1 << 16)}).status == 413

    @pytest.mark.parametrize("path", [*PATHS, f"/?token={TOKEN}", "/?token=x"])
    def test_every_answer_forbids_scripts_and_frames(self, site: Site, path: str) -> None:
        for cookie in (None, f"ganmill-{site.port}={TOKEN}"):
            headers = site.get(path, Cookie=cookie).headers
            policy = headers["content-security-policy"]
            assert policy.startswith("default-src 'none';")
            assert "script-src" not in policy
            assert "frame-ancestors 'none'" in policy
            assert headers["x-content-type-options"] == "nosniff"


class TestStrangersNames:
    @pytest.mark.parametrize(
        "path", ["/", "/?label=0", "/image/000000000003", "/?saved=" + "%3Cscript%3E", "/image/%3Cscript%3E"]
    )
    def test_html_in_names_stays_text(self, site: Site, path: str) -> None:
        page = Page(site.get(path).text)
        assert [tag for tag, _ in page.elements if tag in ("script", "iframe", "object", "embed")] == []
        assert [found for _, found in page.elements if any(name.startswith("on") for name in found)] == []
        assert all(str(found["src"]).startswith("/picture/") for tag, found in page.elements if tag == "img")
        if path in ("/", "/image/000000000003"):
            assert HOSTILE in page.text

    @pytest.mark.parametrize(
        "path",
        [
            "/picture/../dataset.json", "/picture/..%2f..%2fetc%2fpasswd", "/picture/%2e%2e/index.json", "//etc/passwd",
            "/picture//etc/passwd", "/image/../../etc/passwd", "/picture/000000000003/../x", "/picture/0",
            "/picture/-00000000001", "/picture/000000999999", "/picture/999999999999", "/picture/000000000003%00",
            "/../../etc/passwd", "/templates/style.css",
        ],
    )  # fmt: skip
    def test_no_path_leads_out(self, site: Site, path: str) -> None:
        answer = site.get(path)
        assert answer.status in (400, 404)
        assert b"root:" not in answer.body
        assert b"identity" not in answer.body

    @pytest.mark.parametrize(
        ("query", "line"),
        [
            ("label=3", "label '3': must be a whole number from 0 to 2"),
            ("label=-1", "label '-1': must be a whole number from 0 to 2"),
            ("label=1;drop table rows", "label '1;drop table rows': must be a whole number from 0 to 2"),
            ("page=x", "page 'x': must be a whole number from 0 to 1000000000"),
            ("order=random()", "order 'random()': must be one of index, index-down, "),
            ("x=%ff", "the address cannot be read: "),
            ("&".join(f"x{n}=1" for n in range(99)), "the address cannot be read: "),
        ],
    )
    def test_a_wrong_value_is_one_line(self, site: Site, query: str, line: str) -> None:
        answer = site.get("/?" + query.replace(" ", "%20"))
        assert answer.status == 400
        assert line in Page(answer.text).text

    @pytest.mark.parametrize("text", ["'", "' or 1=1 --", "%", "_", "\\", "\x00", HOSTILE])
    def test_a_source_is_looked_for_as_it_is_written(self, site: Site, text: str) -> None:
        answer = site.get("/?" + urlencode({"source": text}))
        assert answer.status == 200
        fits = "generate" in site.folder.read("dataset.json").decode() or text in f"{HOSTILE}/odd/1.png"
        assert (f"{COUNT} of {COUNT} images" in answer.text) == fits


def rows_of(folder: Folder) -> list[dict[str, Any]]:
    """The manifest, part by part."""
    index = reader.open_sealed(folder)
    return [row for record in index.shards for row in reader.read_sealed_part(folder, record).table.to_pylist()]


class TestPages:
    def test_all_pages_show_all_images_once(self, site: Site) -> None:
        for order in ("index", "index-down"):
            keys = [key for page in range(3) for key in Page(site.get(f"/?order={order}&page={page}").text).shown()]
            assert keys == sorted((f"{n:012d}" for n in range(COUNT)), reverse=order == "index-down")
        assert "No image fits" in site.get("/?page=3").text

    def test_a_picture_is_what_the_tar_holds(self, site: Site) -> None:
        index = reader.open_sealed(site.folder)
        rows = [
            row for record in index.shards for row in reader.read_sealed_part(site.folder, record).table.to_pylist()
        ]
        for row in rows[::31]:
            answer = site.get(f"/picture/{row['key']}")
            assert answer.headers["content-type"] == "image/png"
            assert hashlib.sha256(answer.body).digest() == row["sha256"]

    def test_an_image_shows_its_row_and_its_neighbours(self, site: Site) -> None:
        page = Page(site.get("/image/000000000041").text)
        row = reader.read_part(site.folder, 1)[0].table.to_pylist()[1]
        shown = page.text.replace(",", "")
        for name, value in row.items():
            assert (value.hex() if name == "sha256" else str(value)) in shown
        assert page.shown()[0] == "000000000041"
        assert page.shown()[1:] == [f"{n:012d}" for n in range(40, 50)]  # its tar begins with 40

    def test_the_selection_is_a_filter(self, site: Site) -> None:
        assert Page(site.get("/?selected=1").text).shown() == [f"{n:012d}" for n in range(0, COUNT, 5)]

    def test_an_image_that_changed_after_the_seal_is_one_line(
        self, site: Site, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        row = reader.read_part(site.folder, 0)[0].table.to_pylist()[5]
        tar = site.folder.read("shards/000000.tar")
        changed = bytearray(tar)
        changed[row["offset"] + 60] ^= 1
        site.folder.write("shards/000000.tar", bytes(changed))
        try:
            answer = site.get("/picture/000000000005")
        finally:
            site.folder.write("shards/000000.tar", tar)
        assert answer.status == 502
        assert "sample 000000000005 does not match its row in the manifest" in answer.text


class TestSave:
    def form(self, site: Site, query: str = "") -> dict[str, str]:
        page = Page(site.get(f"/?{query}").text)
        return {"form": page.value("form"), "filter": page.value("filter")}

    def test_what_the_filter_shows_is_saved_as_a_selection(self, site: Site) -> None:
        synthetic = "generate" in site.folder.read("dataset.json").decode()
        more = "low=0.5" if synthetic else "source=odd"
        answer = site.post("/save", {**self.form(site, f"label=1&{more}&page=1"), "name": f"good-{synthetic}"})
        assert answer.status == 303
        url = f"{site.folder}-good-{synthetic}.parquet"
        assert f"Saved: <code>{url}</code>" in site.get(answer.headers["location"]).text
        index, read = reader.open_sealed(site.folder), selection.read(url)
        rows = [
            row for record in index.shards for row in reader.read_sealed_part(site.folder, record).table.to_pylist()
        ]
        fits = [
            row["index"]
            for row in rows
            if row["label"] == 1 and (row["score"] >= 0.5 if synthetic else "odd" in row["source"])
        ]
        assert read.index_N.tolist() == fits
        assert selection.narrow(index, read, url).samples == len(fits)
        assert {row["label"]: (row["taken"], row["of"]) for row in read.facts.classes} == {
            label: (len(fits) if label == 1 else 0, len(range(label, COUNT, 3))) for label in range(3)
        }
        again = site.post("/save", {**self.form(site), "name": f"good-{synthetic}"})
        assert (again.status, "is there already, and a selection never changes" in again.text) == (400, True)

    @pytest.mark.parametrize("name", ["", "../x", "a/b", "a.b", "x" * 61, "\u00e9", "a b", "%00"])
    def test_no_other_name(self, site: Site, name: str) -> None:
        before = Folder(str(site.folder).rpartition("/")[0]).tree()
        assert site.post("/save", {**self.form(site), "name": name}).status == 400
        assert Folder(str(site.folder).rpartition("/")[0]).tree() == before

    def test_no_form_of_an_earlier_start(self, site: Site) -> None:
        assert "earlier start" in site.post("/save", {**self.form(site), "form": "old", "name": "old"}).text

    def test_nothing_is_no_selection(self, site: Site) -> None:
        nothing = "low=1&high=0" if "generate" in site.folder.read("dataset.json").decode() else "source=zzz"
        assert "there is nothing to select" in site.post("/save", {**self.form(site, nothing), "name": "none"}).text


def test_rows_of_a_stranger_that_lie_outside_their_tar_are_refused(tmp_path: Path) -> None:
    """A seal can be right in every hash and still be a lie."""
    folder = make(tmp_path / "d", count=40)
    index = reader.open_sealed(folder)
    short = dataclasses.replace(index.shards[0], bytes=900)
    with pytest.raises(CorruptError, match="a row lies behind the end of its tar"):
        rows._read(folder, index, short)
