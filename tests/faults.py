"""Servers that fail as stores and networks do.

FaultyProxy stands before a real one and fails at given rates, from a seed, and counted. Answering says one thing only.
"""

import http.client
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

KINDS = (
    "slow_down",  # 503 SlowDown, nothing done
    "reset",  # the connection is reset, nothing done
    "stall",  # no answer for `stall_s` seconds, then the connection is closed, nothing done
    "cut",  # done; half of the answer's body under the full Content-Length, then the connection is closed
    "late_error",  # done, and then answered 500
    "late_reset",  # done, and then the connection is reset
)
# Shares of all requests, of which there are some hundreds; `cut` is a share of the GETs.
RATES = {"slow_down": 0.02, "reset": 0.02, "stall": 0.02, "late_error": 0.02, "late_reset": 0.02, "cut": 0.08}
SEED = 1459  # by which each of them comes twice in the first 90 requests
HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "expect")
Where = Callable[[str, str], bool]


class FaultyProxy:
    """Use as a context manager; `url` is the endpoint to give to clients.

    `kinds`, `where` and `refuse` may be changed while it runs: `proxy.kinds = {}` heals it.
    """

    def __init__(
        self,
        server: str,
        kinds: Mapping[str, float] | None = None,
        seed: int = 0,
        stall_s: float = 30.0,
        where: Where = lambda method, path: True,
    ) -> None:
        """
        Args:   server: URL of the real server. kinds: kind of fault -> its share of all requests.
                where: asked, by method and path, of each request that is to be hit, one after another.
        """
        self.kinds = dict(kinds or {})
        self.where = where
        self.refuse = False  # True: 403 AccessDenied to everything
        self.stall_s = stall_s
        self.counts: Counter[str] = Counter()  # faults by kind, and "refused"
        self.passed: list[tuple[str, str]] = []  # method and path of what reached the server
        self.closing = threading.Event()
        self.spent: set[str] = set()  # uploads whose completion was done and its answer lost: some stores forget them
        self._upstream = urlsplit(server).netloc
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="faulty proxy")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FaultyProxy":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()  # ends stalls
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fault(self, method: str, path: str) -> str:
        """The fault that this request is to meet, or ''."""
        if self.refuse:
            return "refused"
        with self._lock:
            share = self._random.random()
            for kind, rate in self.kinds.items():
                if kind == "cut" and method != "GET":
                    continue  # the others' answers have no body to speak of
                if share < rate:
                    return kind if self.where(method, path) else ""
                share -= rate
        return ""

    def count(self, kind: str) -> None:
        with self._lock:
            self.counts[kind] += 1

    def forward(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> "_Answer":
        """Have the real server do it. The client's own Host header goes along: its signature covers it."""
        connection = http.client.HTTPConnection(self._upstream, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                if name.lower() not in (*HOP_BY_HOP, "content-length"):
                    connection.putheader(name, value)
            if body or method in ("PUT", "POST"):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
            with self._lock:
                self.passed.append((method, path))
            return _Answer(answer.status, answer.getheaders(), content)
        finally:
            connection.close()


class _Answer:
    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @classmethod
    def error(cls, status: int, code: str, message: str) -> "_Answer":
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
        return cls(status, [("Content-Type", "application/xml")], body.encode())


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that are killed leave broken connections."""


class _Server(_Quiet):
    proxy: FaultyProxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60
    server: _Server

    def _serve(self) -> None:
        proxy, method, path = self.server.proxy, self.command, self.path
        body = self._body()
        if path in proxy.spent:
            return self._answer(_Answer.error(404, "NoSuchUpload", "The specified upload does not exist."))
        kind = proxy.fault(method, path)
        if kind in ("slow_down", "stall", "reset", "refused"):
            proxy.count(kind)
            if kind == "slow_down":
                return self._answer(_Answer.error(503, "SlowDown", "Please reduce your request rate."))
            if kind == "refused":
                return self._answer(_Answer.error(403, "AccessDenied", "Access Denied"))
            if kind == "stall":
                proxy.closing.wait(proxy.stall_s)
                self.close_connection = True
                return None
            return self._reset()
        answer = proxy.forward(method, path, self.headers.items(), body)
        if kind == "cut" and len(answer.body) < 2:
            kind = ""
        if kind:
            proxy.count(kind)
        if kind.startswith("late") and method == "POST" and "uploadId=" in path:
            proxy.spent.add(path)
        if kind == "late_error":
            return self._answer(_Answer.error(500, "InternalError", "We encountered an internal error."))
        if kind == "late_reset":
            return self._reset()
        return self._answer(answer, cut=kind == "cut")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # the names that http.server looks for

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(parts)

    def _answer(self, answer: _Answer, cut: bool = False) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            if name.lower() not in HOP_BY_HOP and not (name.lower() == "content-length" and self.command != "HEAD"):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        if cut:
            self.close_connection = True

    def _reset(self) -> None:
        """Close without an answer and without a goodbye: with a linger of 0 the kernel sends RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.wfile.close()
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""


class Answering:
    """A store that answers every request alike. Use as a context manager; `url` is the endpoint to give to clients."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, drip_s: float = 0.0) -> None:
        """`drip_s`: seconds before each byte of the body; never so long that a read times out."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response_only(status)
                for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    for n in range(len(body)) if drip_s else ():
                        closing.wait(drip_s)
                        self.wfile.write(body[n : n + 1])
                    if not drip_s:
                        self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_HEAD = answer  # the names that http.server looks for

            def log_message(self, format: str, *args: object) -> None:
                """Keep the tests' output clean."""

        closing = self._closing = threading.Event()
        self._server = _Quiet(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="answering")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Answering":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
