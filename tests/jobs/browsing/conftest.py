"""A server of jobs/browse.py, over real sockets, and datasets with strangers' names in them."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
import uvicorn

from jobs.browsing.main import _listen
from jobs.browsing.near import Helper
from jobs.browsing.rows import Rows
from jobs.browsing.server import Browser
from pipelines import images
from pipelines.dataset import card, facts, layout, manifest, reader, writer
from pipelines.dataset.attribution import Attribution
from pipelines.dataset.identity import from_json
from pipelines.dataset.shards import Sample
from pipelines.storage.folder import Folder

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
TOKEN = "the-right-token"
COUNT = 250


def make(path: Path, producer: str = "generate", count: int = COUNT) -> Folder:
    """A sealed dataset of 8x8 images in shards of 40; every name in it is a stranger's."""
    fields = {
        "producer": producer, "count": count, "shard_size": 40, "image": {"format": "png"}, "image_size": 8,
        "channels": 1, "classes": [HOSTILE, "dog", "cat"], "arithmetic": {"dtype": "float32"},
        **({"model": "0" * 64, "seed_start": 7} if producer == "generate" else {}),
    }  # fmt: skip
    folder, settled = Folder(str(path)), from_json(fields)
    writer.claim(folder, settled, {}, found=Attribution(title=HOSTILE, licence=HOSTILE, date="2026-11-24"))
    records = {}
    for shard in range(layout.num_shards(settled)):
        owned, rng = layout.shard_range(settled, shard), np.random.default_rng(shard)
        drawn = rng.integers(0, 256, (len(owned), 8, 8, 1), np.uint8)
        samples = [Sample(i, images.encode(image), i % 3) for i, image in zip(owned, drawn, strict=True)]
        logit = rng.normal(0, 2, len(owned)).astype(np.float32)
        extra = {"source": [f"{HOSTILE}/{'odd' if i % 2 else 'even'}/{i}.png" for i in owned]}
        if producer == "generate":
            extra = {"seed": [7 + i for i in owned], "logit": logit, "score": manifest.sigmoid(logit)}
        records[shard] = writer.commit(folder, shard, producer, samples, extra)
    writer.seal(folder, settled, records, card.files(folder, settled, records))
    return folder


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True)
class Site:
    """A server, and a browser that has its cookie."""

    port: int
    folder: Folder

    def get(self, path: str, **headers: str | None) -> Answer:
        return self.ask("GET", path, None, headers)

    def post(self, path: str, form: dict[str, str], **headers: str | None) -> Answer:
        return self.ask("POST", path, urlencode(form), {"Origin": f"http://127.0.0.1:{self.port}", **headers})

    def ask(self, method: str, path: str, body: str | None, headers: dict[str, str | None]) -> Answer:
        """A request as it is written: http.client changes nothing of a path. A header of None is left out."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {"Host": f"127.0.0.1:{self.port}", "Cookie": f"ganmill-{self.port}={TOKEN}", **headers}
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(None if body is None else body.encode())
        found = connection.getresponse()
        answer = Answer(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read())
        connection.close()
        return answer


@pytest.fixture(scope="module", params=["generate", "ingest"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place = tmp_path_factory.mktemp("site")
    folder = make(place / "dataset", request.param)
    index = reader.open_sealed(folder)
    known = facts.gather(folder, index.identity, {record.shard: record for record in index.shards})
    rows = Rows(folder, index, str(place), np.arange(0, COUNT, 5))
    helper = Helper(folder.url, str(place / "none"))
    browser = Browser(
        folder=folder, index=index, facts=known, rows=rows, helper=helper, selected=True, beyond="not here"
    )
    with _listen(0) as listening:
        port = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(browser.application(TOKEN, port), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield Site(port, folder)
        server.should_exit = True
        thread.join()
    helper.close()
