"""A driver whose instances are small HTTP servers in this process: for tests of what is above."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, Sequence

from cove.drivers.base import Exit, Launch, Usage
from cove.drivers.whole import Starts
from cove.errors import CoveError
from cove.model import Isolation

App = Callable[[Launch, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers every HTTP/1.1 request 200 with what was asked, as JSON, and keeps the connection.

    The body has `instance`, `method`, `path`, `headers` (names in lower case) and `body`.
    """
    while head := await _head(reader):
        request, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = request.split(" ", 2)
        pairs = (line.split(":", 1) for line in lines if ":" in line)
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
        body = await _body(reader, headers)
        said = {
            "instance": launch.id,
            "method": method,
            "path": path,
            "headers": headers,
            "body": body.decode("utf-8", "replace"),
        }
        answer = b"" if method == "HEAD" else json.dumps(said).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(answer), answer)
        )
        await writer.drain()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return (await reader.readuntil(b"\r\n\r\n"))[:-4]
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return body


class _Server:
    """What of an instance outlives a driver: the socket that listens, and who talks to it."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.calls: set[asyncio.Task[None]] = set()
        self.ended = False
        self._listening: asyncio.Server | None = None

    async def listen(self, launch: Launch) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(launch, reader, writer)

        self._listening = await asyncio.start_server(serve, "127.0.0.1", 0)

    async def _serve(
        self, launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.calls.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self.app(launch, reader, writer)
        except asyncio.CancelledError:
            pass  # the instance was stopped: its connections end with it
        finally:
            self.calls.discard(task)
            writer.transport.abort() if self.ended else writer.close()

    def ports(self) -> list[int]:
        if self.ended or self._listening is None:
            return []
        return [int(one.getsockname()[1]) for one in self._listening.sockets]

    def end(self) -> None:
        """Listen no more. Who talks to it is for `cut`, once the end is known."""
        self.ended = True
        if self._listening is not None:
            self._listening.close()

    def cut(self) -> None:
        for call in self.calls:
            call.cancel()


class FakeRunning:
    """An instance that is a listening socket of this process."""

    def __init__(self, launch: Launch, server: _Server, world: dict[str, FakeRunning]) -> None:
        """Takes itself out of `world` when it ends."""
        self.id, self.function, self.version = launch.id, launch.function, launch.version
        self.pid = os.getpid()
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.launch = launch
        self.throttled = False
        self._server = server
        self._world = world

    def __repr__(self) -> str:
        return f"<FakeRunning {self.launch.id} {self.ports()}>"

    def adopted(self) -> FakeRunning:
        """The same instance for another driver; nothing more is heard of it here."""
        return FakeRunning(self.launch, self._server, self._world)

    async def connect(self) -> socket.socket:
        if not self.ports():
            raise ConnectionRefusedError(f"{self.launch.id} has stopped")
        made = socket.socket()
        made.setblocking(False)
        try:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(made, ("127.0.0.1", self.ports()[0]))
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            made.close()
            raise
        return made

    async def stop(self, grace: float) -> Exit:
        if not self.exited.done():
            if grace > 0 and self._server.calls:
                await asyncio.wait(set(self._server.calls), timeout=grace)
            self.crash(0)
        return await asyncio.shield(self.exited)

    def crash(self, code: int) -> None:
        """End with an exit code, at once, cutting its connections. Idempotent."""
        if self.exited.done():
            return
        self._server.end()
        self._world.pop(self.launch.id, None)
        self.exited.set_result(Exit(code=code))
        self._server.cut()

    def throttle(self) -> None:
        self.throttled = True

    def usage(self) -> Usage:
        return Usage(0.0, 0)

    def ports(self) -> list[int]:
        return self._server.ports()


class FakeDriver:
    """Starts in-process servers.

    `fail_start`, when set, is raised by every start; `start_delay` is how many seconds each
    takes; `running` holds what runs, by instance id; `started` every launch so far. Drivers
    given the same `world` have `running` in common: one adopts what another has left there, be
    it closed or forgotten.
    """

    name = "fake"
    isolation: Isolation = "process"

    def __init__(
        self, app: App | None = None, *, world: dict[str, FakeRunning] | None = None
    ) -> None:
        self.app: App = app or echo
        self.fail_start: CoveError | None = None
        self.start_delay = 0.0
        self.running: dict[str, FakeRunning] = {} if world is None else world
        self.started: list[Launch] = []
        self._starts = Starts()

    def __repr__(self) -> str:
        return f"<FakeDriver [{len(self.running)} running]>"

    async def start(self, launch: Launch) -> FakeRunning:
        return await self._starts.run(self._start(launch))

    async def _start(self, launch: Launch) -> FakeRunning:
        if self.start_delay:
            await asyncio.sleep(self.start_delay)
        if self.fail_start is not None:
            raise self.fail_start
        server = _Server(self.app)
        await server.listen(launch)
        running = FakeRunning(launch, server, self.running)
        self.started.append(launch)
        self.running[launch.id] = running
        return running

    async def adopt(self) -> Sequence[FakeRunning]:
        self.running.update({ident: one.adopted() for ident, one in self.running.items()})
        return list(self.running.values())

    async def close(self, *, keep: bool = False) -> None:
        await self._starts.settled()
        if not keep:
            await asyncio.gather(*(one.stop(0.0) for one in list(self.running.values())))
