"""Long-lived streams: what they hold, what waits for them, and what is said at their end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog

from cove.drivers.base import Launch
from cove.model import Facts
from gateway.test_backpressure import settled
from gateway.world import BOUND, SECRET, Asked, Client, World, answer, receive, request, resident

MIB = 1024 * 1024
STREAMABLE = Facts("http", "/mcp", modern=False, legacy=True, stateful=True)
SSE = Facts("sse", "/sse", modern=False, legacy=True, stateful=False)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
ENDPOINT = b"event: endpoint\ndata: /messages?id=1\n\n"
ENDLESS = answer(status="405 Method Not Allowed")


def call(ident: object, method: str = "tools/call", **params: object) -> bytes:
    message = {"jsonrpc": "2.0", "id": ident, "method": method, "params": params}
    return json.dumps(message).encode()


def note(method: str = "notifications/progress", **params: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode()


def result(ident: object, **values: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": ident, "result": values}).encode()


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


async def events(client: Client) -> AsyncIterator[tuple[str, bytes]]:
    """Name and data of each event of a reply, comments left out, to its end."""
    buffer = b""
    while data := await client.chunk():
        buffer += data
        while b"\n\n" in buffer:
            raw, _, buffer = buffer.partition(b"\n\n")
            lines = dict(line.split(b": ", 1) for line in raw.split(b"\n") if line[:1] != b":")
            if b"data" in lines:
                yield lines.get(b"event", b"message").decode(), lines[b"data"]


@dataclass
class Streamable:
    """A Streamable HTTP server that knows one session and records what it is asked.

    Messages of `held` methods are answered once `open` is set.
    """

    held: tuple[str, ...] = ()
    open: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[Asked] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(
        self, launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while (asked := await receive(reader)) is not None:
            self.asked.append(asked)
            self.came.set()
            if asked.method == "DELETE":
                writer.write(answer())
            elif asked.method == "GET":
                writer.write(ENDLESS)
            else:
                writer.write(await self._message(json.loads(asked.body)))
            await writer.drain()

    async def _message(self, message: dict[str, Any]) -> bytes:
        if message.get("method") in self.held:
            await self.open.wait()
        json_ = "Content-Type: application/json\r\n"
        if message.get("method") == "initialize":
            body = result(message["id"], protocolVersion="2025-06-18")
            return answer(body, headers=f"{json_}Mcp-Session-Id: own-1\r\n")
        if "id" in message and "method" in message:
            return answer(result(message["id"]), headers=json_)
        return answer(b"", status="202 Accepted")

    def of(self, method: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.method == method]


@dataclass
class Sse:
    """An HTTP+SSE server of one session. `say` puts bytes on its stream as it is taken.

    Messages of `held` methods are accepted once `open` is set, those of `late` ones answered.
    """

    held: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    open: asyncio.Event = field(default_factory=asyncio.Event)
    posts: list[Asked] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    sent: int = 0
    stream: asyncio.StreamWriter | None = None

    async def __call__(
        self, launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.writers.append(writer)
        while (asked := await receive(reader)) is not None:
            if asked.method == "GET":
                self.stream = writer
                writer.write(STREAM_HEAD + ENDPOINT)
                await reader.read()
                return
            self.posts.append(asked)
            message = json.loads(asked.body)
            if message.get("method") in self.held:
                await self.open.wait()
            if self.late:
                writer.write(answer(b"Accepted", status="202 Accepted"))
                if message.get("method") in self.late:
                    await self.open.wait()
            if "id" in message and "method" in message:
                await self.say(event(result(message["id"])))
            if not self.late:
                writer.write(answer(b"Accepted", status="202 Accepted"))

    async def say(self, data: bytes) -> None:
        assert self.stream is not None
        self.stream.write(data)
        await self.stream.drain()
        self.sent += len(data)

    async def flood(self, size: int, count: int) -> None:
        for number in range(count):
            await self.say(event(note("notifications/message", n=number, data="x" * size)))


@dataclass
class Stream:
    """A client's HTTP+SSE session."""

    world: World
    client: Client
    path: str
    events: AsyncIterator[tuple[str, bytes]]
    headers: str = ""

    async def post(self, body: bytes) -> int:
        reply = await self.world.ask(request("POST", self.path, body, headers=self.headers))
        return reply.status

    async def next(self) -> Any:
        async with asyncio.timeout(BOUND):
            return json.loads((await anext(self.events))[1])


@asynccontextmanager
async def sse(world: World, headers: str = "") -> AsyncIterator[Stream]:
    """A session at /sse, initialized."""
    client = await world.client()
    client.write(request(path="/fn/fn/sse", headers=headers))
    assert (await client.head()).status == 200
    found = events(client)
    name, endpoint = await anext(found)
    assert name == "endpoint"
    stream = Stream(world, client, endpoint.decode(), found, headers)
    assert await stream.post(call(0, "initialize")) == 202
    assert (await stream.next())["id"] == 0
    try:
        yield stream
    finally:
        client.abort()


async def initialized(world: World) -> str:
    """A session at /mcp: its header line."""
    reply = await world.ask(request("POST", "/fn/fn/mcp", call(0, "initialize")))
    assert reply.status == 200
    return f"Mcp-Session-Id: {reply.get('mcp-session-id')}\r\n"


# What is held for whom.


async def test_notifications_that_a_bridged_server_does_not_take_stay_with_their_client(
    world: World,
) -> None:
    backend = Streamable(held=("notifications/progress",))
    world.function(backend, kind="mcp", facts=STREAMABLE)
    accepted = 0

    async def post(stream: Stream, body: bytes) -> None:
        nonlocal accepted
        assert await stream.post(body) == 202
        accepted += 1

    async with sse(world) as stream:
        before = resident()
        body = note(data="x" * MIB)
        tasks = [asyncio.create_task(post(stream, body)) for _ in range(40)]
        assert await settled(lambda: accepted) <= 2
        assert resident() - before < 70 * MIB  # this test's own copies are most of it
        backend.open.set()
        async with asyncio.timeout(BOUND):
            await asyncio.gather(*tasks)
        await world.until(lambda: len(backend.of("POST")) == 41)
    await world.until(world.idle)


async def test_an_open_request_however_large_holds_no_message_back(world: World) -> None:
    backend = Streamable(held=("tools/call",))
    world.function(backend, kind="mcp", facts=STREAMABLE)
    async with sse(world) as stream:
        assert await stream.post(call(1, data="x" * 2 * MIB)) == 202
        assert await stream.post(result("asked", answer="x" * MIB)) == 202
        await world.until(lambda: any(b"asked" in asked.body for asked in backend.asked))
        backend.open.set()
        assert (await stream.next())["id"] == 1


async def test_messages_that_wait_for_room_end_with_their_session(world: World) -> None:
    backend = Streamable(held=("notifications/progress",))
    world.function(backend, kind="mcp", facts=STREAMABLE)
    async with sse(world) as stream:
        body = note(data="x" * MIB)
        tasks = [asyncio.create_task(stream.post(body)) for _ in range(4)]
        await world.until(lambda: any(task.done() for task in tasks))
        stream.client.abort()
        async with asyncio.timeout(BOUND):
            assert set(await asyncio.gather(*tasks)) == {202, 404}
    await world.until(world.idle)


async def test_a_listener_that_does_not_read_slows_the_server_down(world: World) -> None:
    backend = Sse()
    world.function(backend, kind="mcp", facts=SSE)
    session = await initialized(world)
    client = await world.small()
    client.write(request(path="/fn/fn/mcp", headers=session))
    await client.head()
    before = resident()
    flood = asyncio.create_task(backend.flood(64 * 1024, 1600))
    assert await settled(lambda: backend.sent) < 24 * MIB
    assert resident() - before < 24 * MIB
    async with asyncio.timeout(20):
        found = events(client)
        for number in range(1600):
            assert json.loads((await anext(found))[1])["params"]["n"] == number
        await flood


async def test_a_call_that_is_not_read_slows_the_server_down_and_is_answered(world: World) -> None:
    backend = Sse(held=("tools/call",))
    world.function(backend, kind="mcp", facts=SSE)
    session = await initialized(world)
    client = await world.small()
    client.write(request("POST", "/fn/fn/mcp", call(1), headers=session))
    await world.until(lambda: len(backend.posts) == 2)
    flood = asyncio.create_task(backend.flood(64 * 1024, 800))  # before the POST is accepted
    assert await settled(lambda: backend.sent) < 24 * MIB
    async with asyncio.timeout(20):
        await client.head()
        found = events(client)
        for number in range(800):
            assert json.loads((await anext(found))[1])["params"]["n"] == number
        await flood
        backend.open.set()
        assert json.loads((await anext(found))[1])["id"] == 1
        assert [left async for left in found] == []
    await world.until(lambda: world.one().inflight == 0)


async def test_a_batch_is_answered_in_whatever_order_its_answers_come(world: World) -> None:
    async def backend(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while (asked := await receive(reader)) is not None:
            if asked.method == "GET":
                streams.append(writer)
                writer.write(STREAM_HEAD + ENDPOINT)
                await reader.read()
                return
            messages = json.loads(asked.body)
            for message in reversed(messages if isinstance(messages, list) else [messages]):
                streams[0].write(event(result(message["id"], data="x" * MIB)))
            writer.write(answer(b"", status="202 Accepted"))

    streams: list[asyncio.StreamWriter] = []
    world.function(backend, kind="mcp", facts=SSE)
    session = await initialized(world)
    batch = b"[" + call(1) + b"," + call(2) + b"," + call(3) + b"]"
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", batch, headers=session))
    await client.head()
    assert [json.loads(data)["id"] async for _, data in events(client)] == [3, 2, 1]


async def test_of_what_waits_for_nobody_the_newest_mebibyte_is_kept(world: World) -> None:
    backend = Sse()
    world.function(backend, kind="mcp", facts=SSE)
    session = await initialized(world)
    with structlog.testing.capture_logs() as logs:
        await backend.flood(256 * 1024, 90)
        await world.ask(request("POST", "/fn/fn/mcp", note(), headers=session))
        await world.until(lambda: any("dropped" in line["event"] for line in logs))
        assert await settled(lambda: len(logs)) == 87
    client = await world.client()
    client.write(request(path="/fn/fn/mcp", headers=session))
    await client.head()
    found = events(client)
    assert [json.loads((await anext(found))[1])["params"]["n"] for _ in range(3)] == [87, 88, 89]


# Drain.


@pytest.mark.parametrize(
    ("facts", "backend"),
    [
        (STREAMABLE, lambda: Streamable(held=("tools/call",))),
        (SSE, lambda: Sse(late=("tools/call",))),
    ],
    ids=["streamable", "sse"],
)
async def test_drain_waits_for_the_open_requests_of_a_session_at_sse(
    world: World, facts: Facts, backend: Callable[[], Streamable | Sse]
) -> None:
    program = backend()
    world.function(program, kind="mcp", facts=facts)
    async with sse(world) as stream, sse(world) as idle:
        posted = asyncio.create_task(stream.post(call(1)))
        await world.until(lambda: any(b"tools/call" in a.body for a in _posts(program)))
        draining = asyncio.create_task(world.gateway.drain(BOUND))
        await asyncio.wait([draining], timeout=0.2)
        assert not draining.done()
        program.open.set()
        assert (await stream.next())["id"] == 1
        async with asyncio.timeout(1):
            assert await posted == 202
            await draining
        assert await idle.client.ended() is not None


def _posts(program: Streamable | Sse) -> list[Asked]:
    return program.posts if isinstance(program, Sse) else program.of("POST")


async def test_drain_does_not_wait_for_a_tunnel(world: World) -> None:
    switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"

    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await receive(reader)
        writer.write(f"{switched}\r\n".encode())
        await reader.read()

    world.function(app)
    client = await world.client()
    client.write(request(headers="Connection: Upgrade\r\nUpgrade: websocket\r\n"))
    assert (await client.head()).status == 101
    async with asyncio.timeout(1):
        await world.gateway.drain(BOUND)


# What is said to servers, and on whose behalf.


async def test_a_bridge_says_everything_on_its_callers_behalf(world: World) -> None:
    backend = Streamable()
    world.function(backend, kind="mcp", facts=STREAMABLE)
    async with sse(world, "Authorization: Bearer own\r\nX-Tenant: t\r\n") as stream:
        assert await stream.post(note("notifications/initialized")) == 202
        await world.until(lambda: bool(backend.of("GET")))
    await world.until(lambda: bool(backend.of("DELETE")))
    (get,), (delete,) = backend.of("GET"), backend.of("DELETE")
    for asked in (get, delete):
        assert (asked.get("authorization"), asked.get("x-tenant")) == ("Bearer own", "t")
        assert asked.get("mcp-session-id") == "own-1"
        assert asked.get("mcp-protocol-version") == "2025-06-18"
        assert asked.get("content-type") is None


async def test_a_project_key_is_not_shown_to_a_bridged_server(world: World) -> None:
    backend = Streamable()
    world.function(backend, kind="mcp", facts=STREAMABLE)
    async with sse(world, f"Authorization: Bearer {SECRET}\r\n") as stream:
        assert await stream.post(note("notifications/initialized")) == 202
        await world.until(lambda: bool(backend.of("GET")))
    await world.until(lambda: bool(backend.of("DELETE")))
    assert not any(asked.get("authorization") for asked in backend.asked)


@pytest.mark.parametrize("policy", [{"idle": 0.2}, {"lifetime": 0.2}])
async def test_a_session_that_expires_is_deleted_at_its_server(
    world: World, policy: dict[str, float]
) -> None:
    backend = Streamable()
    world.function(backend, kind="mcp", facts=STREAMABLE, session=policy)
    await initialized(world)
    await world.until(lambda: bool(backend.of("DELETE")))
    await world.until(world.idle)
    (delete,) = backend.of("DELETE")
    assert (delete.path, delete.get("mcp-session-id")) == ("/mcp", "own-1")


async def test_many_sessions_that_expire_at_once_are_deleted_a_few_at_a_time(
    world: World,
) -> None:
    backend = Streamable()
    open_ = most = 0

    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        nonlocal open_, most
        while (asked := await receive(reader)) is not None:
            backend.asked.append(asked)
            if asked.method == "POST":
                writer.write(await backend._message(json.loads(asked.body)))
                continue
            open_ += 1
            most = max(most, open_)
            await asyncio.sleep(0.01)
            open_ -= 1
            writer.write(answer())

    world.function(app, kind="mcp", facts=STREAMABLE, session={"idle": 0.5, "per_instance": 100})
    for _ in range(30):
        await initialized(world)
    await world.until(lambda: len(backend.of("DELETE")) == 30)
    await world.until(world.idle)
    assert 1 < most <= 8


async def test_a_session_that_its_client_deletes_is_deleted_once(world: World) -> None:
    backend = Streamable()
    world.function(backend, kind="mcp", facts=STREAMABLE, session={"idle": 0.2})
    session = await initialized(world)
    reply = await world.ask(request("DELETE", "/fn/fn/mcp", headers=session))
    assert reply.status == 200
    await asyncio.sleep(0.3)
    assert len(backend.of("DELETE")) == 1


# Subscriptions.


async def test_a_subscription_follows_its_callers_session_to_its_instance(world: World) -> None:
    listens: list[str] = []

    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while (asked := await receive(reader)) is not None:
            if b"subscriptions/listen" in asked.body:
                listens.append(launch.id)
                writer.write(STREAM_HEAD + event(note("notifications/message")))
                await reader.read()
                return
            headers = "Content-Type: application/json\r\n"
            writer.write(answer(result(1, on=launch.id), headers=headers))

    facts = Facts("http", "/mcp", modern=True, legacy=False, stateful=False)
    world.function(
        app,
        kind="mcp",
        affinity="header:x-user",
        facts=facts,
        session={"per_instance": 2},
        scale={"max": 3},
    )
    modern = "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: {}\r\nX-User: {}\r\n"
    homes = {}
    for user in "abc":
        reply = await world.ask(
            request("POST", "/fn/fn/mcp", call(1), headers=modern.format("tools/call", user))
        )
        homes[user] = reply.json["result"]["on"]
    assert homes["c"] not in (homes["a"], homes["b"])
    for user in "cab":
        client = await world.client()
        body = call(2, "subscriptions/listen", notifications={})
        headers = modern.format("subscriptions/listen", user)
        client.write(request("POST", "/fn/fn/mcp", body, headers=headers))
        assert (await client.head()).status == 200
        await client.chunk()
        assert listens.pop() == homes[user]
        client.abort()
