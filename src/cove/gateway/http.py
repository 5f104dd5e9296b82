"""The wire on the caller's side: bytes to exchanges and back (RFC 9112), by llhttp.

A connection parses requests into exchanges and serves them one at a time; pipelined ones
wait with reading paused. An exchange is one request and its reply. Whoever serves it either
takes the body as it comes (`take_body`) or waits for all of it (`read_body`).
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from itertools import count
from typing import Protocol, cast

import httptools

from cove.gateway.replies import simple_reply

Headers = list[tuple[bytes, bytes]]

_HEAD_BYTES = 64 * 1024
_HEAD_COUNT = 100
_BUFFER = 256 * 1024
_HEAD_SECONDS = 15.0
_IDLE_SECONDS = 75.0
_BODY_SECONDS = 30.0
_WRITE_SECONDS = 60.0
_LINGER_SECONDS = 2.0

_ids = count(1)
_prefix = os.urandom(6).hex()

# A repeated one of these makes two readers of a request disagree on what it says.
_SINGLE = frozenset(
    {
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"authorization",
        b"mcp-session-id",
        b"mcp-protocol-version",
        b"mcp-method",
        b"mcp-name",
    }
)


class Phase(IntEnum):
    """What a connection waits for; each has its bound."""

    HEAD = 0
    IDLE = 1
    SERVING = 2
    LINGER = 3


class Application(Protocol):
    """Serves exchanges; called synchronously, once a request's head is complete."""

    def serve(self, exchange: Exchange) -> None: ...

    def opened(self, connection: Connection) -> bool:
        """Whether one more connection is welcome."""

    def closed(self, connection: Connection) -> None: ...


class BodySink(Protocol):
    """Takes a request's body as it arrives."""

    def body(self, data: bytes) -> None: ...

    def body_done(self) -> None: ...


class Exchange:
    """One request and its reply. Header names are lower case; `fields` has each once."""

    __slots__ = (
        "_body",
        "_sink",
        "_waiter",
        "body_done",
        "buffered",
        "chunked",
        "connection",
        "deadline",
        "fields",
        "finished",
        "gone",
        "headers",
        "id",
        "is_stream",
        "keep_alive",
        "length",
        "method",
        "on_deadline",
        "on_gone",
        "on_pause",
        "received",
        "started",
        "started_at",
        "target",
        "upgrade",
        "version",
    )

    def __init__(self, connection: Connection, now: float) -> None:
        self.connection = connection
        self.id = f"{_prefix}{next(_ids):08x}".encode()
        self.method = b""
        self.target = b""
        self.version = b"1.1"
        self.headers: Headers = []
        self.fields: dict[bytes, bytes] = {}
        self.keep_alive = True
        self.upgrade = False
        self.length: int | None = None
        self.chunked = False
        self.received = 0
        self.buffered = 0
        self.body_done = False
        self.is_stream = False
        self.started = False
        self.finished = False
        self.gone = False
        self.started_at = now
        self.deadline = 0.0
        self.on_deadline: Callable[[], None] | None = None
        self.on_gone: Callable[[], None] | None = None
        self.on_pause: Callable[[bool], None] | None = None
        self._body: list[bytes] = []
        self._sink: BodySink | None = None
        self._waiter: asyncio.Future[None] | None = None

    # The request's body.

    def take_buffered(self) -> bytes:
        """What has arrived of the body and was not taken yet."""
        data = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self.buffered = 0
        return data

    def take_body(self, sink: BodySink) -> None:
        """Give the body, from here on, to `sink` as it arrives."""
        self._sink = sink
        self.connection.resume()

    async def read_body(self, limit: int) -> bytes | None:
        """The whole body; None where it is larger than `limit`."""
        self.connection.resume()
        while not self.body_done:
            if self.received > limit:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self.connection.resume()
        return self.take_buffered() if self.received <= limit else None

    def feed(self, data: bytes) -> None:
        self.received += len(data)
        if self._sink is not None:
            self._sink.body(data)
            return
        self._body.append(data)
        self.buffered += len(data)
        if self.buffered > _BUFFER:
            self.connection.pause()
        self._wake()

    def feed_done(self) -> None:
        self.body_done = True
        if self._sink is not None:
            self._sink.body_done()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # The reply.

    def write(self, data: bytes) -> None:
        """Bytes of the reply, framed by the caller. Dropped once the client has gone."""
        self.started = True
        if not self.gone and not self.finished:
            self.connection.write(data)

    def finish(self, *, keep_alive: bool = True) -> None:
        """The reply is complete; the connection goes on to the next request or closes."""
        if not self.finished:
            self.finished = True
            self.connection.done(self, keep_alive and self.keep_alive)

    def abort(self) -> None:
        """The reply cannot be completed: the client must not take it for whole."""
        if not self.finished:
            self.finished = True
            self.connection.abort()

    async def drain(self) -> None:
        """Until the client has taken what was written."""
        await self.connection.drain()

    def client_gone(self) -> None:
        if self.finished:
            return
        self.gone = True
        self._wake()
        if self.on_gone is not None:
            self.on_gone()

    @property
    def path(self) -> bytes:
        return self.target.partition(b"?")[0]

    def __repr__(self) -> str:
        return f"<Exchange {self.id.decode()} {self.method.decode()} {self.target.decode()}>"


class Connection(asyncio.Protocol):
    """A client's connection: parser on one side, transport on the other, bounds on both."""

    def __init__(self, app: Application, loop: asyncio.AbstractEventLoop) -> None:
        self._app = app
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._parsing: Exchange = cast(Exchange, None)
        self._active: Exchange | None = None
        self._fresh: Exchange | None = None
        self._queue: deque[Exchange] = deque()
        self._head_bytes = 0
        self._in_head = True
        self._paused_reading = False
        self._paused_writing = False
        self._drained: asyncio.Future[None] | None = None
        self._tunnel: Callable[[bytes], None] | None = None
        self._rest = b""
        self.phase = Phase.HEAD
        self.since = 0.0
        self.peer = ""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_BUFFER)
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if isinstance(peer, tuple) else ""
        self.since = self._loop.time()
        if not self._app.opened(self):
            self._transport.write(
                simple_reply(
                    503, b"too many connections", keep_alive=False, extra=b"Retry-After: 1"
                )
            )
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._app.closed(self)
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        for exchange in [self._active, *self._queue]:
            if exchange is not None:
                exchange.client_gone()
        self._active = None
        self._queue.clear()

    def pause_writing(self) -> None:
        self._paused_writing = True
        self.since = self._loop.time()
        self._drained = self._loop.create_future()
        if self._active is not None and self._active.on_pause is not None:
            self._active.on_pause(True)

    def resume_writing(self) -> None:
        self._paused_writing = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._active is not None and self._active.on_pause is not None:
            self._active.on_pause(False)

    def data_received(self, data: bytes) -> None:
        if self.phase is Phase.LINGER:
            return
        if self._tunnel is not None:
            self._tunnel(data)
            return
        if self._in_head:
            if not self._head_bytes:
                self.since = self._loop.time()
            self._head_bytes += len(data)
        self._feed(data)
        fresh, self._fresh = self._fresh, None
        if fresh is not None:
            self._app.serve(fresh)

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgraded(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(error)
            return
        if self._in_head and self._head_bytes > _HEAD_BYTES:
            self._refuse(_HeadTooLargeError())

    def _upgraded(self, rest: bytes) -> None:
        if self._parsing.upgrade:
            self._rest = rest
            self.pause()
            return
        # An upgrade nobody here speaks (h2c): the request stands, the wish is passed over.
        self._parser = httptools.HttpRequestParser(self)
        if rest:
            self._feed(rest)

    def _refuse(self, error: Exception) -> None:
        cause = error.__context__ or error
        status, text = 400, b"malformed HTTP request"
        if isinstance(cause, _HeadTooLargeError):
            status, text = 431, b"request header fields are too large: 64 KiB and 100 at most"
        elif isinstance(cause, _RefusedError):
            text = str(cause).encode()
        self._fresh = None
        if self._active is None or not self._active.started:
            if self._active is not None:
                self._active.finished = True
            self._transport.write(simple_reply(status, text, keep_alive=False))
            self._close_after_reply()
        else:
            self.abort()

    # httptools' callbacks

    def on_message_begin(self) -> None:
        self._parsing = Exchange(self, self._loop.time())
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        self._parsing.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        exchange = self._parsing
        name = name.lower()
        if name in exchange.fields:
            if name in _SINGLE:
                raise _RefusedError(f"the header {name.decode()} is there twice")
        elif not name:
            raise _RefusedError("a header without a name")
        exchange.fields[name] = value
        exchange.headers.append((name, value))
        if len(exchange.headers) > _HEAD_COUNT:
            raise _HeadTooLargeError

    def on_headers_complete(self) -> None:
        exchange = self._parsing
        parser = self._parser
        self._in_head = False
        self._head_bytes = 0
        exchange.method = parser.get_method()
        exchange.version = parser.get_http_version().encode()
        exchange.keep_alive = exchange.version == b"1.1" and parser.should_keep_alive()
        _frame(exchange)
        if parser.should_upgrade():
            self._wish(exchange)
        if self._active is None:
            self._active = self._fresh = exchange
            self.phase = Phase.SERVING
        else:
            self._queue.append(exchange)
            self.pause()
        if exchange.fields.get(b"expect", b"").lower() == b"100-continue" and not exchange.gone:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _wish(self, exchange: Exchange) -> None:
        if exchange.fields.get(b"upgrade", b"").lower() == b"websocket":
            if exchange.length or exchange.chunked:
                raise _RefusedError("an upgrade with a body")
            exchange.upgrade = True

    def on_body(self, data: bytes) -> None:
        self.since = self._loop.time()
        self._parsing.feed(data)

    def on_message_complete(self) -> None:
        self._in_head = True
        self._parsing.feed_done()

    # What exchanges do with their connection.

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def done(self, exchange: Exchange, keep_alive: bool) -> None:
        """The active exchange is answered: on to the next one, or close."""
        self._active = None
        if self._transport.is_closing():
            return
        if not keep_alive or not exchange.body_done:
            self._close_after_reply()
            return
        self.since = self._loop.time()
        self.phase = Phase.IDLE
        if self._queue:
            self._active = self._queue.popleft()
            self.phase = Phase.SERVING
            self._loop.call_soon(self._serve_next, self._active)
        if not self._queue:
            self.resume()

    def _serve_next(self, exchange: Exchange) -> None:
        if not exchange.gone and exchange is self._active:
            self._app.serve(exchange)

    def tunnel(self, receive: Callable[[bytes], None]) -> None:
        """From here on the connection carries another protocol."""
        self._tunnel = receive
        rest, self._rest = self._rest, b""
        self.resume()
        if rest:
            receive(rest)

    def pause(self) -> None:
        if not self._paused_reading and not self._transport.is_closing():
            self._paused_reading = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused_reading and not self._transport.is_closing():
            self._paused_reading = False
            self._transport.resume_reading()

    async def drain(self) -> None:
        if self._paused_writing and self._drained is not None:
            await asyncio.shield(self._drained)

    def abort(self) -> None:
        self._transport.abort()

    @property
    def busy(self) -> bool:
        """A request is being served that its reply will end; streams are not waited for."""
        return self._active is not None and not self._active.is_stream

    def close_idle(self) -> None:
        """Close now if nothing is being served, else after the reply."""
        if self._active is None:
            self._transport.close()
        else:
            self._active.keep_alive = False

    def _close_after_reply(self) -> None:
        # Closing with unread input makes the kernel reset the connection, and the reply with
        # it: what the client still sends is read and dropped for a moment first.
        self.phase = Phase.LINGER
        self.since = self._loop.time()
        self.resume()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def check(self, now: float) -> None:
        """Bounds on every phase; called a few times a second."""
        active, waited = self._active, now - self.since
        if self.phase is Phase.SERVING and active is not None:
            if self._paused_writing and waited > _WRITE_SECONDS:
                self.abort()
            elif active.deadline and now > active.deadline and active.on_deadline is not None:
                active.deadline = 0.0
                active.on_deadline()
            elif not active.body_done and not self._paused_reading and waited > _BODY_SECONDS:
                self._timed_out(b"the request's body stalled")
        elif self.phase is Phase.LINGER and waited > _LINGER_SECONDS:
            self._transport.abort()
        elif self._in_head and self._head_bytes and waited > _HEAD_SECONDS:
            self._timed_out(b"the request's head took too long")
        elif self.phase in (Phase.HEAD, Phase.IDLE) and waited > _IDLE_SECONDS:
            self._transport.close()

    def _timed_out(self, text: bytes) -> None:
        if self._active is None or not self._active.started:
            self._transport.write(simple_reply(408, text, keep_alive=False))
        if self._active is not None:
            self._active.client_gone()
        self._transport.close()


class _RefusedError(Exception):
    """A request that two readers would read differently."""


class _HeadTooLargeError(Exception):
    pass


def _frame(exchange: Exchange) -> None:
    """How the body is delimited (RFC 9112 §6). llhttp has refused what is malformed."""
    fields = exchange.fields
    if (length := fields.get(b"content-length")) is not None:
        exchange.length = int(length)
    if (coding := fields.get(b"transfer-encoding")) is not None:
        if coding.lower() != b"chunked" or exchange.length is not None:
            raise _RefusedError("conflicting or unknown transfer codings")
        if exchange.version != b"1.1":
            raise _RefusedError("a transfer coding in HTTP/1.0")
        exchange.chunked = True
    if exchange.version == b"1.1" and b"host" not in fields:
        raise _RefusedError("no Host header")
