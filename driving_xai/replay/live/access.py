"""Who may look at a live view: names of this machine that cannot be taken over, connections, and the token."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import threading
from collections import Counter
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
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


def is_trusted(header: str | None, host: str) -> bool:
    """Whether a Host or Origin names this server as its user would.

    A page from elsewhere can have its own name resolve to this machine (DNS rebinding) and then read what
    is served here; addresses and `localhost` cannot be taken over in this way.

    Example:
        >>> is_trusted("127.0.0.1:8000", "127.0.0.1"), is_trusted("evil.example:8000", "127.0.0.1")
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
        carried = list(query.get("token", []))
        try:
            held = SimpleCookie(cookies or "").get(self._cookie)
        except CookieError:
            held = None
        if held is not None:
            carried.append(held.value)
        # In a time that does not say how much of it was right.
        return any(hmac.compare_digest(_bytes(each), _bytes(self.secret)) for each in carried)

    @property
    def set_cookie(self) -> str:
        """The header that hands it to a browser; scripts and other sites do not get it."""
        return f"{self._cookie}={self.secret}; Path=/; HttpOnly; SameSite=Strict"


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
