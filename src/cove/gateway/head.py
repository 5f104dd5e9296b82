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


# What llhttp knows of other protocols, besides CONNECT, which is for proxies.
_OTHERS = frozenset(
    {
        *(b"SOURCE", b"DESCRIBE", b"ANNOUNCE", b"SETUP", b"PLAY", b"PAUSE", b"TEARDOWN"),
        *(b"GET_PARAMETER", b"SET_PARAMETER", b"REDIRECT", b"RECORD", b"FLUSH"),
    }
)


class RefusedError(Exception):
    """A request that cannot be served as HTTP; says why, and what to send instead."""


class HeadTooLargeError(Exception):
    """More or longer header fields than are taken."""


class Head:
    """Method, target and header fields. Names are lower case; `fields` has each name once,
    with the values of its lines joined.

    `target` is path and query. `headers` lack Content-Length, which is the exchange's.
    `wishes` for another protocol, as llhttp reads it, which then takes no body; `upgrade`: for
    one that is passed through, WebSocket.
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
        self,
        method: bytes,
        url: bytes,
        version: str,
        headers: Headers,
        *,
        keep_alive: bool,
        wishes: bool,
    ) -> None:
        """`RefusedError` or `HeadTooLargeError` for what must not be served."""
        if len(headers) > HEAD_COUNT:
            raise HeadTooLargeError
        self.method = method
        self.url = url
        self.headers = headers
        self.fields = fields = dict(headers)
        if len(fields) != len(headers):
            _join_repeated(headers, fields)
        if version not in ("1.1", "1.0") or method in _OTHERS:
            raise RefusedError("another protocol; send HTTP/1.1 or HTTP/1.0")
        self.target = _origin_form(method, url, fields)
        self.version = version.encode()
        self.keep_alive = keep_alive and version == "1.1"
        self.chunked = b"transfer-encoding" in fields
        if self.chunked and (
            version == "1.0" or fields[b"transfer-encoding"].lower() != b"chunked"
        ):
            raise RefusedError(
                "a transfer coding that is not chunked; send the body chunked, or Content-Length"
            )
        if version == "1.1" and b"host" not in fields:
            raise RefusedError("no Host header; HTTP/1.1 asks for one")
        # RFC 9110 §7.8, §10.1.1: neither is for callers of HTTP/1.0; RFC 6455 §4.1: GET alone
        self.expects = version == "1.1" and fields.get(b"expect", b"").lower() == b"100-continue"
        self.wishes = wishes
        asks = wishes and method == b"GET" and version == "1.1"
        self.upgrade = asks and _wants_websocket(fields)
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
        wishes: bool = False,
    ) -> Head:
        """The head that says this, parsed now if need be; as `Head` where it must be refused."""
        key = (peer, method, url, version, tuple(headers))
        head = self._heads.get(key)
        if head is None:
            head = Head(method, url, version, headers, keep_alive=keep_alive, wishes=wishes)
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
            raise RefusedError(f"the header {name.decode('latin-1')} is there twice; send it once")
        else:
            fields[name] += (b"; " if name == b"cookie" else b", ") + value


def _wants_websocket(fields: dict[bytes, bytes]) -> bool:
    """llhttp also takes Proxy-Connection for Connection; who stands in front may not."""
    tokens = [token.strip() for token in fields.get(b"connection", b"").lower().split(b",")]
    return b"upgrade" in tokens and fields.get(b"upgrade", b"").lower() == b"websocket"


def _origin_form(method: bytes, url: bytes, fields: dict[bytes, bytes]) -> bytes:
    """A target as path and query (RFC 9112 §3.2); an absolute one loses scheme and host.

    What is routed by is the Host header: a target that names another host is refused, as is
    what has no place in a target and ends it for some readers.
    """
    if method == b"CONNECT" or b"#" in url:
        raise RefusedError("the request's target is not a path; send /path?query")
    if url.startswith(b"/"):
        return url
    scheme, found, rest = url.partition(b"://")
    if found and scheme.lower() in (b"http", b"https"):
        end = min(at for at in (rest.find(b"/"), rest.find(b"?"), len(rest)) if at >= 0)
        if rest[:end].lower() != fields.get(b"host", b"").lower() or b"@" in rest[:end]:
            raise RefusedError("the target names another host than the Host header; send the path")
        rest = rest[end:]
        return rest if rest.startswith(b"/") else b"/" + rest
    if url == b"*" and method == b"OPTIONS":
        return b"/"
    raise RefusedError("the request's target is not a path; send /path?query")
