"""The wire on the instances' side: kept connections, and responses parsed by llhttp."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys
from collections.abc import Awaitable, Callable
from socket import IPPROTO_TCP, socket
from typing import Protocol, cast

import httptools

from cove.gateway.exchange import BUFFER
from cove.gateway.head import Headers
from cove.gateway.heads import ShownHead

_KEEP_SECONDS = 4.0  # uvicorn and Node close idle connections after 5
_KEEP_MOST = 64
_HEAD_BYTES = 64 * 1024  # of header fields
_UNENDED_BYTES = 136 * 1024  # of a head whose end was not seen, interim ones before it included
_CONNECT_SECONDS = 10.0

# linux/tcp.h: tcpi_bytes_acked of struct tcp_info
_TCP_INFO, _TCP_INFO_BYTES, _ACKED_AT, _ACKED = 11, 256, 120, struct.Struct("=Q")

Dial = Callable[[], Awaitable[socket]]


class ResponseSink(Protocol):
    """Takes one response as it arrives. Every call but `flush` comes from within one read."""

    def head(self, status: int, headers: Headers, length: int | None) -> None:
        """Names are lower case; Content-Length is apart."""

    def body(self, data: bytes) -> None: ...

    def done(self) -> None: ...

    def lost(self, reason: str) -> None:
        """The connection ended before the response was whole."""

    def flush(self) -> None:
        """Everything that this read brought has been handed over."""

    def pause(self, paused: bool) -> None:
        """The instance takes no more of the request for now, or does again."""


class Upstream:
    """Kept connections to one instance."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._loop = asyncio.get_running_loop()
        self._idle: list[UpstreamConnection] = []

    def take(self) -> UpstreamConnection | None:
        """A kept connection, the one used last first."""
        now = self._loop.time()
        while self._idle:
            connection = self._idle.pop()
            if not connection.closing and now - connection.since < _KEEP_SECONDS:
                connection.reused = True
                return connection
            connection.close()
        return None

    async def connect(self) -> UpstreamConnection:
        """A new connection. `OSError` where the instance takes none."""
        async with asyncio.timeout(_CONNECT_SECONDS):
            sock = await self._dial()
            _, protocol = await self._loop.create_connection(
                lambda: UpstreamConnection(self, self._loop), sock=sock
            )
        return protocol

    def keep(self, connection: UpstreamConnection) -> None:
        if len(self._idle) >= _KEEP_MOST:
            connection.close()
        else:
            self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)

    def close(self) -> None:
        """Close what is kept."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()


class UpstreamConnection(asyncio.Protocol):
    """One connection to an instance, carrying one exchange at a time.

    `unreached`, once that is `lost`: surely nothing of its request has come to the program.
    `hung_up`, once that is `done`: the answer had no end but the connection's.
    """

    def __init__(self, home: Upstream, loop: asyncio.AbstractEventLoop) -> None:
        self._home = home
        self._loop = loop
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._parser = httptools.HttpResponseParser(self)
        self._sink: ResponseSink | None = None
        self._headers: Headers = []
        self._length: int | None = None
        self._status = 0
        self._head_bytes = 0
        self._in_head = True
        self._to_eof = False
        self._bodyless = False
        self._complete = False
        self._keep = True
        self._request_done = False
        self._switches = False
        self._tunnel: Callable[[bytes | None], None] | None = None
        self._pause: Callable[[bool], None] | None = None
        self._rest = b""
        self._written = self._before = 0  # bytes, and of those the ones of earlier requests
        self.unreached = self.hung_up = False
        self.shown = ShownHead()
        self.reused = False
        self.since = 0.0

    @property
    def closing(self) -> bool:
        return self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=BUFFER)

    # The request.

    def begin(
        self,
        sink: ResponseSink,
        data: bytes,
        *,
        head: bool,
        last: bool,
        switches: bool = False,
    ) -> None:
        """Send a request's head, and what there is of its body.

        `head`: its method is HEAD; `last`: its body is whole; `switches`: it asks for another
        protocol.
        """
        self._sink = sink
        self._switches = switches
        self._bodyless = head
        self._request_done = last
        self._before = self._written
        self._written += len(data)
        self._transport.write(data)

    def send(self, data: bytes, *, last: bool = False) -> None:
        """More of the request's body."""
        if data and not self._transport.is_closing():
            self._written += len(data)
            self._transport.write(data)
        self._request_done = self._request_done or last

    def pause_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Give the connection up, whatever it carries; its sink hears nothing more."""
        self._sink = None
        self._tunnel = None
        if self._transport is not None:
            self._transport.abort()

    def tunnel(
        self, receive: Callable[[bytes | None], None], pause: Callable[[bool], None]
    ) -> None:
        """From here on the connection carries another protocol; None says it has ended."""
        self._sink = None
        self._tunnel = receive
        self._pause = pause
        rest, self._rest = self._rest, b""
        if rest:
            receive(rest)

    # asyncio.Protocol

    def pause_writing(self) -> None:
        self._pause_source(True)

    def resume_writing(self) -> None:
        self._pause_source(False)

    def _pause_source(self, paused: bool) -> None:
        pause = self._sink.pause if self._sink is not None else self._pause
        if pause is not None:
            pause(paused)

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel(data)
            return
        sink = self._sink
        if sink is None:
            self._transport.abort()  # a reply nobody asked for
            return
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._rest = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            if not self._complete:
                self._lose(_WRONG.get(type(error.__context__), "it sent what is not HTTP"))
                return
            self._keep = False  # the answer is whole; what came after it is nobody's
        if self._in_head and self._head_bytes > _UNENDED_BYTES:
            self._lose(_WRONG[_TooLargeError])
            return
        if self._complete:
            self._finish(sink)
        sink.flush()

    def eof_received(self) -> None:
        self._closed_there()
        self._ended()

    def _closed_there(self) -> None:
        """The other side has closed the connection; what it had not read until then, it never
        will (RFC 9293 §3.10.7.4). A reset says no such thing: it may follow a read."""
        if self._sink is not None and self._in_head and not self._status:
            self.unreached = self._acknowledged() <= self._before

    def _acknowledged(self) -> int:
        """Bytes that the other side had taken when it closed the connection: what comes later it
        refuses. Where the system does not tell, more than were sent."""
        if sys.platform == "linux":
            sock = self._transport.get_extra_info("socket")
            with contextlib.suppress(OSError, struct.error):  # a unix socket acknowledges nothing
                info = sock.getsockopt(IPPROTO_TCP, _TCP_INFO, _TCP_INFO_BYTES)
                return int(_ACKED.unpack_from(info, _ACKED_AT)[0]) - 1  # the SYN is counted
        return sys.maxsize

    def connection_lost(self, exc: Exception | None) -> None:
        self._home.forget(self)
        if isinstance(exc, BrokenPipeError):  # its end had come, and we wrote before we saw it
            self._closed_there()
        self._to_eof = self._to_eof and exc is None  # a reset is nobody's way to end an answer
        self._ended()

    def _ended(self) -> None:
        if self._tunnel is not None:
            tunnel, self._tunnel = self._tunnel, None
            tunnel(None)
            return
        sink = self._sink
        if sink is None:
            return
        if self._to_eof:
            self._keep = False
            self.hung_up = True
            self._finish(sink)
            sink.flush()
        elif self._in_head and not self._status:
            self._lose("it closed the connection without an answer")
        else:
            self._lose("it closed the connection in the middle of an answer")

    def _lose(self, reason: str) -> None:
        sink, self._sink = self._sink, None
        self._transport.abort()
        if sink is not None:
            sink.lost(reason)

    def _finish(self, sink: ResponseSink) -> None:
        self._sink = None
        self._complete = self._to_eof = False
        self._in_head = True
        self._head_bytes = self._status = 0
        self._headers, self._length = [], None
        if self._keep and self._request_done and not self._transport.is_closing():
            if self._bodyless:
                self._parser = httptools.HttpResponseParser(self)
            self.since = self._loop.time()
            self._home.keep(self)
        else:
            self._transport.abort() if not self._request_done else self._transport.close()
        sink.done()

    # httptools' callbacks

    def on_message_begin(self) -> None:
        if self._complete:
            self._keep = False  # an answer nobody asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if not self._in_head:
            if name == b"connection":
                self._keep = False  # of trailers the one that llhttp acts on
            return
        if name == b"content-length":
            self._length = int(value)
        else:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._status = status = self._parser.get_status_code()
        if self._complete:
            return
        if status < 100:
            raise _StatusError
        if status < 200 and status != 101:
            self._status, self._headers, self._length = 0, [], None
            return
        if status == 101 and not (self._switches and self._parser.should_upgrade()):
            raise _UnaskedError
        if self._head_bytes > _HEAD_BYTES:
            self._measure()
        self._in_head = False
        self._head_bytes = 0
        self._keep = self._parser.should_keep_alive()
        sink = self._sink
        if sink is None:
            return
        if self._bodyless or status in (204, 304):
            self._complete = True
            if self._codings():
                self._keep = False  # chunks of nothing could follow, and nobody would hear them
        elif self._length is None and status != 101:
            codings = self._codings()
            if codings and codings != [b"chunked"]:
                raise _CodingError
            self._to_eof = not codings
        sink.head(status, self._headers, self._length)

    def _codings(self) -> list[bytes]:
        return [value.lower() for name, value in self._headers if name == b"transfer-encoding"]

    def _measure(self) -> None:
        """The read that ended a head held other things too: how large was the head itself?"""
        if sum(len(name) + len(value) for name, value in self._headers) > _HEAD_BYTES:
            raise _TooLargeError

    def on_body(self, data: bytes) -> None:
        if self._complete:
            self._keep = False  # a body where there is none
        elif self._sink is not None:
            self._sink.body(data)

    def on_message_complete(self) -> None:
        if self._status and self._status != 101:
            self._complete = True


class _UnaskedError(Exception):
    pass


class _StatusError(Exception):
    pass


class _CodingError(Exception):
    pass


class _TooLargeError(Exception):
    pass


_WRONG: dict[object, str] = {
    _UnaskedError: "it switched protocols unasked, or without saying to which",
    _StatusError: "it sent a status that there is not",
    _CodingError: "it used a transfer coding that is not chunked",
    _TooLargeError: "its header fields are larger than 64 KiB",
}
