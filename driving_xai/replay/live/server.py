"""The HTTP server of the live view, for machines without a screen: pictures out, requests in.

A viewer asks for the newest picture each time it has drawn the one before: a slow one skips frames, and
one that vanishes leaves no stream behind that somebody would have to notice. The standard library serves
it; nothing but the page's own few routes exists.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from driving_xai.errors import VideoError
from driving_xai.replay.live.control import Live

LOOPBACK = "127.0.0.1"
_MOST_CLIENTS = 32
_CLIENT_S = 15.0
"""A connection that takes or gives nothing for so long is closed."""
_WAIT_S = 8.0
_MOST_BYTES = 1024


@contextmanager
def serving(live: Live, *, host: str, port: int) -> Iterator[str]:
    """Serves a live view while the block runs; yields its address.

    Args:
        live: what is seen, and who takes the requests.
        host: address to listen on; any but the loopback lets others on the network in.
        port: 0 takes a free one.

    Raises:
        VideoError: the address cannot be listened on.
    """
    try:
        server = _Server((host, port), _handler(live, host))
    except (OSError, OverflowError) as error:
        raise VideoError(f"cannot serve on {host} port {port} ({error}); choose another") from error
    thread = threading.Thread(target=server.serve_forever, name="replay-serve", daemon=True)
    thread.start()
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{server.server_address[1]}/"
    finally:
        live.close()
        server.shutdown()
        server.server_close()
        thread.join()


def is_trusted(header: str | None, host: str) -> bool:
    """Whether a Host or Origin names this server as its user would.

    A page from elsewhere can have its own name resolve to this machine (DNS rebinding) and then read what
    is served here; addresses and `localhost` cannot be taken over in this way.

    Example:
        >>> is_trusted("127.0.0.1:8000", LOOPBACK), is_trusted("evil.example:8000", LOOPBACK)
        (True, False)
    """
    try:
        name = urlsplit(header if header and "//" in header else f"//{header or ''}").hostname or ""
    except ValueError:
        return False
    if name in ("localhost", host.lower()):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A port that has just been used is free for the next replay.
    allow_reuse_address = True
    # Ending does not wait for viewers.
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._room = threading.BoundedSemaphore(_MOST_CLIENTS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A viewer that leaves in the middle of an answer is no error of ours; anything else is."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def _handler(live: Live, host: str) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.live, Handler.host = live, host
    return Handler


class _Handler(BaseHTTPRequestHandler):
    live: Live
    host: str
    protocol_version = "HTTP/1.1"
    timeout = _CLIENT_S
    server_version, sys_version = "driving-xai", ""
    # Headers and body leave as one packet each; waiting to fill one would delay every picture.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if not self._is_from_here():
            return
        parts = urlsplit(self.path)
        if parts.path == "/":
            self._answer(
                HTTPStatus.OK, _page(), "text/html; charset=utf-8", {"Content-Security-Policy": _policy()}
            )
        elif parts.path == "/frame":
            self._frame(parse_qs(parts.query).get("after", ["0"])[0])
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "no such page")

    def do_POST(self) -> None:
        if not self._is_from_here():
            return
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > _MOST_BYTES:
            self.close_connection = True
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "expected a few bytes")
            return
        body = self.rfile.read(int(length))
        # Only a page of this server can send this type without being asked for permission first.
        if self.headers.get_content_type() != "application/json" or urlsplit(self.path).path != "/request":
            self._refuse(HTTPStatus.NOT_FOUND, "expected JSON to /request")
            return
        try:
            _apply(self.live, json.loads(body))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))
            return
        self._answer(HTTPStatus.NO_CONTENT, b"", "text/plain", {})

    def _frame(self, after: str) -> None:
        number = int(after) if after.isascii() and after.isdigit() and len(after) < 16 else 0
        shown = self.live.newest(number, _WAIT_S)
        if self.live.closed:
            # Connections outlive the server's socket: without this they would be asked on and on.
            self.close_connection = True
            self._refuse(HTTPStatus.GONE, "the replay has ended")
        elif shown is None:
            self._answer(HTTPStatus.NO_CONTENT, b"", "image/jpeg", {})
        else:
            state = json.dumps({"number": shown.number, **shown.state}, allow_nan=False)
            self._answer(HTTPStatus.OK, shown.jpeg, "image/jpeg", {"X-Replay": state})

    def _is_from_here(self) -> bool:
        origin = self.headers.get("Origin")
        if is_trusted(self.headers.get("Host"), self.host) and (
            origin is None or urlsplit(origin).netloc == self.headers.get("Host")
        ):
            return True
        self.close_connection = True
        self._refuse(HTTPStatus.FORBIDDEN, "open the address that the replay printed")
        return False

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._answer(status, reason.encode(), "text/plain; charset=utf-8", {})

    def _answer(self, status: HTTPStatus, body: bytes, kind: str, more: Mapping[str, str]) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            **({"Connection": "close"} if self.close_connection else {}),
            **more,
        }
        for name, value in headers.items():
            if not (status == HTTPStatus.NO_CONTENT and name == "Content-Length"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Every picture is a request: none is worth a line."""


def _apply(live: Live, request: Any) -> None:
    """Does what a viewer asks for.

    Raises:
        ValueError: it is not possible; the message says why.
    """
    actions: Mapping[str, Callable[[], None]] = {
        "pause": lambda: live.pause(True),
        "play": lambda: live.pause(False),
        "step": live.step,
        "seek": lambda: live.seek(float(request["at_s"])),
        "method": lambda: live.switch(str(request["method"])),
    }
    name = request.get("do") if isinstance(request, dict) else None
    if not isinstance(name, str) or name not in actions:
        raise ValueError(f"got {name!r}, expected one of: {', '.join(actions)}")
    actions[name]()


@cache
def _page() -> bytes:
    folder = files("driving_xai.replay.live")
    text = folder.joinpath("live.html").read_text(encoding="utf-8")
    return text.replace("/*script*/", _script()).encode()


@cache
def _script() -> str:
    return files("driving_xai.replay.live").joinpath("live.js").read_text(encoding="utf-8")


@cache
def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
