"""Requests that Cove itself makes of an instance, and responses read by coroutines."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from cove.gateway.exchange import BUFFER
from cove.gateway.head import Headers
from cove.gateway.upstream import Upstream, UpstreamConnection


class Response:
    """A response read by a coroutine rather than forwarded."""

    def __init__(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._done = False
        self._lost = ""
        self._wake: asyncio.Future[None] | None = None
        self.status = 0
        self.headers: Headers = []

    # ResponseSink

    def head(self, status: int, headers: Headers, length: int | None) -> None:
        self.status, self.headers = status, headers

    def body(self, data: bytes) -> None:
        self._chunks.append(data)
        self._held += len(data)
        if self._held > BUFFER:
            self._connection.pause_reading()

    def done(self) -> None:
        self._done = True

    def lost(self, reason: str) -> None:
        self._lost = reason
        self._done = True
        self.flush()

    def flush(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def pause(self, paused: bool) -> None:
        """Requests of coroutines are sent whole: there is nothing to hold back."""

    # Reading.

    async def _more(self) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake

    async def started(self) -> None:
        """Until status and headers are there. `ConnectionError` if they never will be."""
        while not self.status and not self._done:
            await self._more()
        if self._lost and not self.status:
            raise ConnectionError(self._lost)

    def get(self, name: bytes) -> bytes:
        """The header's value, or nothing."""
        return next((value for key, value in self.headers if key == name), b"")

    @property
    def ended(self) -> bool:
        """It came whole: its connection is free for the next one."""
        return self._done and not self._lost

    @property
    def is_stream(self) -> bool:
        return self.get(b"content-type").lower().startswith(b"text/event-stream")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. `ConnectionError` if it ends before it is whole."""
        while True:
            while self._chunks:
                data = self._chunks.popleft()
                self._held -= len(data)
                if self._held <= BUFFER:
                    self._connection.resume_reading()
                yield data
            if self._done:
                break
            await self._more()
        if self._lost:
            raise ConnectionError(self._lost)

    async def read(self, limit: int) -> bytes:
        """The whole body; `ConnectionError` if it is larger than `limit` or not whole."""
        parts, size = [], 0
        async for data in self.chunks():
            size += len(data)
            if size > limit:
                raise ConnectionError(f"an answer of more than {limit} bytes")
            parts.append(data)
        return b"".join(parts)


def plain_head(
    method: bytes, target: bytes, headers: Headers, *, port: int, length: int | None = None
) -> bytes:
    """The head of a request that Cove itself makes. MCP servers ask for a port in Host."""
    lines = [method, b" ", target, b" HTTP/1.1\r\nhost: localhost:%d\r\n" % port]
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    if length is not None:
        lines.append(b"content-length: %d\r\n" % length)
    return b"".join([*lines, b"\r\n"])


async def _ask(connection: UpstreamConnection, response: Response, request: bytes) -> None:
    connection.begin(response, request, head=request.startswith(b"HEAD "), last=True)
    try:
        await response.started()
    except BaseException:
        connection.close()
        raise


@contextlib.asynccontextmanager
async def fetch(upstream: Upstream, head: bytes, body: bytes = b"") -> AsyncIterator[Response]:
    """One request to an instance, whole; the response as it comes. Leaving closes what is left.

    `ConnectionRefusedError` where the instance takes no connection, another `OSError` where it
    ends without an answer.
    """
    connection = upstream.take() or await upstream.connect()
    response = Response(connection)
    try:
        await _ask(connection, response, head + body)
    except ConnectionError:
        if not (connection.reused and connection.unreached):
            raise
        connection = await upstream.connect()
        response = Response(connection)
        await _ask(connection, response, head + body)
    try:
        yield response
    finally:
        if not response.ended:
            connection.close()
