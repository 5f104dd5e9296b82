"""An exchange: one request and its reply, as everything behind the parser sees it.

Whoever serves it either takes the body as it comes (`take_body`) or waits for all of it
(`read_body`), and writes the reply framed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Protocol

from cove.gateway.head import Head, Headers

if TYPE_CHECKING:
    from cove.gateway.http import Connection

BUFFER = 256 * 1024
"""Bytes of a body that wait on either side before its source is paused."""

SMALL_BODY = 64 * 1024
"""Bytes of a body that may be kept, and looked into where its request has to be refused."""

CLIENT_LEFT = 499
"""The status, which none is sent with, of a request whose client left before its answer."""

_ids = count(1)
_prefix = os.urandom(6).hex().encode()


def new_id() -> bytes:
    """A request id: unique among all replies of this and other runs."""
    return b"%b%08x" % (_prefix, next(_ids))


class BodySink(Protocol):
    """Takes a request's body as it arrives."""

    def body(self, data: bytes) -> None: ...

    def body_done(self) -> None: ...


class Exchange:
    """One request and its reply. What its head says is in `head`, shared with its like.

    `left` is the status of one that was over before whoever serves it had answered.
    """

    # Defaults live on the class: an exchange is made for every request, and most of this
    # stays as it is for most of them.
    received = 0
    buffered = 0
    body_done = False
    is_stream = False
    owes = False
    started = False
    finished = False
    gone = False
    left = 0
    deadline = 0.0
    on_deadline: Callable[[], None] | None = None
    on_gone: Callable[[], None] | None = None
    on_pause: Callable[[bool], None] | None = None
    _sink: BodySink | None = None
    _waiter: asyncio.Future[None] | None = None

    def __init__(self, connection: Connection, head: Head, length: int | None, now: float) -> None:
        self.connection = connection
        self.head = head
        self.length = length
        self.keep_alive = head.keep_alive
        self.id = new_id()
        self.started_at = now
        self._body: list[bytes] = []

    @property
    def method(self) -> bytes:
        return self.head.method

    @property
    def target(self) -> bytes:
        return self.head.target

    @property
    def version(self) -> bytes:
        return self.head.version

    @property
    def headers(self) -> Headers:
        return self.head.headers

    @property
    def fields(self) -> dict[bytes, bytes]:
        return self.head.fields

    @property
    def upgrade(self) -> bool:
        return self.head.upgrade

    @property
    def chunked(self) -> bool:
        return self.head.chunked

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
        self._welcome()
        self.connection.resume()

    async def read_body(self, limit: int) -> bytes | None:
        """The whole body; None where it is larger than `limit`.

        `ConnectionError` where the client leaves before it has sent all of it.
        """
        self.connection.resume()
        while not self.body_done:
            if self.gone:
                raise ConnectionError("the client left")
            if self.received > limit:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self.connection.resume()
        return self.take_buffered() if self.received <= limit else None

    def at_hand(self) -> bytes:
        """A small body that has come whole and was not taken yet; else nothing."""
        whole = self.body_done and self.received <= SMALL_BODY
        return b"".join(self._body) if whole else b""

    def put_back(self, body: bytes) -> None:
        """Give a body that was read whole to whoever takes it next."""
        self._body.append(body)
        self.buffered = len(body)

    def _welcome(self) -> None:
        """Say that the body may come, where the client waits to be told."""
        if self.head.expects and not self.body_done and not self.received:
            self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def feed(self, data: bytes) -> None:
        """More of the body, from the parser."""
        self.received += len(data)
        if self._sink is not None:
            self._sink.body(data)
            return
        self._body.append(data)
        self.buffered += len(data)
        if self.buffered > BUFFER:
            self.connection.pause()
        if self._waiter is not None:
            self._wake()

    def feed_done(self) -> None:
        """The body is whole."""
        self.body_done = True
        if self._sink is not None:
            self._sink.body_done()
        elif self._waiter is not None:
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

    def answer(self, reply: bytes, *, keep_alive: bool = True) -> None:
        """A whole reply of Cove's own; HEAD gets its head."""
        if self.head.method == b"HEAD":
            reply = reply[: reply.index(b"\r\n\r\n") + 4]
        self.write(reply)
        self.finish(keep_alive=keep_alive)

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

    def stream(self, *, owes: bool = False) -> None:
        """From here on the reply ends when its client or its source does.

        A drain waits for one that `owes` answers, and for no other.
        """
        self.is_stream, self.owes = True, owes
        if not owes:
            self.connection.settle()

    async def drain(self) -> None:
        """Until the client has taken what was written."""
        await self.connection.drain()

    def client_gone(self, status: int = CLIENT_LEFT) -> None:
        """The connection is no more, or no more this exchange's: it was answered `status`."""
        if self.finished:
            return
        self.gone = True
        if not self.started:
            self.left = status
        self._wake()
        if self.on_gone is not None:
            self.on_gone()

    @property
    def path(self) -> bytes:
        return self.target.partition(b"?")[0]

    def __repr__(self) -> str:
        return f"<Exchange {self.id.decode()} {self.method.decode()} {self.target.decode()}>"
