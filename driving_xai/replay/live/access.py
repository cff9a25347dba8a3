"""Who may look at a live view: names of this machine that cannot be taken over, connections, and the token."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether an address to listen on lets in this machine only.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_wildcard(host: str) -> bool:
    """Whether an address to listen on stands for every address of this machine.

    Example:
        >>> is_wildcard("0.0.0.0"), is_wildcard("::"), is_wildcard("192.168.1.5")
        (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == ""


def address_to_open(host: str) -> str:
    """A host that a browser can open, for an address to listen on.

    A wildcard is no place to go to. The address by which this machine reaches others is the one by which others
    most likely reach it; without a network it is the loopback.

    Example:
        >>> address_to_open("192.168.1.5")
        '192.168.1.5'
    """
    if not is_wildcard(host):
        return host
    # Documentation addresses (RFC 5737, RFC 3849): connecting a datagram socket sends nothing.
    family, elsewhere, loopback = (
        (socket.AF_INET6, "2001:db8::1", "::1") if ":" in host else (socket.AF_INET, "192.0.2.1", "127.0.0.1")
    )
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            found = str(probe.getsockname()[0])
    except OSError:
        return loopback
    # A link-local address needs a zone, which no browser takes.
    return loopback if ipaddress.ip_address(found).is_link_local else found


def is_trusted(header: str | None, host: str) -> bool:
    """Whether a Host or Origin names this server as its user would.

    A page from elsewhere can have its own name resolve to this machine (DNS rebinding) and then read what
    is served here; addresses and `localhost` cannot be taken over in this way, and neither can this machine's own
    name, which is how it is called on a network that a wildcard listens to.

    Example:
        >>> is_trusted("127.0.0.1:8000", "127.0.0.1"), is_trusted("evil.example:8000", "127.0.0.1")
        (True, False)
    """
    try:
        name = urlsplit(header if header and "//" in header else f"//{header or ''}").hostname or ""
    except ValueError:
        return False
    own = {socket.gethostname().lower()} if is_wildcard(host) else set()
    if name and name in {"localhost", host.lower(), *own}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Token:
    """A secret that every request has to carry: first in the address, then in a cookie."""

    def __init__(self, port: int) -> None:
        """Draws a new secret.

        Args:
            port: of the server; a browser sends cookies of one host to all of its ports.
        """
        self.secret = secrets.token_urlsafe(16)
        self._cookie = f"replay-{port}"

    def is_carried(self, query: Mapping[str, list[str]], cookies: str | None) -> bool:
        """Whether a request has it in its query or among its cookies."""
        carried = [*query.get("token", []), *_values(cookies or "", self._cookie)]
        # In a time that does not say how much of it was right.
        return any(hmac.compare_digest(_bytes(each), _bytes(self.secret)) for each in carried)

    @property
    def set_cookie(self) -> str:
        """The header that hands it to a browser; scripts and other sites do not get it."""
        return f"{self._cookie}={self.secret}; Path=/; HttpOnly; SameSite=Strict"


def _values(cookies: str, name: str) -> Iterator[str]:
    """The values of a cookie in a Cookie header.

    A browser sends one host's cookies to all of its ports, so other programs' cookies come along, and some are not
    what the standard allows: `http.cookies` drops everything that follows one of those.

    Example:
        >>> list(_values('a={"x": 1}; replay-80=secret; b', "replay-80"))
        ['secret']
    """
    for pair in cookies.split(";"):
        key, _, value = pair.partition("=")
        if key.strip() == name:
            yield value.strip()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class Room:
    """How many connections there may be, in all and from one address. Safe between threads."""

    def __init__(self, *, most: int, most_of_one: int) -> None:
        self._most, self._most_of_one = most, most_of_one
        self._lock = threading.Lock()
        self._inside: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Takes a place; says whether there was one."""
        with self._lock:
            if self._inside[address] >= self._most_of_one or self._inside.total() >= self._most:
                return False
            self._inside[address] += 1
            return True

    def leave(self, address: str) -> None:
        """Gives the place back."""
        with self._lock:
            self._inside[address] -= 1
            if not self._inside[address]:
                del self._inside[address]
