"""The front behind a real socket, for a sample: what the table shows holds on the loop too."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, cast

import uvloop

from cove.gateway.head import Heads
from cove.gateway.http import Connection
from fuzz import grammar, mutation
from fuzz.front import InputError, agree, splits
from fuzz.reading import Reading, read
from fuzz.wire import FaultError, Loop, Seen, Server, written

_SECONDS = 10.0
_LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class _Listening(Server):
    """One connection's application, which also tells when it is over."""

    def __init__(self, heads: Heads, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(heads, cast(Loop, loop))
        self.over = loop.create_future()

    def closed(self, connection: Connection) -> None:
        super().closed(connection)
        self.over.set_result(None)


class Sockets:
    """Cases over loopback, on Cove's own loop."""

    name = "sockets"

    def __init__(self) -> None:
        self.heads = Heads()
        self.outcomes: Counter[str] = Counter()
        self._loop = uvloop.new_event_loop()
        self._loop.set_exception_handler(self._failed)
        self._failures: list[dict[str, Any]] = []
        self._server = self._loop.run_until_complete(
            self._loop.create_server(self._accept, "127.0.0.1", 0)
        )
        self._address = self._server.sockets[0].getsockname()
        self._tunnels = False
        self._app: _Listening | None = None

    def case(self, rng: Random) -> int:
        """One case; how many inputs it was. `InputError` where it shows a defect."""
        data = mutation.bent(rng, grammar.series(rng))
        self._tunnels = rng.random() < 0.5
        reading = read(data, tunnels=self._tunnels)
        if reading.end == "between":
            data += _LAST
            reading = read(data, tunnels=self._tunnels)
        cuts = rng.choice(list(splits(rng, data))[:20])
        try:
            self._loop.run_until_complete(self._one(data, cuts, reading))
        except Exception as error:
            raise InputError(data, cuts, None, f"{type(error).__name__}: {error}") from error
        self.outcomes[reading.end] += 1
        return 1

    def settle(self) -> None:
        """Forget what may be remembered."""
        self.heads = Heads()

    def close(self) -> None:
        """Give the port back."""
        self._server.close()
        self._loop.run_until_complete(self._server.wait_closed())
        self._loop.close()

    def _accept(self) -> Connection:
        self._app = app = _Listening(self.heads, self._loop)
        app.tunnels = self._tunnels
        return Connection(app, self._loop)

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._failures.append(context)

    async def _one(self, data: bytes, cuts: Sequence[int], reading: Reading) -> None:
        async with asyncio.timeout(_SECONDS):
            reader, writer = await asyncio.open_connection(*self._address)
            try:
                said = await self._talk(reader, writer, data, cuts, reading)
            finally:
                writer.transport.abort()
            app = self._app
            assert app is not None
            await app.over
        if self._failures:
            failures, self._failures = self._failures, []
            raise FaultError(f"escaped to the loop: {failures}")
        if reading.end == "tunnel":
            app.requests[-1].gone = False  # it ends as tunnels do, when its client leaves
        replies, error, text, continues = written(said)
        closes = reading.end in ("refused", "closed") or bool(error)
        agree(Seen(app.requests, replies, error, closes, app.tunnelled, text, continues), reading)

    async def _talk(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        data: bytes,
        cuts: Sequence[int],
        reading: Reading,
    ) -> bytes:
        """All that a client is told, until the front closes or has nothing more to wait for."""
        start = 0
        for stop in (*cuts, len(data)):
            with contextlib.suppress(ConnectionError):
                writer.write(data[start:stop])
                await writer.drain()
            await asyncio.sleep(0)
            start = stop
        if reading.end in ("head", "body", "tunnel"):
            writer.write_eof()
        return await reader.read()
