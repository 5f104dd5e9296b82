"""A whole gateway on a loopback listener, its functions programs in this process.

Composed as `cove.server` composes it, with the fake driver below and no store behind. Clients
and backends are raw streams, so that a test says every byte and sees every byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cove.drivers.base import Exit, Launch
from cove.drivers.fake import App, FakeDriver, echo
from cove.engine.instance import Instance
from cove.engine.output import Outputs
from cove.engine.pool import Pool
from cove.engine.sessions import Sessions
from cove.engine.supervisor import Supervisor
from cove.gateway.affinity import Affinity
from cove.gateway.gateway import Gateway
from cove.gateway.policy import Policy
from cove.gateway.routes import Route, RouteTable
from cove.gateway.tokens import Signer
from cove.gateway.upstream import Upstream
from cove.metrics import Metrics
from cove.model import (
    Affinity as AffinitySpec,
)
from cove.model import (
    Facts,
    FunctionSpec,
    Key,
    Kind,
    Limits,
    Plan,
    Scale,
    SessionPolicy,
    Version,
)
from cove.states import VersionState

BOUND = 5.0
"""Seconds for anything that a test waits for."""

SECRET = "cove_project_key"
BEARER = f"Authorization: Bearer {SECRET}\r\n"


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Reply:
    """A reply as it was on the wire. `headers` in order, names in lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    version: str = "HTTP/1.1"

    def get(self, name: str) -> str | None:
        """The one value of a header; a repeated one is a failure."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) < 2, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def write(self, data: bytes | str) -> None:
        self.writer.write(data.encode("latin-1") if isinstance(data, str) else data)

    async def head(self) -> Reply:
        """The next reply's head."""
        async with asyncio.timeout(BOUND):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1", f"not a reply: {first!r}"
        pairs = (line.split(":", 1) for line in lines)
        headers = [(name.lower(), value.strip()) for name, value in pairs]
        return Reply(int(status), headers, version=version)

    async def reply(self, *, to_head: bool = False) -> Reply:
        """The next reply, whole. `IncompleteReadError` where it is cut off."""
        reply = await self.head()
        async with asyncio.timeout(BOUND):
            if to_head or reply.status in (101, 204, 304) or reply.status < 200:
                return reply
            if (length := reply.get("content-length")) is not None:
                reply.body = await self.reader.readexactly(int(length))
            elif reply.get("transfer-encoding") == "chunked":
                reply.body = await self._chunks()
            else:
                reply.body = await self.reader.read()
        return reply

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; nothing at its end."""
        async with asyncio.timeout(BOUND):
            size = int((await self.reader.readuntil(b"\r\n")), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def _chunks(self) -> bytes:
        body = b""
        while data := await self.chunk():
            body += data
        return body

    async def ask(self, data: bytes | str, *, to_head: bool = False) -> Reply:
        self.write(data)
        return await self.reply(to_head=to_head)

    async def ended(self) -> bytes:
        """What still comes before the other side closes."""
        async with asyncio.timeout(BOUND):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def end(self) -> bytes:
        """What comes before the other side closes, read first and then closed here too."""
        rest = await self.ended()
        self.close()
        return rest

    def close(self) -> None:
        self.writer.close()

    def abort(self) -> None:
        self.writer.transport.abort()


def request(
    method: str = "GET",
    path: str = "/fn/fn/",
    body: bytes = b"",
    *,
    headers: str = "",
    host: str = "127.0.0.1",
    version: str = "1.1",
) -> bytes:
    """A request's bytes. `headers` are whole lines."""
    length = f"Content-Length: {len(body)}\r\n" if body or method == "POST" else ""
    head = f"{method} {path} HTTP/{version}\r\nHost: {host}\r\n{headers}{length}\r\n"
    return head.encode("latin-1") + body


def answer(body: bytes = b"ok", *, status: str = "200 OK", headers: str = "") -> bytes:
    """A backend's answer as bytes."""
    return (
        f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode("latin-1")
        + body
    )


@dataclass
class Asked:
    """A request as a backend received it."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def get(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name]
        assert len(values) < 2, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None


async def receive(reader: asyncio.StreamReader) -> Asked | None:
    """The next request of a connection, whole; None at its end."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = raw[:-4].decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = [
        (name.lower(), value.strip()) for name, value in (line.split(":", 1) for line in lines)
    ]
    asked = Asked(method, path, headers)
    if asked.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            asked.body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    else:
        asked.body = await reader.readexactly(int(asked.get("content-length") or 0))
    return asked


Handler = Callable[[Launch, Asked], Awaitable[bytes | None] | bytes | None]


def serving(handler: Handler) -> App:
    """A backend that answers each request with what `handler` returns; None cuts it off."""

    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while (asked := await receive(reader)) is not None:
            said = handler(launch, asked)
            if said is not None and not isinstance(said, bytes):
                said = await said
            if said is None:
                writer.transport.abort()
                return
            writer.write(said)
            await writer.drain()

    return app


@dataclass
class Gate:
    """A backend that holds every request until it is let go."""

    open: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Queue[tuple[Launch, Asked]] = field(default_factory=asyncio.Queue)
    served: int = 0
    seen: list[Asked] = field(default_factory=list)
    last: tuple[Launch, Asked] = field(init=False)

    async def __call__(self, launch: Launch, asked: Asked) -> bytes:
        self.seen.append(asked)
        self.arrived.put_nowait((launch, asked))
        await self.open.wait()
        self.served += 1
        return answer(launch.id.encode())

    async def next(self) -> tuple[Launch, Asked]:
        async with asyncio.timeout(BOUND):
            self.last = await self.arrived.get()
        return self.last


class Line(NamedTuple):
    """An access line."""

    function: str
    version: int
    instance: str
    session: str
    request: bytes
    principal: str
    method: bytes
    target: bytes
    status: int
    seconds: float


class World:
    """The gateway under test, and what stands around it."""

    def __init__(self, *, loopback: bool = True) -> None:
        self.driver = FakeDriver(self._app)
        self.sessions = Sessions()
        self.metrics = Metrics(lambda: ())
        self.routes = RouteTable("localhost")
        self.policy = Policy(loopback=loopback, domain="localhost")
        digest = hashlib.sha256(SECRET.encode()).hexdigest()
        self.policy.trust([Key("1", "project", digest, 0.0)])
        self.signer = Signer(b"s" * 32)
        self._folder = tempfile.TemporaryDirectory()
        self.outputs = Outputs(Path(self._folder.name), lambda printed: None)
        self.supervisor = Supervisor(
            {"process": self.driver},
            outputs=self.outputs,
            parallel_starts=4,
            on_start=lambda pool, seconds: self.metrics.function(
                pool.version.function
            ).starts.observe(seconds),
        )
        self.affinity = Affinity(self.sessions, self.signer)
        self.gateway = Gateway(
            routes=self.routes,
            policy=self.policy,
            affinity=self.affinity,
            metrics=self.metrics,
            api=Upstream(self._no_api),
            access=self._told,
        )
        self.lines: list[Line] = []
        self.loopback = loopback
        self.port = 0
        self.pools: list[Pool] = []
        self._apps: dict[tuple[str, int], App] = {}
        self._clients: list[Client] = []
        self._tight: asyncio.Server | None = None

    async def _app(
        self, launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await self._apps[launch.function, launch.version](launch, reader, writer)

    def _told(self, *line: Any) -> None:
        told = Line(*line)
        assert all(each.request != told.request for each in self.lines), f"told twice: {told}"
        self.lines.append(told)

    async def _no_api(self) -> socket.socket:
        raise ConnectionRefusedError("no control API in this test")

    # What a test sets up.

    def function(
        self,
        app: App = echo,
        *,
        name: str = "fn",
        kind: Kind = "web",
        limits: Mapping[str, Any] | None = None,
        scale: Mapping[str, Any] | None = None,
        session: Mapping[str, Any] | None = None,
        affinity: str = "",
        facts: Facts | None = None,
        auth: Any = None,
    ) -> Pool:
        """Deploy a version of `name`, live at once. Nothing runs before its first request."""
        kind_, _, field_ = (affinity or ("mcp" if kind == "mcp" else "none")).partition(":")
        spec = FunctionSpec(
            name=name,
            kind=kind,
            limits=Limits(**(limits or {})),
            scale=Scale(**(scale or {})),
            session=SessionPolicy(affinity=AffinitySpec(kind_, field_), **(session or {})),  # type: ignore[arg-type]
            auth=auth,
        )
        number = 1 + sum(pool.version.function == name for pool in self.pools)
        version = Version(
            function=name,
            number=number,
            spec=spec,
            plan=Plan((), {}, "", None, None),
            facts=facts or Facts(),
            isolation="process",
            driver="fake",
            state=VersionState.READY,
            created_at=0.0,
        )
        old = [pool for pool in self.pools if pool.version.function == name and pool.live]
        shared = old[0].on_change if old else None
        pool = Pool(version, self.supervisor.wake, shared)
        self._apps[name, number] = app
        pool.live = True
        self.pools.append(pool)
        self.supervisor.add(pool)
        stats = self.metrics.function(name)
        self.routes.put(Route(pool, stats, key_by_default=not self.loopback))
        for listener in list(pool.on_change):
            listener()
        for each in old:
            self.supervisor.retire(each)
        return pool

    async def client(self) -> Client:
        """A new connection to the gateway."""
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self._clients.append(client)
        return client

    async def ask(self, data: bytes | str, *, to_head: bool = False) -> Reply:
        """One request on a connection of its own."""
        client = await self.client()
        try:
            return await client.ask(data, to_head=to_head)
        finally:
            client.close()

    async def small(self) -> Client:
        """A connection whose kernel buffers are small, so that stalling it stalls Cove."""
        loop = asyncio.get_running_loop()
        if self._tight is None:
            listener = _small_socket(socket.SO_SNDBUF)  # what it accepts inherits this
            listener.bind(("127.0.0.1", 0))
            self._tight = await loop.create_server(self.gateway.accept, sock=listener)
        sock = _small_socket(socket.SO_RCVBUF)
        await loop.sock_connect(sock, self._tight.sockets[0].getsockname())
        client = Client(*await asyncio.open_connection(sock=sock, limit=64 * 1024))
        self._clients.append(client)
        return client

    def one(self) -> Instance:
        """The only instance there is."""
        (instance,) = [i for pool in self.pools for i in pool.instances]
        return instance

    def crash(self, instance: Instance, code: int = 7) -> None:
        """The instance's program ends by itself."""
        self.driver.running[instance.id].crash(code)

    def ends(self, instance: Instance, how: Exit) -> None:
        """The instance's program ends in any way."""
        running = self.driver.running[instance.id]
        running.exited.set_result(how)
        running.exited = asyncio.get_running_loop().create_future()  # for `crash` to end the rest
        running.crash(0)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something that no event tells of holds."""
        async with asyncio.timeout(BOUND):
            while not holds():
                await asyncio.sleep(0.005)

    def idle(self) -> bool:
        """Nothing is claimed, nobody waits, and no task of the gateway's is left."""
        return (
            all(not i.inflight for pool in self.pools for i in pool.instances)
            and not any(pool.waiting for pool in self.pools)
            and not self.gateway._tasks
        )

    def counted(self, name: str = "fn") -> dict[int, int]:
        """Answers so far by status."""
        return self.metrics.function(name).requests

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self.gateway.accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        tasks = [
            asyncio.create_task(work)
            for work in (self.gateway.run(), self.supervisor.run(), self._expire())
        ]
        try:
            yield self
        finally:
            for client in self._clients:
                client.abort()
            server.close()
            if self._tight is not None:
                self._tight.close()
            await self.gateway.drain(0)
            for task in tasks:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            for running in list(self.driver.running.values()):
                running.crash(0)
            await self.supervisor.close()
            await self.driver.close()
            self.outputs.close()
            self._folder.cleanup()
            assert all(isinstance(end, asyncio.CancelledError) for end in done), done

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            self.sessions.expire(asyncio.get_running_loop().time())


def _small_socket(option: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, option, 32 * 1024)
    sock.setblocking(False)
    return sock


def resident() -> int:
    """Bytes of memory that this process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
