"""The front on a table: a connection with its parser, a transport of bytes and a clock that stands.

`play` feeds one input and gives back all that was seen of it, on both sides.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from cove.gateway.exchange import Exchange
from cove.gateway.head import Heads
from cove.gateway.http import Connection

READ = 256 * 1024
"""Bytes that a loop hands over at once, at most: what uvloop and asyncio read."""

_LONG = 10_000.0  # seconds: longer than every bound of the front
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_REPLY = re.compile(rb"HTTP/1\.1 200 OK\r\nX-Number: (\d+)\r\nContent-Length: 2\r\n\r\n(ok)?")
_ERROR = re.compile(
    rb"HTTP/1\.1 (\d{3}) [^\r\n]+\r\nContent-Type: text/plain; charset=utf-8\r\n"
    rb"Content-Length: (\d+)\r\nX-Request-Id: \w+\r\nConnection: close\r\n\r\n(.*)",
    re.DOTALL,
)
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


class FaultError(AssertionError):
    """What the front must never do, and did."""


class Loop:
    """As much of an event loop as the front uses."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._due: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        self._due.append((callback, args))

    def run(self) -> None:
        """Everything that is due, and what becomes due by it."""
        turns = 0
        while self._due:
            callback, args = self._due.popleft()
            callback(*args)
            turns += 1
            if turns > 100_000:
                raise FaultError("the loop never comes to rest")


class NoSocket:
    """What stands for a transport's socket: it has no options to tell of."""

    def getsockopt(self, *args: int) -> bytes:
        raise OSError("not a socket")

    def setsockopt(self, *args: object) -> None:
        pass


class Transport:
    """Takes what is written, and says what was asked of it."""

    def __init__(self, loop: Loop, protocol: asyncio.Protocol, peer: str = "127.0.0.1") -> None:
        self.written: list[bytes] = []
        self.paused = False
        self.ended = False
        self.closing = False
        self._loop = loop
        self._protocol = protocol
        self._peer = peer

    def get_extra_info(self, name: str) -> object:
        return {"peername": (self._peer, 4711), "socket": NoSocket()}.get(name)

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        if self.ended:
            raise FaultError(f"written after its own end: {data!r}")
        if not self.closing:
            self.written.append(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    abort = close


@dataclass
class Request:
    """A request as the application was given it."""

    method: bytes
    url: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    length: int | None
    target: bytes
    websocket: bool
    body: bytes = b""
    whole: bool = False
    gone: bool = False
    answered: bool = False


class Server:
    """An application that writes down what it is given, and answers it once it is whole.

    `later`: it answers after so many turns of the loop; `tunnels`: it grants WebSocket;
    `early`: it answers before the body; `greedy`: it asks for more input whenever it may.
    """

    def __init__(self, heads: Heads, loop: Loop) -> None:
        self.heads = heads
        self.later = 0
        self.tunnels = False
        self.early = False
        self.greedy = False
        self.on_serve: Callable[[Exchange], None] | None = None
        self.requests: list[Request] = []
        self.tunnelled: bytes | None = None
        self.lost = 0
        self._loop = loop

    def opened(self, connection: Connection) -> bool:
        return True

    def closed(self, connection: Connection) -> None:
        self.lost += 1

    def serve(self, exchange: Exchange) -> None:
        if any(not (each.answered or each.gone) for each in self.requests):
            raise FaultError("two requests of a connection are served at once")
        if exchange.gone:
            raise FaultError("a request is served that is gone")
        head = exchange.head
        request = Request(
            head.method,
            head.url,
            head.version.decode(),
            head.headers,
            exchange.length,
            head.target,
            head.upgrade,
        )
        self.requests.append(request)
        if self.on_serve is not None:
            self.on_serve(exchange)
        repr(exchange)  # logs have it
        _Serving(self, exchange, request).start()

    def soon(self, call: Callable[[], None]) -> None:
        """`call` as late as this application is."""
        turns = self.later

        def wait() -> None:
            nonlocal turns
            turns -= 1
            if turns < 0:
                call()
            else:
                self._loop.call_soon(wait)

        wait()


class _Serving:
    """One request's service."""

    def __init__(self, server: Server, exchange: Exchange, request: Request) -> None:
        self._server = server
        self._exchange = exchange
        self._request = request
        self._number = len(server.requests) - 1

    def start(self) -> None:
        server, exchange, request = self._server, self._exchange, self._request
        exchange.on_gone = self._gone
        if server.greedy:
            connection = exchange.connection
            connection.resume()
            if connection._queue and not connection._paused_reading:
                raise FaultError("more is read while requests that were read wait")
        if exchange.upgrade and server.tunnels:
            server.soon(self._switch)
        elif server.early:
            server.soon(self._answer)
        else:
            request.body = exchange.take_buffered()
            if exchange.body_done:
                self.body_done()
            else:
                exchange.take_body(self)

    def body(self, data: bytes) -> None:
        if self._request.gone or self._request.whole:
            raise FaultError("a body goes on after its end")
        self._request.body += data

    def body_done(self) -> None:
        if self._request.whole:
            raise FaultError("a body ends twice")
        self._request.whole = True
        self._server.soon(self._answer)

    def _answer(self) -> None:
        if self._request.gone:
            return
        self._request.answered = True
        self._exchange.answer(
            b"HTTP/1.1 200 OK\r\nX-Number: %d\r\nContent-Length: 2\r\n\r\nok" % self._number
        )

    def _switch(self) -> None:
        request, server = self._request, self._server
        if request.gone:
            return
        request.whole = request.answered = True
        self._exchange.stream()
        self._exchange.write(SWITCH)
        server.tunnelled = b""
        self._exchange.connection.tunnel(self._receive)

    def _receive(self, data: bytes) -> None:
        assert self._server.tunnelled is not None
        self._server.tunnelled += data

    def _gone(self) -> None:
        self._request.gone = True


@dataclass
class Seen:
    """One input's play, as both sides saw it."""

    requests: list[Request]
    replies: int
    error: int
    closes: bool
    tunnelled: bytes | None
    text: bytes = b""
    continues: int = 0


@dataclass
class Manner:
    """How the application behaves, and who calls. As `Server`."""

    later: int = 0
    tunnels: bool = False
    early: bool = False
    greedy: bool = False
    peer: str = "127.0.0.1"
    on_serve: Callable[[Exchange], None] | None = None


@dataclass
class Table:
    """One connection, set up and fed piece by piece."""

    heads: Heads
    manner: Manner
    loop: Loop = field(default_factory=Loop)

    def __post_init__(self) -> None:
        self.server = server = Server(self.heads, self.loop)
        manner = self.manner
        server.later, server.tunnels, server.early = manner.later, manner.tunnels, manner.early
        server.greedy, server.on_serve = manner.greedy, manner.on_serve
        self.connection = Connection(server, cast(asyncio.AbstractEventLoop, self.loop))
        self.transport = Transport(self.loop, self.connection, manner.peer)
        self.connection.connection_made(cast(asyncio.Transport, self.transport))

    def feed(self, data: bytes, cuts: Sequence[int] = ()) -> None:
        """What a client sends, in the pieces that `cuts` make of it."""
        start = 0
        for stop in (*cuts, len(data)):
            while start < stop:
                piece = data[start : min(stop, start + READ)]
                start += len(piece)
                self.loop.run()
                if self.transport.closing:
                    return
                if self.transport.paused:
                    raise FaultError("reading is paused, and nobody is left to go on with it")
                self.connection.data_received(piece)
        self.loop.run()

    def seen(self) -> Seen:
        server, transport = self.server, self.transport
        replies, error, text, continues = written(b"".join(transport.written))
        closes = transport.ended or transport.closing
        return Seen(server.requests, replies, error, closes, server.tunnelled, text, continues)

    def outlast(self) -> None:
        """However a connection was left, its bounds end it."""
        if self.server.tunnelled is not None:
            return  # its application has a bound for it
        for _ in range(3):
            self.loop.now += _LONG
            self.connection.check(self.loop.now)
            self.loop.run()
        if not self.transport.closing:
            raise FaultError("no bound ends the connection")
        if self.server.lost != 1:
            raise FaultError(f"the application heard {self.server.lost} times that it was lost")
        left = [each for each in self.server.requests if not (each.answered or each.gone)]
        if left:
            raise FaultError(f"requests that nobody ends: {left}")


def written(data: bytes) -> tuple[int, int, bytes, int]:
    """Replies in order, the status of what the front itself says last, its words, 100s."""
    at = number = continues = 0
    while at < len(data):
        if data.startswith(_CONTINUE, at):
            at += len(_CONTINUE)
            continues += 1
        elif data.startswith(SWITCH, at):
            at += len(SWITCH)
            number += 1
        elif found := _REPLY.match(data, at):
            if int(found[1]) != number:
                raise FaultError(f"reply {number} is {found[1]!r}")
            number += 1
            at = found.end()
        elif found := _ERROR.match(data, at):
            if len(found[3]) != int(found[2]):
                raise FaultError(f"more follows the front's own reply: {found[3]!r}")
            return number, int(found[1]), found[3], continues
        else:
            raise FaultError(f"the front wrote what is no reply: {data[at : at + 200]!r}")
    return number, 0, b"", continues


def play(data: bytes, cuts: Sequence[int], manner: Manner, heads: Heads) -> Table:
    """Feed one input. What was seen is in the table, which can be fed more."""
    table = Table(heads, manner)
    table.feed(data, cuts)
    return table
