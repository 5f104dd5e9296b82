"""A client's event stream: whole events out, comments in between, a proper end."""

from __future__ import annotations

import asyncio

from cove.gateway.exchange import Exchange
from cove.gateway.head import Headers
from cove.gateway.replies import simple_reply, status_line
from cove.gateway.upstream import Response
from cove.mcp.sse import COMMENT

KEEP_ALIVE_SECONDS = 15.0


class EventStream:
    """`text/event-stream` as the reply of an exchange. One flush per event."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._chunked = exchange.version == b"1.1"
        exchange.is_stream = True

    @property
    def started(self) -> bool:
        return self._exchange.started

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

    async def send(self, raw: bytes) -> None:
        """Whole events; waits while the client does not take them."""
        self._exchange.write(b"%x\r\n%b\r\n" % (len(raw), raw) if self._chunked else raw)
        await self._exchange.drain()

    def comment(self) -> None:
        """Show the client, and what lies between, that the stream lives."""
        if not self._exchange.gone and not self._exchange.finished:
            self._exchange.write(
                b"%x\r\n%b\r\n" % (len(COMMENT), COMMENT) if self._chunked else COMMENT
            )

    def finish(self) -> None:
        """End the stream as a whole reply."""
        if self._chunked:
            self._exchange.write(b"0\r\n\r\n")
        self._exchange.finish()


async def comments(stream: EventStream) -> None:
    """Comments at an even pace, until cancelled."""
    while True:
        await asyncio.sleep(KEEP_ALIVE_SECONDS)
        if stream.started:
            stream.comment()


async def pass_whole(exchange: Exchange, response: Response, limit: int) -> None:
    """Pass a response that is no stream on as it is."""
    body = await response.read(limit)
    kind = response.get(b"content-type") or b"application/octet-stream"
    extra = [b"X-Request-Id: " + exchange.id]
    if allow := response.get(b"allow"):
        extra.append(b"Allow: " + allow)
    exchange.write(
        simple_reply(response.status, body, content_type=kind, extra=b"\r\n".join(extra))
    )
    exchange.finish()
