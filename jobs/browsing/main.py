"""Show a sealed dataset in the browser."""

import secrets
import socket

from jobs.browsing.settings import BrowseSettings
from jobs.command.errors import UsageError
from jobs.command.progress import Progress
from jobs.command.scratch import Scratch
from pipelines.dataset import facts, reader, selection
from pipelines.dataset.facts import Facts
from pipelines.errors import CorruptError, DatasetError
from pipelines.storage.folder import Folder

try:
    import uvicorn

    from jobs.browsing.near import Helper
    from jobs.browsing.rows import Rows
    from jobs.browsing.server import Browser
except ImportError as missing:
    raise UsageError(f"browse needs the package {missing.name}: pip install 'ganmill[browse]'") from missing


def main(settings: BrowseSettings) -> None:
    folder = Folder(settings.dataset)
    index = reader.open_sealed(folder)
    known = facts.gather(folder, index.identity, {record.shard: record for record in index.shards})
    chosen = None
    if settings.selection:
        chosen = selection.read(settings.selection)
        selection.narrow(index, chosen, settings.selection)
    with _listen(settings.http_port) as listening, Scratch("browse") as scratch:
        with Progress("browse", index.samples, "rows") as progress:
            chosen_N = None if chosen is None else chosen.index_N
            rows = Rows(folder, index, scratch, chosen_N, progress.update)
        port, token = listening.getsockname()[1], secrets.token_urlsafe(24)
        helper = Helper(folder.url, settings.real)
        browser = Browser(
            folder=folder, index=index, facts=known, rows=rows, helper=helper, selected=chosen is not None,
            beyond=_beyond_reach(known, settings.real),
        )  # fmt: skip
        server = uvicorn.Server(
            uvicorn.Config(
                browser.application(token, port),
                log_level="error",
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )
        print(f"browse: {folder}: {index.samples:,} images; end with Ctrl-C")
        print(f"browse: http://127.0.0.1:{port}/?token={token}", flush=True)
        try:
            server.run([listening])
        finally:
            helper.close()


def _listen(port: int) -> socket.socket:
    """A socket on this machine's own address. Raises UsageError if the port is not free."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise UsageError(f"--http-port {port}: {error.strerror}; use another one, or 0 for a free one") from error
    return listening


def _beyond_reach(known: Facts, real: str) -> str:
    """Why the nearest training image cannot be shown, with the remedy; '' if it can."""
    if known.training is None:
        return "the dataset was ingested: it has no training images"
    if known.training.data is None:
        return "the model does not say which dataset it was trained on"
    try:
        found = reader.open_sealed(Folder(real))
    except (CorruptError, DatasetError, OSError) as error:
        return f"the training images are not within reach ({error}); name their dataset with --real"
    if found.root != known.training.data:
        return f"{real} is not the dataset that the model was trained on; name that with --real"
    if found.image_shape[:2] != (known.identity.image_size, known.identity.image_size):
        return f"{real}: its images have another size"
    return ""
