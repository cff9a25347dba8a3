"""The live view over real sockets: who may ask, and what slow and vanishing viewers do to others."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from email.message import Message
from urllib.parse import urlsplit

import numpy as np
import pytest

from driving_xai.errors import VideoError
from driving_xai.replay.live.control import Live
from driving_xai.replay.live.server import _MOST_CLIENTS, LOOPBACK, is_trusted, serving

from .test_control import playback, stats

JSON = {"Content-Type": "application/json"}


class View:
    """A live view that is being served."""

    def __init__(self, live: Live, address: str) -> None:
        self.live, self.netloc = live, urlsplit(address).netloc
        self.port = urlsplit(address).port

    def ask(self, method: str, path: str, body: str | None = None, **headers: str):
        """One request on a connection of its own: status, headers, body."""
        with closing(http.client.HTTPConnection(LOOPBACK, self.port, timeout=10)) as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, headers=named)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def request(self, **request: object) -> tuple[int, bytes]:
        status, _, body = self.ask("POST", "/request", json.dumps(request), Content_Type="application/json")
        return status, body

    def open(self) -> socket.socket:
        return socket.create_connection((LOOPBACK, self.port), timeout=10)


@pytest.fixture
def view() -> Iterator[View]:
    live = Live()
    with serving(live, host=LOOPBACK, port=0) as address:
        yield View(live, address)


def noise(number: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (size, size, 3), dtype=np.uint8)


def test_the_page_brings_its_script_and_its_policy(view: View) -> None:
    status, headers, body = view.ask("GET", "/")
    assert status == 200
    script = body.decode().split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in headers["Content-Security-Policy"]
    assert "http" not in body.decode(), "it refers to nothing elsewhere"
    assert view.ask("GET", "/../etc/passwd")[0] == 404
    assert view.ask("GET", "/frame.html")[0] == 404


def test_a_frame_comes_with_its_numbers(view: View) -> None:
    view.live.begin(playback(free=False), at_s=0.0)
    view.live.show(noise(1), stats(7))
    status, headers, body = view.ask("GET", "/frame?after=0")
    state = json.loads(headers["X-Replay"])
    assert (status, headers["Content-Type"], body[:2]) == (200, "image/jpeg", b"\xff\xd8")
    assert state["stats"]["frame"] == 7
    assert state["stats"]["truth"] is None
    assert state["playback"]["methods"] == ["grad-cam", "rise"]
    assert view.ask("GET", "/frame?after=nonsense")[0] == 200


def test_requests_arrive_and_impossible_ones_are_explained(view: View) -> None:
    view.live.begin(playback(free=True), at_s=0.0)
    assert view.request(do="seek", at_s=3) == (204, b"")
    assert view.request(do="method", method="rise") == (204, b"")
    assert view.live.next_request() == (3.0, "rise")
    assert view.request(do="seek", at_s=10**400)[0] == 409, "a number too large for a float"
    for request in (
        {"do": "seek", "at_s": 99},
        {"do": "seek"},
        {"do": "dance"},
        {"do": []},
        {"do": "method"},
    ):
        assert view.request(**request)[0] == 409, request
    assert b"expected 0.00 to 10.00" in view.request(do="seek", at_s=99)[1]
    assert view.ask("POST", "/request", "[1]", Content_Type="application/json")[0] == 409
    assert view.ask("POST", "/request", "{", Content_Type="application/json")[0] == 409
    assert view.ask("POST", "/request", "[" * 1000, Content_Type="application/json")[0] == 409


@pytest.mark.parametrize(
    ("header", "trusted"),
    [
        ("127.0.0.1:80", True),
        ("localhost", True),
        ("[::1]:80", True),
        ("192.168.1.5:80", True),
        ("HTTP://LOCALHOST:1", True),
        ("robot.lan:80", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:80", False),
        ("127.0.0.1@evil.example", False),
        ("", False),
        (None, False),
        ("[::1", False),
    ],
)
def test_names_that_others_can_point_here_are_refused(header: str | None, trusted: bool) -> None:
    assert is_trusted(header, "robot.lan") is trusted


def test_a_page_from_elsewhere_gets_nothing(view: View) -> None:
    """By its own name for this machine, by a form without leave, by another origin."""
    view.live.begin(playback(free=True), at_s=0.0)
    body = json.dumps({"do": "pause"})
    assert view.ask("GET", "/", Host="evil.example")[0] == 403
    assert view.ask("GET", "/frame?after=0", Host=f"evil.example:{view.port}")[0] == 403
    assert view.ask("POST", "/request", body, Content_Type="text/plain")[0] == 404
    other = {"Origin": f"http://{LOOPBACK}:1", **JSON}
    assert view.ask("POST", "/request", body, **{k.replace("-", "_"): v for k, v in other.items()})[0] == 403
    assert view.ask("OPTIONS", "/request", Origin="http://evil.example")[0] == 501
    own = view.ask("POST", "/request", body, Origin=f"http://{view.netloc}", Content_Type="application/json")
    assert own[0] == 204


@pytest.mark.parametrize("length", ["99999999", "-1", "x", ""])
def test_a_body_of_any_other_size_is_not_read(view: View, length: str) -> None:
    with view.open() as client:
        client.sendall(
            f"POST /request HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()
        )
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_a_slow_viewer_holds_up_neither_the_replay_nor_others(view: View) -> None:
    """It asks for a picture larger than the sockets' buffers and does not read it."""
    view.live.begin(playback(free=False), at_s=0.0)
    view.live.show(noise(0, size=2500), stats(1))
    with closing(http.client.HTTPConnection(LOOPBACK, view.port, timeout=10)) as slow:
        slow.request("GET", "/frame?after=0")
        first = slow.getresponse()
        begun = time.monotonic()
        for number in range(2, 30):
            view.live.show(noise(number), stats(number))
        assert frame_of(view.ask("GET", "/frame?after=0")[1]) == 29
        assert time.monotonic() - begun < 5
        assert len(first.read()) > 4_000_000, "it still gets the whole picture it asked for"
        slow.request("GET", f"/frame?after={json.loads(first.headers['X-Replay'])['number']}")
        with slow.getresponse() as second:
            assert (frame_of(first.headers), frame_of(second.headers)) == (1, 29)
            second.read()


def frame_of(headers: Message) -> int:
    return json.loads(headers["X-Replay"])["stats"]["frame"]


def test_vanished_viewers_leave_nothing_behind(view: View, capfd: pytest.CaptureFixture[str]) -> None:
    view.live.begin(playback(free=False), at_s=0.0)
    view.live.show(noise(0, size=1500), stats(1))
    for _ in range(2 * _MOST_CLIENTS):
        with view.open() as client:
            client.sendall(b"GET /frame?after=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            # Closing with data unread sends a reset, as a pulled plug would.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        time.sleep(0.01)
    until = time.monotonic() + 5
    while _handlers() and time.monotonic() < until:
        time.sleep(0.05)
    assert _handlers() == 0
    assert view.ask("GET", "/frame?after=0")[0] == 200, "the room they took is free again"
    assert "Traceback" not in capfd.readouterr().err


def _handlers() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_there_is_room_for_so_many_and_no_more(view: View) -> None:
    view.live.begin(playback(free=False), at_s=0.0)
    view.live.show(noise(0), stats(1))
    idle = [view.open() for _ in range(_MOST_CLIENTS)]
    time.sleep(0.2)
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        view.ask("GET", "/frame?after=0")
    for client in idle:
        client.close()
    until = time.monotonic() + 5
    while _handlers() and time.monotonic() < until:
        time.sleep(0.05)
    assert view.ask("GET", "/frame?after=0")[0] == 200


def test_a_port_in_use_is_one_error_and_ending_frees_it() -> None:
    with serving(Live(), host=LOOPBACK, port=0) as address:
        port = urlsplit(address).port
        with (
            pytest.raises(VideoError, match=f"cannot serve on 127.0.0.1 port {port}"),
            serving(Live(), host=LOOPBACK, port=port),
        ):
            pass
    with serving(Live(), host=LOOPBACK, port=port):
        pass


def test_once_it_is_over_nobody_is_kept_asking() -> None:
    live = Live()
    with serving(live, host=LOOPBACK, port=0) as address:
        live.begin(playback(free=False), at_s=0.0)
        live.show(noise(0), stats(1))
        kept = http.client.HTTPConnection(LOOPBACK, urlsplit(address).port, timeout=10)
        kept.request("GET", "/frame?after=0")
        kept.getresponse().read()
    kept.request("GET", "/frame?after=0")
    with closing(kept), kept.getresponse() as answer:
        assert answer.status == 410
        assert answer.headers["Connection"] == "close"
