"""Who is calling, and whether they may: keys, principals, hosts and origins."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from cove.errors import CoveError
from cove.gateway.exchange import Exchange
from cove.gateway.routes import Route
from cove.model import Key

ANONYMOUS = "anonymous"
_REMEMBERED = 1000
_MEMORABLE = 512


class Policy:
    """The checks every request passes. `loopback`: the listener is on a loopback address.

    `epoch` counts the changes that void earlier decisions.
    """

    def __init__(self, *, loopback: bool, domain: str) -> None:
        self.loopback = loopback
        self._domain = domain.encode()
        self.epoch = 0
        self._keys: dict[str, str] = {}
        self._hosts: dict[bytes, bool] = {}
        self._known: dict[bytes, tuple[str, bool]] = {}

    def trust(self, keys: Sequence[Key]) -> None:
        """The project keys that are valid from now on."""
        self._keys = {key.sha256: key.subject for key in keys}
        self._known.clear()
        self.epoch += 1

    def subject(self, token: str) -> str | None:
        """The subject of a valid project key."""
        return self._keys.get(sha256(token.encode()).hexdigest())

    def principal(self, exchange: Exchange) -> tuple[str, bool]:
        """Who calls, and whether by a project key (which functions must never see)."""
        value = exchange.fields.get(b"authorization")
        if value is None:
            return ANONYMOUS, False
        known = self._known.get(value)
        if known is None:
            known = self._identify(value)
            if len(value) <= _MEMORABLE:
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                self._known[value] = known
        return known

    def _identify(self, value: bytes) -> tuple[str, bool]:
        scheme, _, token = value.partition(b" ")
        if scheme.lower() == b"bearer":
            subject = self._keys.get(sha256(token.strip()).hexdigest())
            if subject is not None:
                return subject, True
        return "auth:" + sha256(value).hexdigest()[:32], False

    def admit(self, exchange: Exchange, route: Route, by_key: bool) -> None:
        """Raise for a caller that the route does not let in."""
        if route.requires_key and not by_key:
            raise CoveError(
                "unauthorized",
                f"{route.name} needs a project key",
                hint="send Authorization: Bearer <key>; the first start wrote one to DATA/key",
            )
        origin = exchange.fields.get(b"origin")
        if origin is not None and route.mcp and not self._same_site(origin, exchange):
            raise CoveError(
                "forbidden",
                "Invalid Origin header: pages of other sites may not call an MCP server",
                hint="call it from the same host, from loopback, or without a browser",
            )

    def check_host(self, host: bytes) -> bool:
        """Whether a Host header is one of ours. On loopback a foreign one is a rebound name."""
        if not self.loopback:
            return True
        known = self._hosts.get(host)
        if known is None:
            bare = _hostname(host)
            ours = bare == self._domain or bare.endswith(b"." + self._domain)
            known = ours or _is_loopback(bare) or bare.endswith(b".localhost")
            if len(host) <= _MEMORABLE:
                if len(self._hosts) >= _REMEMBERED:
                    self._hosts.clear()
                self._hosts[host] = known
        return known

    def _same_site(self, origin: bytes, exchange: Exchange) -> bool:
        """The very host it is served from; on loopback also a local tool's page.

        Not a page under Cove's own domain: it is another function's.
        """
        scheme, found, rest = origin.lower().partition(b"://")
        if not found or scheme not in (b"http", b"https"):
            return False
        if rest == exchange.fields.get(b"host", b"").lower():
            return True
        return self.loopback and _is_loopback(_hostname(rest))


def _hostname(host: bytes) -> bytes:
    host = host.lower()
    if host.startswith(b"["):
        return host.partition(b"]")[0] + b"]"
    return host.partition(b":")[0]


def _is_loopback(host: bytes) -> bool:
    return host in (b"localhost", b"[::1]") or (
        host.startswith(b"127.") and host.replace(b".", b"").isdigit()
    )
