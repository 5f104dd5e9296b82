"""The wire on the caller's side: bytes to exchanges and back (RFC 9112), by llhttp.

A connection parses requests into exchanges and serves them one at a time; pipelined ones
wait with reading paused.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol, cast

import httptools

from cove.gateway.exchange import BUFFER, Exchange, new_id
from cove.gateway.head import Head, Headers, Heads, HeadTooLargeError, RefusedError
from cove.gateway.refusal import TOO_MUCH_BETWEEN, refusal
from cove.gateway.replies import simple_reply

_HEAD_BYTES = 64 * 1024  # of a target and header fields
_UNENDED_BYTES = 136 * 1024  # of a head whose end was not seen, spaces and all
_LENGTH_DIGITS = 32  # llhttp takes any number of zeroes before a length
_BETWEEN_BYTES = 1024 * 1024  # of a body's framing in a row: a read is up to 256 KiB
_HEAD_SECONDS = 15.0
_IDLE_SECONDS = 75.0
_BODY_SECONDS = 30.0
_WRITE_SECONDS = 60.0
_LINGER_SECONDS = 2.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time


class Phase(IntEnum):
    """What a connection waits for; each has its bound."""

    HEAD = 0
    IDLE = 1
    SERVING = 2
    LINGER = 3


class Application(Protocol):
    """Serves exchanges; called synchronously, once a request's head is complete."""

    heads: Heads

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
        self._read = 0
        self._head_bytes = 0
        self._in_head = True
        self._paused_reading = False
        self._paused_writing = False
        self._drained: asyncio.Future[None] | None = None
        self._settled: asyncio.Future[None] | None = None
        self._tunnel: Callable[[bytes], None] | None = None
        self._rest = b""
        self._held = False
        self._refused: tuple[int, bytes] | None = None
        self._skips_body = False
        self._reading_on = False
        self._unsent = 0
        self._between = 0
        self.phase = Phase.HEAD
        self.since = 0.0
        self.peer = ""
        self.is_local = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=BUFFER)
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if isinstance(peer, tuple) else ""
        self.is_local = self.peer == "::1" or self.peer.startswith("127.")
        self.since = self._loop.time()
        if not self._app.opened(self):
            text = b"too many connections; use those that are open, or try again later"
            self._say(503, text, b"\r\nRetry-After: 1")
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._app.closed(self)
        self.settle()
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
        if self.phase is Phase.LINGER or self._refused is not None:
            return
        if self._tunnel is not None:
            self._tunnel(data)
            return
        self._read = size = len(data)
        if self._in_head:
            if not self._head_bytes:
                self.since = self._loop.time()
            self._head_bytes += size
        else:
            self._between += size
        self._feed(data)
        fresh, self._fresh = self._fresh, None
        if fresh is not None:
            self._app.serve(fresh)

    def _feed(self, data: bytes) -> None:
        rest: bytes | memoryview = data
        try:
            while rest:
                try:
                    self._parser.feed_data(rest)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    rest = self._upgraded(memoryview(rest)[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(error.__context__ or error)
            return
        if not self._in_head:
            if self._between > _BETWEEN_BYTES:
                self._refuse(RefusedError(TOO_MUCH_BETWEEN))
        elif self._head_bytes > _UNENDED_BYTES:
            self._refuse(HeadTooLargeError())
        elif self._url and not self._head_bytes:
            # It began somewhere in this read: from here on it has its time, and is measured.
            self._head_bytes = _HEAD_BYTES
            self.since = self._loop.time()

    def _upgraded(self, rest: memoryview) -> bytes | memoryview:
        """What is left to parse, after a head that wished for another protocol."""
        parsing = self._parsing
        self._parser = httptools.HttpRequestParser(self)
        if parsing.upgrade:
            self._rest = bytes(rest)
            self._held = True
            self.pause()
            return b""
        # An upgrade nobody here speaks (h2c): the request stands, the wish is passed over. The
        # parser took no body after it, so the next one is shown how that is delimited.
        if not parsing.body_done:
            self._reading_on = True
            self._parser.feed_data(_framed(parsing.length))
        return rest

    def _refuse(self, cause: BaseException) -> None:
        """What came cannot be served; the requests before it still are."""
        if self.phase is Phase.LINGER:
            return  # it came after the last reply
        self._refused = refusal(cause)
        self.pause()
        if not self._in_head:  # it is a body that went wrong: its exchange goes with it
            broken = self._parsing
            if broken in self._queue:
                self._queue.remove(broken)
            elif broken is self._active:
                broken.client_gone(self._refused[0])
                self._active = self._fresh = None
                if broken.started:
                    self.abort()
                    return
        if self._active is None:
            self._say_refused()

    def _say_refused(self) -> None:
        if self._refused is not None:
            self._say(*self._refused)
            self._close_after_reply()

    # httptools' callbacks

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            if name.lower() in (b"connection", b"proxy-connection"):
                self._parsing.keep_alive = False  # of trailers the one that llhttp acts on
            return
        name = name.lower()
        if name != b"content-length":
            self._headers.append((name, value))
        elif self._length is not None:
            raise RefusedError("the header content-length is there twice; send it once")
        elif len(value) > _LENGTH_DIGITS:
            raise RefusedError("a Content-Length that no body has; send the body's length")
        else:
            self._length = int(value)

    def on_headers_complete(self) -> None:
        if self._reading_on:
            self._reading_on = False
            return
        if self.phase is Phase.LINGER:
            raise RefusedError  # the last reply has been written: this is not for anybody
        parser = self._parser
        if self._head_bytes > _HEAD_BYTES or self._read > _HEAD_BYTES:
            self._measure()
        self._head_bytes = 0
        method, version = parser.get_method(), parser.get_http_version()
        head = self._head
        if head is None or not head.is_again(method, self._url, version, self._headers):
            head = self._app.heads.get(
                self.peer,
                method,
                self._url,
                version,
                self._headers,
                keep_alive=parser.should_keep_alive(),
                wishes=parser.should_upgrade(),
            )
            self._head = head if head.is_light() else None
        if self._length is not None and head.chunked:
            raise RefusedError("two body lengths; send Content-Length, or the body chunked")
        if head.upgrade and (self._length or head.chunked):
            raise RefusedError("a WebSocket handshake with a body; send it without")
        self._in_head = False
        self._between = 0
        exchange = self._parsing = Exchange(self, head, self._length, self._loop.time())
        self._skips_body = head.wishes and not head.upgrade and (head.chunked or bool(self._length))
        if self._active is None:
            self._active = self._fresh = exchange
            self.phase = Phase.SERVING
        else:
            self._queue.append(exchange)
            self.pause()

    def _measure(self) -> None:
        """Reads hold other things too: how large was the head itself?"""
        size = len(self._url) + sum(len(n) + len(v) for n, v in self._headers)
        if size > _HEAD_BYTES:
            raise HeadTooLargeError

    def on_body(self, data: bytes) -> None:
        self._between = 0
        self.since = self._loop.time()
        self._parsing.feed(data)

    def on_message_complete(self) -> None:
        if self._skips_body:
            self._skips_body = False  # the body follows, see `_upgraded`
            return
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
            self.settle()
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
        elif self._refused is not None:
            self._say_refused()
        elif self._held:
            self._loop.call_soon(self._go_on)
        if self._refused is None:
            self.resume()

    def _serve_next(self, exchange: Exchange) -> None:
        if not exchange.gone and exchange is self._active:
            exchange.started_at = self._loop.time()
            self._app.serve(exchange)

    def _go_on(self) -> None:
        """A wish for another protocol was not granted: what came after it are requests."""
        if not self._transport.is_closing():
            self._held = False
            self.resume()
            rest, self._rest = self._rest, b""
            if rest:
                self.data_received(rest)

    def tunnel(self, receive: Callable[[bytes], None]) -> None:
        """From here on the connection carries another protocol."""
        self._tunnel = receive
        self._held = False
        rest, self._rest = self._rest, b""
        self.resume()
        if rest:
            receive(rest)

    def pause(self) -> None:
        if not self._paused_reading and not self._transport.is_closing():
            self._paused_reading = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on, unless what was read already waits: requests, or what a tunnel may be for."""
        if (self._queue or self._held) and self.phase is not Phase.LINGER:
            return
        if self._paused_reading and not self._transport.is_closing():
            self._paused_reading = False
            self.since = self._loop.time()
            self._transport.resume_reading()

    async def drain(self) -> None:
        if self._paused_writing and self._drained is not None:
            await asyncio.shield(self._drained)

    def abort(self) -> None:
        """Reset the connection: an end that could pass for a reply's own is none."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None and not self._transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    @property
    def busy(self) -> bool:
        """A request is being served that its reply will end, or a stream that owes answers."""
        active = self._active
        return active is not None and (active.owes or not active.is_stream)

    def idle(self) -> asyncio.Future[None]:
        """Done when what is being served has been answered, or the connection has gone."""
        if self._settled is None or self._settled.done():
            self._settled = self._loop.create_future()
        return self._settled

    def settle(self) -> None:
        """What was served may be waited for no more."""
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    def close(self) -> None:
        """Close once what was written has been taken."""
        self._transport.close()

    def close_idle(self) -> None:
        """Close now if nothing is being served, else after the reply."""
        if self._active is None:
            self._transport.close()
        else:
            self.last_reply()

    def last_reply(self) -> None:
        """Close after the reply, if one is due."""
        if self._active is not None:
            self._active.keep_alive = False

    def cut(self) -> None:
        """What is being served has no more time, if it ever had one."""
        active = self._active
        if active is not None and active.on_deadline is not None:
            active.deadline = 0.0
            active.on_deadline()

    def leave(self) -> None:
        """Close; but not while a client that was answered still sends, and would be reset."""
        if self.phase is not Phase.LINGER or self._in_head:
            self._transport.close()

    def _close_after_reply(self) -> None:
        # Closing with unread input makes the kernel reset the connection, and the reply with
        # it: what the client still sends is read and dropped for a moment first.
        self.phase = Phase.LINGER
        self.resume()
        self.since = self._loop.time()
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
                self._timed_out(
                    f"nothing of the body came for {_BODY_SECONDS:g} s; send it in one go"
                )
        elif self.phase is Phase.LINGER:
            self._check_linger(now, waited)
        elif self._in_head and self._head_bytes and waited > _HEAD_SECONDS:
            self._timed_out(f"the head took more than {_HEAD_SECONDS:g} s; send it in one go")
        elif self.phase in (Phase.HEAD, Phase.IDLE) and waited > _IDLE_SECONDS:
            self._transport.close()

    def _check_linger(self, now: float, waited: float) -> None:
        """The reply goes out at its reader's pace; then its end is waited for a moment."""
        unsent = self._transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self.since = unsent, now
        elif waited > (_WRITE_SECONDS if unsent else _LINGER_SECONDS):
            self._transport.abort()

    def _timed_out(self, text: str) -> None:
        active, self._active = self._active, None
        if active is not None and active.started:
            active.client_gone()
            self.abort()
            return
        self._say(408, text.encode())
        if active is not None:
            active.client_gone(408)
        self._close_after_reply()

    def _say(self, status: int, text: bytes, extra: bytes = b"") -> None:
        """Answer what never became an exchange."""
        extra = b"X-Request-Id: " + new_id() + extra
        self._transport.write(simple_reply(status, text, keep_alive=False, extra=extra))


def _framed(length: int | None) -> bytes:
    """A head that makes a parser read a body: of so many bytes, or chunked."""
    how = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
    return b"POST / HTTP/1.1\r\n" + how + b"\r\n\r\n"
