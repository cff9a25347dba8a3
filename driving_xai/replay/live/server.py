"""The HTTP server of the live view, for machines without a screen: pictures out, requests in.

A viewer asks for the newest picture each time it has drawn the one before: a slow one skips frames, and
one that vanishes leaves no stream behind that somebody would have to notice. The standard library serves
it; nothing but the page's own few routes exists.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from driving_xai.errors import VideoError
from driving_xai.replay.live.access import Room, Token, address_to_open, is_loopback, is_trusted
from driving_xai.replay.live.brush import MOST_REQUEST_BYTES, BrushRequest
from driving_xai.replay.live.control import Live

_MOST_CLIENTS = 64
_MOST_OF_ONE_ADDRESS = 16
"""A browser holds two or three connections; all who come through one tunnel have one address."""
_CLIENT_S = 15.0
"""A request that has not arrived after so long, or an answer that was not taken, ends its connection."""
_WAIT_S = 8.0
_MOST_BODY_BYTES = 1024
_MOST_REQUEST_BYTES = 32 * 1024
_MOST_FIELDS = 8
"""Of a query."""
_BRUSH_WAIT_S = 10.0
"""For other viewers' brushes: the model answers one at a time."""


@contextmanager
def serving(live: Live, *, host: str, port: int) -> Iterator[str]:
    """Serves a live view while the block runs; yields an address that can be opened.

    Args:
        live: what is seen, and who takes the requests.
        host: address to listen on; any but the loopback lets others on the network in, if they know the
            address with its token.
        port: 0 takes a free one.

    Raises:
        VideoError: the address cannot be listened on.
    """
    try:
        server = _Server(live, host, port)
    except (OSError, OverflowError) as error:
        raise VideoError(f"cannot serve on {host} port {port} ({error}); choose another") from error
    thread = threading.Thread(target=server.serve_forever, name="replay-serve", daemon=True)
    thread.start()
    try:
        shown = address_to_open(host)
        shown = f"[{shown}]" if ":" in shown else shown
        query = "" if server.token is None else f"?token={server.token.secret}"
        yield f"http://{shown}:{server.server_address[1]}/{query}"
    finally:
        live.close()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A port that has just been used is free for the next replay.
    allow_reuse_address = True
    # Ending does not wait for viewers.
    block_on_close = False
    request_queue_size = _MOST_CLIENTS

    def __init__(self, live: Live, host: str, port: int) -> None:
        self.live, self.host = live, host
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.brushing = threading.Lock()
        self._room = Room(most=_MOST_CLIENTS, most_of_one=_MOST_OF_ONE_ADDRESS)
        super().__init__((host, port), _Handler)
        self.token = None if is_loopback(host) else Token(self.server_address[1])

    def server_bind(self) -> None:
        # The one of HTTPServer asks for this machine's name, which takes long where nobody answers.
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.enter(client_address[0]):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.leave(client_address[0])
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.leave(client_address[0])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A viewer that leaves in the middle of an answer is no error of ours; anything else is."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class _RequestReader(io.RawIOBase):
    """Reads requests from a socket: each has to arrive whole in time, and may have so many bytes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.expect()

    def expect(self) -> None:
        """A new request may come from now on."""
        self._until_s, self._left = time.monotonic() + _CLIENT_S, _MOST_REQUEST_BYTES

    def admit(self, count: int) -> None:
        """So many bytes more may come of this request."""
        self._left += count

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        remaining_s = self._until_s - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError("the request did not arrive in time")
        self._connection.settimeout(remaining_s)
        count = self._connection.recv_into(buffer)
        self._left -= count
        if self._left < 0:
            raise _RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "expected a short request")
        return count


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = _CLIENT_S
    server_version, sys_version = "driving-xai", ""
    # Headers and body leave as one packet each; waiting to fill one would delay every picture.
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._reader = _RequestReader(self.connection)
        self.rfile = io.BufferedReader(self._reader)

    def handle_one_request(self) -> None:
        self._reader.expect()
        # What an answer needs that comes before the first line was read.
        self.requestline = self.command = ""
        try:
            super().handle_one_request()
        except _RefusedError as refused:
            self._refuse_and_close(refused.status, refused.reason)

    def do_GET(self) -> None:
        path, query = self._asked()
        if self.headers.get("Content-Length", "0") != "0":
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "expected no body")
        if path == "/":
            more = {"Content-Security-Policy": _policy(), "Referrer-Policy": "no-referrer"}
            if self.server.token is not None:
                more["Set-Cookie"] = self.server.token.set_cookie
            self._answer(HTTPStatus.OK, _page(), "text/html; charset=utf-8", more)
        elif path == "/frame":
            self._frame(_number(query.get("after", ["0"])), drawn=query.get("drawn", ["1"]) != ["0"])
        elif path == "/brush":
            self._describe_brush()
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "no such page")

    def do_POST(self) -> None:
        path, _ = self._asked()
        most = _MOST_BODY_BYTES if path != "/brush" else MOST_REQUEST_BYTES
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "expected a Content-Length")
        if len(length) > 9 or int(length) > most:
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {most:,} bytes")
        self._reader.admit(int(length))
        body = self.rfile.read(int(length))
        # Only a page of this server can send this type without being asked for permission first.
        if self.headers.get_content_type() != "application/json" or path not in ("/request", "/brush"):
            self._refuse(HTTPStatus.NOT_FOUND, "expected JSON to /request or /brush")
        elif path == "/brush":
            self._brush(body)
        else:
            self._request(body)

    def _request(self, body: bytes) -> None:
        try:
            act = _action(self.server.live, body)
        except (ValueError, OverflowError, RecursionError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        try:
            act()
        except ValueError as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))
            return
        self._answer(HTTPStatus.NO_CONTENT, b"", "text/plain", {})

    def _describe_brush(self) -> None:
        try:
            picture, frame = self.server.live.brush()
        except ValueError as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))
            return
        self._answer_json({"picture": picture, **frame.description})

    def _brush(self, body: bytes) -> None:
        """Answers how the outputs change without what was painted; saves it where that was asked for."""
        live = self.server.live
        try:
            asked = BrushRequest.parse(body)
        except (ValueError, RecursionError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        if not self.server.brushing.acquire(timeout=_BRUSH_WAIT_S):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "the model is busy with other brushes; try again")
            return
        try:
            if asked.save and live.cases is None:
                raise ValueError("cases are not saved in this replay; start it with --cases FOLDER")
            tried = live.brush(asked.picture)[1].without(asked.mask, asked.note)
            saved = tried.save(live.cases).name if asked.save and live.cases is not None else None
        except (ValueError, MemoryError, RuntimeError) as error:
            # A RuntimeError is torch's, as when a device has no memory left.
            self._refuse(HTTPStatus.CONFLICT, str(error).partition("\n")[0] or "the model cannot be asked")
            return
        finally:
            self.server.brushing.release()
        self._answer_json({"picture": asked.picture, "saved": saved, **tried.describe()})

    def _answer_json(self, content: Mapping[str, Any]) -> None:
        packed = json.dumps(content, allow_nan=False).encode()
        self._answer(HTTPStatus.OK, packed, "application/json", {})

    def _frame(self, after: int, *, drawn: bool) -> None:
        live = self.server.live
        shown = live.newest(after, _WAIT_S, drawn=drawn)
        if live.closed:
            # Connections outlive the server's socket: without this they would be asked on and on.
            self._refuse_and_close(HTTPStatus.GONE, "the replay has ended")
        elif shown is None:
            self._answer(HTTPStatus.NO_CONTENT, b"", "image/jpeg", {})
        else:
            state = json.dumps({"number": shown.number, **shown.state}, allow_nan=False)
            self._answer(HTTPStatus.OK, shown.jpeg, "image/jpeg", {"X-Replay": state})

    def _asked(self) -> tuple[str, Mapping[str, list[str]]]:
        """The path and the query of a request that may be answered.

        Raises:
            _RefusedError: it is malformed, comes from a page elsewhere, or lacks the token.
        """
        names = ("Host", "Origin", "Content-Length", "Cookie")
        # What is there twice, or chunked, two programs would read in two ways.
        doubled = any(len(self.headers.get_all(name, [])) > 1 for name in names)
        if self.request_version == "HTTP/0.9" or doubled or "Transfer-Encoding" in self.headers:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "malformed request")
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        try:
            parts = urlsplit(self.path)
            query = parse_qs(parts.query, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
            foreign = origin is not None and urlsplit(origin).netloc != host
        except ValueError:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "malformed address") from None
        token = self.server.token
        carried = token is None or token.is_carried(query, self.headers.get("Cookie"))
        if foreign or not is_trusted(host, self.server.host) or not carried:
            raise _RefusedError(HTTPStatus.FORBIDDEN, "open the address that the replay printed")
        return parts.path, query

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers what the standard library finds malformed, in the words of the others."""
        self._refuse_and_close(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def _refuse_and_close(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True
        self.request_version = self.protocol_version  # that of HTTP/0.9 has no status
        self._refuse(status, reason)

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._answer(status, reason.encode("utf-8", "replace"), "text/plain; charset=utf-8", {})

    def _answer(self, status: HTTPStatus, body: bytes, kind: str, more: Mapping[str, str]) -> None:
        self.connection.settimeout(_CLIENT_S)
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


def _number(values: list[str]) -> int:
    if len(values) != 1 or not values[0].isascii() or not values[0].isdigit() or len(values[0]) > 15:
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "expected after=NUMBER")
    return int(values[0])


def _action(live: Live, body: bytes) -> Callable[[], None]:
    """What a viewer asks for; calling it raises a ValueError where that is not possible now.

    Raises:
        ValueError: it is malformed; the message says what was expected.
        OverflowError: a number has too many digits.
        RecursionError: it is nested too deeply.
    """
    match json.loads(body):
        case {"do": "pause"}:
            return lambda: live.pause(True)
        case {"do": "play"}:
            return lambda: live.pause(False)
        case {"do": "step"}:
            return live.step
        case {"do": "back"}:
            return live.step_back
        case {"do": "speed", "speed": int() | float() as speed}:
            return partial(live.set_speed, float(speed))
        case {"do": "seek", "at_s": int() | float() as at_s}:
            return partial(live.seek, float(at_s))
        case {"do": "method", "method": str() as method}:
            return partial(live.switch, method)
    raise ValueError(
        "expected do: pause, play, step, back, speed with speed, seek with at_s, or method with method"
    )


@cache
def _page() -> bytes:
    folder = files("driving_xai.replay.live")
    text = folder.joinpath("live.html").read_text(encoding="utf-8")
    return text.replace("/*script*/", _script()).encode()


@cache
def _script() -> str:
    folder = files("driving_xai.replay.live")
    return "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in ("brush.js", "live.js"))


@cache
def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
