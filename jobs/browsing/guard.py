"""Who may ask the server, and what a browser may do with its answers.

The server listens on 127.0.0.1 only. But every program of this machine, and every page in the user's browser, can send
it requests. So each request needs the token of the printed address (a cookie after the first one), and the name in its
Host header must be this machine's: a page whose own name was made to point here (DNS rebinding) has another one.
"""

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

NAMES = ("127.0.0.1", "localhost")
MAX_BODY_BYTES = 1 << 16  # of a form
_HEADERS = {
    # No script at all, nothing from elsewhere, and no frame around it: a class name with HTML in it stays text.
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """An ASGI application that lets only those requests through to another one that have the token."""

    def __init__(self, app: App, token: str, port: int) -> None:
        self._app, self._token = app, token
        self._hosts = {f"{name}:{port}" for name in NAMES}
        self._origins = {f"http://{host}" for host in self._hosts}
        self._cookie = f"ganmill-{port}"  # cookies of one machine are common to all its ports

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            return  # no websockets

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer = self._refusal(scope)
        await (self._app if answer is None else answer)(scope, receive, send_guarded)

    def _refusal(self, scope: Message) -> Response | None:
        """The answer to a request that is not let through; None for one that is."""
        headers = Headers(scope=scope)
        if len(headers.getlist("host")) != 1 or headers["host"] not in self._hosts:
            return PlainTextResponse("wrong Host header", 400)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("only GET and POST", 405)
        if scope["method"] == "POST" and headers.get("origin") not in self._origins:
            return PlainTextResponse("wrong Origin header", 403)  # another site's form
        length = headers.get("content-length", "0")
        if scope["method"] == "POST" and not (length.isdecimal() and 0 < int(length) <= MAX_BODY_BYTES):
            return PlainTextResponse(f"a form has at most {MAX_BODY_BYTES} bytes", 413)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if given and self._right(given[0]):
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            answer = RedirectResponse(scope["path"] + (f"?{rest}" if rest else ""), 303)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
            return answer
        if self._right(_cookie(headers.get("cookie", ""), self._cookie)):
            return None
        return PlainTextResponse("no right token: open the address that jobs/browse.py printed", 403)

    def _right(self, token: str) -> bool:
        return secrets.compare_digest(token.encode(), self._token.encode())


def _cookie(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return found.value if found else ""
