"""A request's head: what llhttp read of it, checked for what two readers could read differently.

Clients repeat themselves: most heads are the same but for their Content-Length, which is
therefore kept apart. Such a head is parsed once, and what the gateway decided on it stays with
it (`way`).
"""

from __future__ import annotations

from typing import Any

Headers = list[tuple[bytes, bytes]]

HEAD_COUNT = 100
_LIGHT_BYTES = 4096

# A repeated one of these makes two readers of a request disagree on what it says.
_SINGLE = frozenset(
    {
        b"host",
        b"transfer-encoding",
        b"authorization",
        b"mcp-session-id",
        b"mcp-protocol-version",
        b"mcp-method",
        b"mcp-name",
    }
)


class RefusedError(Exception):
    """A request that cannot be served as HTTP; says why."""


class HeadTooLargeError(Exception):
    """More or longer header fields than are taken."""


class Head:
    """Method, target and header fields. Names are lower case; `fields` has each name once,
    with the values of its lines joined.

    `target` is path and query. `headers` lack Content-Length, which is the exchange's.
    `wishes` for another protocol; `upgrade`: for one that is passed through, WebSocket.
    """

    __slots__ = (
        "chunked",
        "expects",
        "fields",
        "headers",
        "keep_alive",
        "method",
        "target",
        "upgrade",
        "url",
        "version",
        "way",
        "wishes",
    )

    def __init__(
        self, method: bytes, url: bytes, version: str, headers: Headers, *, keep_alive: bool
    ) -> None:
        """`RefusedError` or `HeadTooLargeError` for what must not be served."""
        if len(headers) > HEAD_COUNT:
            raise HeadTooLargeError
        self.method = method
        self.url = url
        self.target = _origin_form(method, url)
        self.headers = headers
        self.fields = fields = dict(headers)
        if len(fields) != len(headers):
            _join_repeated(headers, fields)
        if version not in ("1.1", "1.0"):
            raise RefusedError("HTTP/1.1 or 1.0, please")
        self.version = version.encode()
        self.keep_alive = keep_alive and version == "1.1"
        self.chunked = b"transfer-encoding" in fields
        if self.chunked and (
            version == "1.0" or fields[b"transfer-encoding"].lower() != b"chunked"
        ):
            raise RefusedError("a transfer coding that is not chunked")
        if version == "1.1" and b"host" not in fields:
            raise RefusedError("no Host header")
        self.expects = fields.get(b"expect", b"").lower() == b"100-continue"
        wished = fields.get(b"upgrade")
        self.wishes = wished is not None and b"upgrade" in fields.get(b"connection", b"").lower()
        self.upgrade = self.wishes and wished is not None and wished.lower() == b"websocket"
        self.way: Any = None

    def is_again(self, method: bytes, url: bytes, version: str, headers: Headers) -> bool:
        """Whether a request has this very head."""
        return (
            headers == self.headers
            and url == self.url
            and method == self.method
            and version == ("1.1" if self.version == b"1.1" else "1.0")
        )

    def is_light(self) -> bool:
        """Whether it is worth its memory to remember this head while a connection idles."""
        return len(self.url) + sum(len(n) + len(v) for n, v in self.headers) <= _LIGHT_BYTES


class Heads:
    """Heads seen lately, of all connections: a proxy in front mixes its callers on a few.

    A head is found only by everything it says and by the peer that said it.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._heads: dict[tuple[object, ...], Head] = {}

    def get(
        self,
        peer: str,
        method: bytes,
        url: bytes,
        version: str,
        headers: Headers,
        *,
        keep_alive: bool,
    ) -> Head:
        """The head that says this, parsed now if need be; as `Head` where it must be refused."""
        key = (peer, method, url, version, tuple(headers))
        head = self._heads.get(key)
        if head is None:
            head = Head(method, url, version, headers, keep_alive=keep_alive)
            if head.is_light():
                if len(self._heads) >= self._most:
                    self._heads.clear()
                self._heads[key] = head
        return head

    def __len__(self) -> int:
        return len(self._heads)


def _join_repeated(headers: Headers, fields: dict[bytes, bytes]) -> None:
    """Lists may come in several header lines; what decides a request's meaning may not."""
    fields.clear()
    for name, value in headers:
        if name not in fields:
            fields[name] = value
        elif name in _SINGLE:
            raise RefusedError(f"the header {name.decode('latin-1')} is there twice")
        else:
            fields[name] += (b"; " if name == b"cookie" else b", ") + value


def _origin_form(method: bytes, url: bytes) -> bytes:
    """A target as path and query (RFC 9112 §3.2); an absolute one loses scheme and host."""
    if url.startswith(b"/"):
        return url
    scheme, found, rest = url.partition(b"://")
    if found and scheme.lower() in (b"http", b"https"):
        slash = rest.find(b"/")
        return rest[slash:] if slash >= 0 else b"/"
    if url == b"*" and method == b"OPTIONS":
        return b"/"
    raise RefusedError("the request's target is not a path")
