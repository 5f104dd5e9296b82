"""A bound on every phase, said in the protocol that the caller speaks."""

from __future__ import annotations

import asyncio

import pytest

from cove.drivers.base import Launch
from gateway.world import BOUND, Asked, Gate, World, answer, receive, request, serving

HTTP = "cove.gateway.http."


async def silent(
    launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Takes everything and never answers."""
    while await reader.read(65536):
        pass


async def test_a_head_that_takes_too_long_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HTTP + "_HEAD_SECONDS", 0.1)
    client = await world.client()
    client.write("GET / HTTP/1.1\r\nHost: a\r\n")
    reply = await client.reply()
    assert (reply.status, reply.get("connection")) == (408, "close")
    assert reply.get("x-request-id")
    assert await client.end() == b""


async def test_a_head_that_drips_is_refused_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HTTP + "_HEAD_SECONDS", 0.2)
    client = await world.client()

    async def drip() -> None:
        client.write("GET / HTTP/1.1\r\nHost: localhost\r\nX-A: ")
        while True:
            client.write("a")
            await asyncio.sleep(0.02)

    drops = asyncio.create_task(drip())
    assert (await client.reply()).status == 408
    drops.cancel()


async def test_a_second_head_is_bounded_as_the_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HTTP + "_HEAD_SECONDS", 0.1)
    world.function()
    client = await world.client()
    assert (await client.ask(request())).status == 200
    client.write("GET / HTTP/1.1\r\nHost: a\r\n")
    assert (await client.reply()).status == 408


@pytest.mark.parametrize("framing", ["Content-Length: 10", "Transfer-Encoding: chunked"])
async def test_a_body_that_stalls_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, framing: str
) -> None:
    monkeypatch.setattr(HTTP + "_BODY_SECONDS", 0.1)
    world.function()
    client = await world.client()
    client.write(f"POST /fn/fn/ HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n5\r\nhel")
    reply = await client.reply()
    assert (reply.status, reply.get("connection")) == (408, "close")
    assert await client.end() == b""
    await world.until(world.idle)


async def test_a_body_that_drips_is_taken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HTTP + "_BODY_SECONDS", 0.2)
    world.function()
    client = await world.client()
    client.write("POST /fn/fn/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n")
    for _ in range(10):
        await asyncio.sleep(0.04)
        client.write("x")
    assert (await client.reply()).json["body"] == "x" * 10


@pytest.mark.parametrize("kind", ["web", "mcp"])
async def test_a_backend_that_never_answers_is_a_timeout(world: World, kind: str) -> None:
    world.function(silent, kind=kind, limits={"timeout": 0.15})  # type: ignore[arg-type]
    client = await world.client()
    reply = await client.ask(request("POST", "/fn/fn/mcp", b"{}"))
    assert reply.status == 504
    error = reply.json["error"]
    assert error.get("code") == "timeout" or error["data"]["code"] == "timeout"
    await world.until(world.idle)
    assert world.counted() == {504: 1}
    assert (await client.ask(request("GET", "/healthz"))).status == 200


async def test_a_backend_that_stops_midway_is_cut_off_in_time(world: World) -> None:
    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await receive(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        await reader.read()

    world.function(app, limits={"timeout": 0.15})
    client = await world.client()
    client.write(request())
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.reply()
    await world.until(world.idle)


@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    ],
)
async def test_an_answer_that_breaks_off_is_never_taken_for_whole(
    world: World, first: bytes
) -> None:
    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await receive(reader)
        writer.write(first)
        await writer.drain()
        await asyncio.sleep(0.02)

    world.function(app)
    client = await world.client()
    client.write(request())
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.reply()
    await world.until(world.idle)


async def test_an_answer_that_breaks_off_is_reset_where_its_end_is_the_connections(
    world: World,
) -> None:
    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await receive(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)

    world.function(app)
    client = await world.client()
    client.write(request(version="1.0"))
    with pytest.raises(ConnectionError):
        await client.reply()


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\nContent-Le"])
async def test_a_backend_that_closes_before_its_answer_is_a_bad_gateway(
    world: World, first: bytes
) -> None:
    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await receive(reader)
        writer.write(first)

    world.function(app)
    reply = await world.ask(request())
    assert (reply.status, reply.json["error"]["code"]) == (502, "bad_gateway")
    await world.until(world.idle)


async def test_a_reader_that_stalls_is_cut_off(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HTTP + "_WRITE_SECONDS", 0.2)
    world.function(serving(lambda launch, asked: answer(b"x" * 30_000_000)))
    client = await world.small()
    client.write(request())
    await client.head()
    await world.until(lambda: bool(world.pools[0].ready) and world.one().inflight == 0)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        async with asyncio.timeout(BOUND):
            await client.reader.readexactly(30_000_000)


async def test_an_idle_connection_is_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HTTP + "_IDLE_SECONDS", 0.1)
    fresh, used = await world.client(), await world.client()
    assert (await used.ask(request(path="/healthz"))).status == 200
    assert await fresh.end() == b""
    assert await used.end() == b""


async def test_a_connection_in_use_is_not_idle(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HTTP + "_IDLE_SECONDS", 0.05)
    gate = Gate()
    world.function(serving(gate))
    client = await world.client()
    client.write(request())
    await gate.next()
    await asyncio.sleep(0.2)
    gate.open.set()
    assert (await client.reply()).status == 200


async def test_a_slow_reader_gets_the_end_of_an_answer_that_closes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HTTP + "_LINGER_SECONDS", 0.1)
    body = b"x" * 2_000_000
    world.function(serving(lambda launch, asked: answer(body)))
    client = await world.small()
    client.write(request(headers="Connection: close\r\n"))
    reply = await client.head()
    got = b""
    async with asyncio.timeout(BOUND):
        while world.one().inflight:
            got += await client.reader.read(65536)
        await asyncio.sleep(0.3)
        got += await client.reader.read()
    assert (reply.status, len(got)) == (200, len(body))


async def test_requests_are_bounded_but_streams_are_not(world: World) -> None:
    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await receive(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await asyncio.sleep(0.4)
        writer.write(b"data: 2\n\n")

    world.function(app, limits={"timeout": 0.15}, session={"lifetime": 60.0})
    client = await world.client()
    client.write(request())
    assert (await client.head()).status == 200
    assert await client.chunk() == b"data: 1\n\n"
    assert await client.chunk() == b"data: 2\n\n"


async def test_a_pipelined_request_has_its_whole_time(world: World) -> None:
    async def handle(launch: Launch, asked: Asked) -> bytes:
        await asyncio.sleep(0.2)
        return answer()

    world.function(serving(handle), limits={"timeout": 0.3})
    client = await world.client()
    client.write(request() * 3)
    assert [(await client.reply()).status for _ in range(3)] == [200, 200, 200]
