"""The live view over real sockets: who may ask, and what slow and vanishing viewers do to others."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import math
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from email.message import Message
from urllib.parse import urlsplit

import numpy as np
import pytest

from driving_xai.errors import VideoError
from driving_xai.replay.live import server
from driving_xai.replay.live.access import address_to_open, is_loopback, is_trusted
from driving_xai.replay.live.control import Live
from driving_xai.replay.live.server import _MOST_CLIENTS, _MOST_OF_ONE_ADDRESS, serving

from .test_control import playback, stats

LOOPBACK = "127.0.0.1"
JSON = {"Content-Type": "application/json"}


class View:
    """A live view that is being served."""

    def __init__(self, live: Live, address: str) -> None:
        self.live, self.netloc = live, urlsplit(address).netloc
        self.port = urlsplit(address).port
        self.token = urlsplit(address).query.removeprefix("token=")

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

    def open(self, source: str = LOOPBACK) -> socket.socket:
        return socket.create_connection((LOOPBACK, self.port), timeout=10, source_address=(source, 0))

    def raw(self, data: bytes) -> bytes:
        """What comes back for these bytes until the connection is closed."""
        answer = b""
        with self.open() as client, suppress(ConnectionError):
            client.sendall(data)
            while piece := client.recv(65536):
                answer += piece
        return answer


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
    shown = body.decode().replace('"http://www.w3.org/2000/svg"', "")  # A name, which nobody fetches.
    assert "http" not in shown, "it refers to nothing elsewhere"
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


def test_requests_arrive_and_impossible_ones_are_explained(view: View) -> None:
    view.live.begin(playback(free=True), at_s=0.0)
    assert view.request(do="seek", at_s=3) == (204, b"")
    assert view.request(do="method", method="rise") == (204, b"")
    assert view.live.next_request() == (3.0, "rise")
    assert view.request(do="seek", at_s=10**400)[0] == 400, "a number too large for a float"
    for request in (
        {"do": "seek"},
        {"do": "seek", "at_s": "3"},
        {"do": "dance"},
        {"do": []},
        {"do": "method"},
    ):
        assert view.request(**request)[0] == 400, request
    for impossible in (
        {"do": "seek", "at_s": 99},
        {"do": "seek", "at_s": math.nan},
        {"do": "method", "method": "x"},
    ):
        assert view.request(**impossible)[0] == 409, impossible
    assert b"expected 0.00 to 10.00" in view.request(do="seek", at_s=99)[1]
    for body in ("[1]", "{", "[" * 1000, "\xff", "", "1" * 1000):
        assert view.ask("POST", "/request", body, Content_Type="application/json")[0] == 400, body


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


@pytest.mark.parametrize(
    ("length", "status"),
    [("99999999", 413), ("9" * 5000, 413), ("-1", 400), ("x", 400), ("", 400), ("²", 400)],
)
def test_a_body_of_any_other_size_is_not_read(view: View, length: str, status: int) -> None:
    head = f"POST /request HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    assert view.raw(head.encode()).startswith(b"HTTP/1.1 %d" % status)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n", 400),
        (b"GET /frame?after=nonsense HTTP/1.1\r\nHost: localhost\r\n", 400),
        (b"GET /frame?after=-1 HTTP/1.1\r\nHost: localhost\r\n", 400),
        (b"GET /frame?after= HTTP/1.1\r\nHost: localhost\r\n", 400),
        (b"GET /frame?after=%C2%B2 HTTP/1.1\r\nHost: localhost\r\n", 400),
        (b"GET /frame?after=1&after=2 HTTP/1.1\r\nHost: localhost\r\n", 400),
        (b"GET /frame?" + b"a=1&" * 50 + b" HTTP/1.1\r\nHost: localhost\r\n", 400),
        (b"GET /\r\n", 400),
        (b"\0\xff\x16\x03\x01\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n", 505),
        (b"BREW / HTTP/1.1\r\nHost: localhost\r\n", 501),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % number for number in range(150)), 431),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000 + b"\r\n", 431),
    ],
)
def test_a_malformed_request_is_told_so_and_closed(
    view: View, head: bytes, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = view.raw(head + b"\r\n")
    # The rest of what is too long is not read: a reset may overtake the answer.
    assert answer.startswith(b"HTTP/1.1 %d" % status) or (status == 431 and not answer)
    assert view.ask("GET", "/")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_request_that_drips_is_ended(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then kept a connection for ever, when only the time between bytes counted."""
    monkeypatch.setattr(server, "_CLIENT_S", 0.6)
    begun = time.monotonic()
    with view.open() as client, suppress(ConnectionError):
        for byte in b"X-Slow: 1\r\n" * 10:
            client.sendall(bytes([byte]))
            time.sleep(0.05)
    assert time.monotonic() - begun < 4
    assert time.monotonic() - begun > 0.5


class TestToken:
    @pytest.fixture
    def open_view(self) -> Iterator[View]:
        """One that listens to everybody."""
        live = Live()
        with serving(live, host="0.0.0.0", port=0) as address:
            live.begin(playback(free=False), at_s=0.0)
            live.show(noise(0), stats(1))
            yield View(live, address)

    def test_without_it_nothing_is_shown_and_nothing_done(self, open_view: View) -> None:
        body = json.dumps({"do": "step"})
        for query in ("", "?token=", "?token=x", "?token=%C3%A9", f"?token={open_view.token}x"):
            for path in ("/", "/frame", "/other"):
                assert open_view.ask("GET", path + query)[0] == 403, path + query
            assert open_view.ask("POST", f"/request{query}", body, Content_Type="application/json")[0] == 403
        for cookie in ("token=x", f"other={open_view.token}", "a b;;=\x01", f"replay-{open_view.port}=x"):
            assert open_view.ask("GET", "/", Cookie=cookie)[0] == 403, cookie

    def test_the_printed_address_opens_it_and_the_cookie_keeps_it_open(self, open_view: View) -> None:
        assert len(open_view.token) >= 22
        status, headers, _ = open_view.ask("GET", f"/?token={open_view.token}")
        assert status == 200
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(headers["Set-Cookie"].split("; "))
        cookie = headers["Set-Cookie"].split(";")[0]
        assert open_view.ask("GET", "/frame?after=0", Cookie=cookie)[0] == 200
        body = json.dumps({"do": "step"})
        asked = open_view.ask("POST", "/request", body, Content_Type="application/json", Cookie=cookie)
        assert asked[0] == 204

    @pytest.mark.parametrize(
        "foreign",
        [
            'prefs={"a": [1, 2]}',
            "theme=dark mode",
            "bad name=1",
            "=",
            "x",
            "a=\x80",
            'q="unclosed',
            "a@b=1; c d=2",
        ],
    )
    def test_cookies_of_other_programs_lock_nobody_out(self, open_view: View, foreign: str) -> None:
        """A browser sends the cookies of all ports of a host, also those that no standard allows."""
        own = f"replay-{open_view.port}={open_view.token}"
        for cookie in (f"{foreign}; {own}", f"{own}; {foreign}", f"{foreign};{own};{foreign}"):
            assert open_view.ask("GET", "/frame?after=0", Cookie=cookie)[0] == 200, cookie
        assert open_view.ask("GET", "/", Cookie=foreign)[0] == 403

    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])
    def test_the_printed_address_of_a_wildcard_can_be_opened(self, host: str) -> None:
        try:
            with serving(Live(), host=host, port=0) as address:
                assert urlsplit(address).hostname != host
                directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                with directly.open(address, timeout=10) as answer:
                    assert answer.status == 200
        except VideoError:
            pytest.skip(f"this machine does not listen on {host}")

    def test_without_a_network_the_printed_address_is_the_loopback(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreachable(*_: object) -> None:
            raise OSError("no route")

        monkeypatch.setattr(socket.socket, "connect", unreachable)
        assert [address_to_open(host) for host in ("0.0.0.0", "::")] == ["127.0.0.1", "::1"]

    def test_a_wildcard_answers_to_the_own_name_of_the_machine_and_to_no_other(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(socket, "gethostname", lambda: "Robot")
        assert is_trusted("robot:8700", "0.0.0.0")
        assert not is_trusted("robot.evil.example", "0.0.0.0")
        assert not is_trusted("robot:8700", "127.0.0.1"), "the loopback has no such name"

    def test_each_server_has_its_own(self, open_view: View) -> None:
        with serving(Live(), host="0.0.0.0", port=0) as address:
            assert open_view.token not in address

    def test_on_the_loopback_none_is_asked_for(self, view: View) -> None:
        status, headers, _ = view.ask("GET", "/")
        assert (status, view.token, headers["Set-Cookie"]) == (200, "", None)

    @pytest.mark.parametrize(
        ("host", "here_only"),
        [
            ("127.0.0.1", True),
            ("::1", True),
            ("localhost", True),
            ("127.8.8.8", True),
            ("0.0.0.0", False),
            ("::", False),
            ("192.168.1.5", False),
            ("robot.lan", False),
        ],
    )
    def test_which_hosts_let_others_in(self, host: str, here_only: bool) -> None:
        assert is_loopback(host) is here_only


def test_thirty_viewers_are_served_while_twenty_are_hostile(
    view: View, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Half-open, garbage, slow and huge ones from two addresses; the others come from ten."""
    monkeypatch.setattr(server, "_CLIENT_S", 3.0)
    view.live.begin(playback(free=False), at_s=0.0)
    view.live.show(noise(0), stats(1))
    over, unhappy, served = threading.Event(), [], []
    garbage = np.random.default_rng(0)

    def hostile(number: int) -> None:
        while not over.is_set():
            with suppress(OSError), view.open(f"127.0.1.{number % 2}") as client:
                if number % 4 == 0:
                    over.wait(1.0)
                elif number % 4 == 1:
                    client.sendall(garbage.bytes(2000) + b"\r\n\r\n")
                elif number % 4 == 2:
                    for byte in b"GET /frame HTTP/1.1\r\nHost: localhost\r\n" * 20:
                        client.sendall(bytes([byte]))
                        over.wait(0.02)
                else:
                    client.sendall(b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 10**6)
                client.recv(100)
            over.wait(0.02)

    def good(number: int) -> None:
        try:
            for _ in range(10):
                with view.open(f"127.0.2.{number % 10}") as client:
                    client.sendall(b"GET /frame?after=0 HTTP/1.0\r\nHost: localhost\r\n\r\n")
                    answer = b"".join(iter(lambda: client.recv(65536), b""))
                assert answer.startswith(b"HTTP/1.1 200"), answer[:80]
                assert b"\xff\xd8" in answer
                served.append(number)
        except (OSError, AssertionError) as error:
            unhappy.append((number, error))

    bad = [threading.Thread(target=hostile, args=(number,)) for number in range(20)]
    fine = [threading.Thread(target=good, args=(number,)) for number in range(30)]
    for each in (*bad, *fine):
        each.start()
    for each in fine:
        each.join(30)
    over.set()
    for each in bad:
        each.join(30)
    assert not unhappy
    assert len(served) == 300
    assert "Traceback" not in capfd.readouterr().err


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
    _until_nobody_is_left()
    assert _handlers() == 0
    assert view.ask("GET", "/frame?after=0")[0] == 200, "the room they took is free again"
    assert "Traceback" not in capfd.readouterr().err


def _until_nobody_is_left() -> None:
    until = time.monotonic() + 5
    while _handlers() and time.monotonic() < until:
        time.sleep(0.05)


def _handlers() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_there_is_room_for_so_many_and_no_more(view: View) -> None:
    """Of one address, so that nobody shuts the others out; and in all."""
    view.live.begin(playback(free=False), at_s=0.0)
    view.live.show(noise(0), stats(1))
    idle = [view.open() for _ in range(_MOST_OF_ONE_ADDRESS)]
    time.sleep(0.2)
    with view.open("127.0.0.2") as other:
        other.sendall(b"GET /frame HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert other.recv(20).startswith(b"HTTP/1.1 200")
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        view.ask("GET", "/frame?after=0")
    for client in idle:
        client.close()
    _until_nobody_is_left()
    per_address = range(_MOST_OF_ONE_ADDRESS)
    idle = [
        view.open(f"127.0.3.{of}") for of in range(_MOST_CLIENTS // len(per_address)) for _ in per_address
    ]
    time.sleep(0.2)
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        view.ask("GET", "/frame?after=0")
    for client in idle:
        client.close()
    _until_nobody_is_left()
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
