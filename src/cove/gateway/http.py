"""The wire on the caller's side: bytes to exchanges and back (RFC 9112), by llhttp.

A connection parses requests into exchanges and serves them one at a time; pipelined ones
wait with reading paused.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol, cast

import httptools

from cove.gateway.exchange import BUFFER, Exchange, new_id
from cove.gateway.head import Head, Headers, HeadTooLargeError, RefusedError
from cove.gateway.replies import simple_reply

_HEAD_BYTES = 64 * 1024
_HEAD_SECONDS = 15.0
_IDLE_SECONDS = 75.0
_BODY_SECONDS = 30.0
_WRITE_SECONDS = 60.0
_LINGER_SECONDS = 2.0


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


class Connection(asyncio.Protocol):
    """A client's connection: parser on one side, transport on the other, bounds on both."""

    def __init__(self, app: Application, loop: asyncio.AbstractEventLoop) -> None:
        self._app = app
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._parsing: Exchange = cast(Exchange, None)
        self._url = b""
        self._headers: Headers = []
        self._length: int | None = None
        self._head: Head | None = None
        self._active: Exchange | None = None
        self._fresh: Exchange | None = None
        self._queue: deque[Exchange] = deque()
        self._head_bytes = 0
        self._in_head = True
        self._paused_reading = False
        self._paused_writing = False
        self._drained: asyncio.Future[None] | None = None
        self._settled: asyncio.Future[None] | None = None
        self._tunnel: Callable[[bytes], None] | None = None
        self._rest = b""
        self.phase = Phase.HEAD
        self.since = 0.0
        self.peer = ""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=BUFFER)
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if isinstance(peer, tuple) else ""
        self.since = self._loop.time()
        if not self._app.opened(self):
            self._say(503, b"too many connections; retry later")
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._app.closed(self)
        self._settle()
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
            self._refuse(HeadTooLargeError())

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
        if isinstance(cause, HeadTooLargeError):
            status, text = 431, b"request header fields are too large: 64 KiB and 100 at most"
        elif isinstance(cause, RefusedError):
            text = str(cause).encode()
        self._fresh = None
        if self._active is None or not self._active.started:
            if self._active is not None:
                self._active.finished = True
            self._say(status, text)
            self._close_after_reply()
        else:
            self.abort()

    # httptools' callbacks

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name != b"content-length":
            self._headers.append((name, value))
        elif self._length is None:
            self._length = int(value)
        else:
            raise RefusedError("the header content-length is there twice")

    def on_headers_complete(self) -> None:
        parser = self._parser
        self._in_head = False
        self._head_bytes = 0
        method, version = parser.get_method(), parser.get_http_version()
        head = self._head
        if head is None or not head.is_again(method, self._url, version, self._headers):
            head = self._head = Head(
                method,
                self._url,
                version,
                self._headers,
                keep_alive=parser.should_keep_alive(),
            )
        if self._length is not None and (head.chunked or (head.upgrade and self._length)):
            raise RefusedError("conflicting body lengths")
        exchange = self._parsing = Exchange(self, head, self._length, self._loop.time())
        if self._active is None:
            self._active = self._fresh = exchange
            self.phase = Phase.SERVING
        else:
            self._queue.append(exchange)
            self.pause()
        if head.expects:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self.since = self._loop.time()
        self._parsing.feed(data)

    def on_message_complete(self) -> None:
        # Here and not at the next begin: a trailer must not become the next request's header.
        self._url = b""
        self._headers = []
        self._length = None
        self._in_head = True
        self._parsing.feed_done()

    # What exchanges do with their connection.

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def done(self, exchange: Exchange, keep_alive: bool) -> None:
        """The active exchange is answered: on to the next one, or close."""
        self._active = None
        if self._settled is not None:
            self._settle()
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

    def idle(self) -> asyncio.Future[None]:
        """Done when what is being served has been answered, or the connection has gone."""
        if self._settled is None or self._settled.done():
            self._settled = self._loop.create_future()
        return self._settled

    def _settle(self) -> None:
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

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
            self._say(408, text)
        if self._active is not None:
            self._active.client_gone()
        self._transport.close()

    def _say(self, status: int, text: bytes) -> None:
        """Answer what never became an exchange."""
        extra = b"X-Request-Id: " + new_id()
        self._transport.write(simple_reply(status, text, keep_alive=False, extra=extra))
