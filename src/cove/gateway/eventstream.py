"""Event streams at both ends: a client's, with comments in between, and an instance's, cut
into events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from cove.gateway.destination import HOP_BY_HOP
from cove.gateway.exchange import Exchange
from cove.gateway.fetch import Response
from cove.gateway.head import Headers
from cove.gateway.replies import status_line
from cove.mcp import sse

if TYPE_CHECKING:
    from cove.gateway.call import Call

KEEP_ALIVE_SECONDS = 15.0
_NOT_PASSED = HOP_BY_HOP | {b"content-length", b"mcp-session-id", b"x-request-id"}


class EventStream:
    """`text/event-stream` as the reply of an exchange. One flush per event."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._chunked = exchange.version == b"1.1"
        exchange.stream()

    @property
    def started(self) -> bool:
        return self._exchange.started

    @property
    def over(self) -> bool:
        """Nothing that is sent reaches the client any more."""
        return self._exchange.gone or self._exchange.finished

    def start(self, headers: Headers | None = None) -> None:
        """Send the head. `headers` are added as they are."""
        exchange = self._exchange
        out = [
            status_line(200),
            b"content-type: text/event-stream\r\ncache-control: no-cache, no-transform\r\n"
            b"x-accel-buffering: no\r\nx-request-id: ",
            exchange.id,
            b"\r\n",
        ]
        for name, value in headers or []:
            out += (name, b": ", value, b"\r\n")
        if self._chunked:
            out.append(b"transfer-encoding: chunked\r\n\r\n")
        else:
            exchange.keep_alive = False
            out.append(b"connection: close\r\n\r\n")
        exchange.write(b"".join(out))

    def write(self, raw: bytes) -> None:
        """Whole events, at once. For the last words of a stream, and short ones between."""
        if raw and not self.over:
            self._exchange.write(b"%x\r\n%b\r\n" % (len(raw), raw) if self._chunked else raw)

    async def send(self, raw: bytes) -> None:
        """Whole events; waits while the client does not take them."""
        self.write(raw)
        await self._exchange.drain()

    def comment(self) -> None:
        """Show the client, and what lies between, that the stream lives."""
        self.write(sse.COMMENT)

    def finish(self) -> None:
        """End the stream as a whole reply, where it began. Idempotent."""
        if not self.started or self.over:
            return
        if self._chunked:
            self._exchange.write(b"0\r\n\r\n")
        self._exchange.finish()

    @contextlib.contextmanager
    def commented(self) -> Iterator[None]:
        """Comments at an even pace, once the stream has started."""
        pace = asyncio.create_task(self._comment_on())
        try:
            yield
        finally:
            pace.cancel()

    async def _comment_on(self) -> None:
        while not self.over:
            await asyncio.sleep(KEEP_ALIVE_SECONDS)
            if self.started:
                self.comment()


async def parsed(response: Response) -> AsyncIterator[sse.Event]:
    """A stream's events as they come. `ConnectionError` if it breaks off or makes no sense."""
    parser = sse.EventParser()
    async for data in response.chunks():
        try:
            for event in parser.feed(data):
                yield event
        except sse.EventTooLargeError:
            raise ConnectionError("it sent an event larger than 16 MiB") from None


async def pass_whole(call: Call, response: Response, limit: int) -> None:
    """Pass a response that is no stream on as it is."""
    body = await response.read(limit)
    call.status, exchange = response.status, call.exchange
    out = [status_line(response.status), b"x-request-id: ", exchange.id, b"\r\n"]
    for name, value in response.headers:
        if name not in _NOT_PASSED:
            out += (name, b": ", value, b"\r\n")
    if not exchange.keep_alive:
        out.append(b"connection: close\r\n")
    exchange.write(b"".join([*out, b"content-length: %d\r\n\r\n" % len(body), body]))
    exchange.finish()
