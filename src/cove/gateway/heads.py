"""Heads that the gateway sends on: what is the hop's own is replaced, the rest passes.

Requests and responses repeat themselves on a connection; a head that was rewritten once is
remembered with its original, and only the request id and the length are new.
"""

from __future__ import annotations

from collections.abc import Callable

from cove.gateway.destination import HOP_BY_HOP, Destination
from cove.gateway.exchange import Exchange
from cove.gateway.head import Headers
from cove.gateway.replies import status_line


class SentHead:
    """The last request head that was rewritten for a way."""

    __slots__ = ("_head", "_remote")

    def __init__(self) -> None:
        self._head: bytes | None = None
        self._remote: bytes | None = None

    def of(
        self,
        exchange: Exchange,
        destination: Destination,
        target: bytes,
        *,
        prefix: bytes,
        key: bool,
        remote: bytes | None,
    ) -> bytes:
        """All but the framing and the empty line that end it. As `request_head`."""
        head = self._head
        if head is None or remote != self._remote:
            head = self._head = _passed(
                exchange, destination, target, prefix=prefix, key=key, remote=remote
            )
            self._remote = remote
        return b"%bx-request-id: %b\r\n" % (head, exchange.id)


Shown = tuple[bytes, bool, bool]
"""A response's head as its client gets it, up to its request id; whether events follow, and
whether they are encoded."""


class ShownHead:
    """The last response head of a connection that was rewritten for its client."""

    __slots__ = ("_headers", "_shown", "_status")

    def __init__(self) -> None:
        self._status = 0
        self._headers: Headers = []
        self._shown: Shown = (b"", False, False)

    def get(self, status: int, headers: Headers) -> Shown | None:
        return self._shown if status == self._status and headers == self._headers else None

    def put(self, status: int, headers: Headers, shown: Shown) -> None:
        self._status, self._headers, self._shown = status, headers, shown


_NOT_SHOWN = HOP_BY_HOP | {b"x-request-id"}


def shown_head(
    status: int,
    headers: Headers,
    source: Destination,
    *,
    prefix: bytes,
    session_id: Callable[[int, bytes], bytes | None],
) -> tuple[Shown, bool]:
    """A response's head for its client, and whether that is the same for every client.

    `session_id` is asked what an MCP session's id is to the client.
    """
    out = [status_line(status)]
    same, events, encoded = True, False, False
    dropped = _NOT_SHOWN.union(*(listed(v) for n, v in headers if n == b"connection"))
    for name, value in headers:
        if name in dropped:
            continue
        if name == b"content-type":
            events = value.lower().startswith(b"text/event-stream")
        elif name == b"content-encoding":
            encoded = True
        elif name == b"location" and value.startswith(inner := b"http://" + source.host):
            same = False
            value = prefix + value.removeprefix(inner) or b"/"
        elif name == b"mcp-session-id" and source.mcp:
            same = False
            shown = session_id(status, value)
            if shown is None:
                continue
            value = shown
        out += (name, b": ", value, b"\r\n")
    out.append(b"x-request-id: ")
    return (b"".join(out), events, encoded), same


def request_head(
    exchange: Exchange,
    destination: Destination,
    target: bytes,
    *,
    prefix: bytes,
    key: bool,
    remote: bytes | None,
    length: int | None,
    instead: Headers | None = None,
) -> bytes:
    """A caller's whole head as it is sent on.

    `prefix` was stripped from the path; `key`: the caller authenticated to Cove, so its
    Authorization is not the function's; `remote`: the backend's own MCP session id; `instead`:
    headers that replace the caller's.
    """
    head = _passed(
        exchange, destination, target, prefix=prefix, key=key, remote=remote, instead=instead
    )
    framing = b"" if length is None else b"content-length: %d\r\n" % length
    return b"%bx-request-id: %b\r\n%b\r\n" % (head, exchange.id, framing)


def _passed(
    exchange: Exchange,
    destination: Destination,
    target: bytes,
    *,
    prefix: bytes,
    key: bool,
    remote: bytes | None,
    instead: Headers | None = None,
) -> bytes:
    fields = exchange.fields
    host = fields.get(b"host", b"")
    peer, proto = exchange.connection.peer.encode(), b"http"
    if exchange.connection.is_local:  # a proxy on this machine says for whom it asks
        proto = fields.get(b"x-forwarded-proto", proto)
        if b"x-forwarded-for" in fields:
            peer = fields[b"x-forwarded-for"] + b", " + peer
    said: Headers = [
        # MCP servers refuse names that are not loopback; web apps build their links of it
        (b"host", destination.host if destination.mcp else host),
        (b"x-forwarded-for", peer),
        (b"x-forwarded-host", host),
        (b"x-forwarded-proto", proto),
    ]
    if prefix:
        said.append((b"x-forwarded-prefix", prefix))
    if remote is not None:
        said.append((b"mcp-session-id", remote))
    if exchange.upgrade:
        said += ((b"connection", b"upgrade"), (b"upgrade", b"websocket"))
    dropped = destination.not_sent_on[key]
    if b"connection" in fields:
        dropped = dropped | listed(fields[b"connection"])
    if instead is not None:
        said += instead
        dropped = dropped | {name for name, _ in instead}
    said += [(name, value) for name, value in exchange.headers if name not in dropped]
    lines = [exchange.method, b" ", target, b" HTTP/1.1\r\n"]
    for name, value in said:
        lines += (name, b": ", value, b"\r\n")
    return b"".join(lines)


def framing(length: int | None, *, done: bool) -> bytes:
    """The end of a request's head. `length` is what its caller said of the body's; `done`: there
    is none, else it follows."""
    if done:
        return b"\r\n" if length is None else b"content-length: 0\r\n\r\n"
    if length is not None:
        return b"content-length: %d\r\n\r\n" % length
    return b"transfer-encoding: chunked\r\n\r\n"


def listed(connection: bytes) -> frozenset[bytes]:
    """Header names that a Connection header makes hop-by-hop."""
    return frozenset(name.strip().lower() for name in connection.split(b","))
