"""Messages on their way to one client's stream, bounded in bytes, and those that wait for one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator

from cove.gateway.exchange import BUFFER, Exchange
from cove.mcp import messages

_WAITING_BYTES = 1024 * 1024
_WAITING = 100


class Inbox:
    """Messages for one stream, in order: that of a POST, until its requests are answered, or a GET.

    `open` are the requests without an answer yet, `tokens` what their progress is reported
    under. `filled` is done once as much waits here as may.
    """

    def __init__(
        self,
        exchange: Exchange,
        requests: Iterable[messages.RequestId] = (),
        tokens: Iterable[messages.RequestId | None] = (),
    ) -> None:
        self.exchange = exchange
        self.open = dict.fromkeys(requests)
        self.tokens = {token for token in tokens if token is not None}
        self.filled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._items: deque[bytes] = deque()
        self._held = 0
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def takes(self) -> bool:
        """Whether what is put here has a client to reach."""
        return not (self._closed or self.exchange.gone)

    async def put(self, data: bytes) -> bool:
        """Add a message, once there is room; False where the inbox was closed instead."""
        while self._held >= BUFFER and not self._closed:
            if not self.filled.done():
                self.filled.set_result(None)
            await self._wait()
        if not self._closed:
            self.add(data)
        return not self._closed

    def add(self, data: bytes) -> None:
        """Add a message, room or none."""
        self._items.append(data)
        self._held += len(data)
        self._changed.set()

    def answered(self, ident: messages.RequestId) -> None:
        """No more comes for this request, and after the last one nothing does."""
        self.open.pop(ident, None)
        if not self.open:
            self.close()

    def close(self) -> None:
        """No more comes. What is here already can still be read."""
        self._closed = True
        self._changed.set()

    async def items(self) -> AsyncIterator[bytes]:
        while True:
            while self._items:
                data = self._items.popleft()
                self._held -= len(data)
                self._changed.set()
                yield data
            if self._closed:
                return
            await self._wait()

    async def _wait(self) -> None:
        """One side waits at a time: there is either nothing here, or too much."""
        self._changed.clear()
        await self._changed.wait()


class Unclaimed:
    """What no stream is there for: the newest messages, up to a bound in number and bytes."""

    def __init__(self) -> None:
        self._items: deque[bytes] = deque()
        self._held = 0

    def add(self, data: bytes) -> int:
        """Keep a message; how many had to be dropped for it, or with it."""
        self._items.append(data)
        self._held += len(data)
        dropped = 0
        while self._held > _WAITING_BYTES or len(self._items) > _WAITING:
            self._held -= len(self._items.popleft())
            dropped += 1
        return dropped

    def take(self) -> Iterator[bytes]:
        """Everything, oldest first; it is kept no more."""
        while self._items:
            data = self._items.popleft()
            self._held -= len(data)
            yield data
