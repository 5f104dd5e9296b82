"""Who leaves, and what that means: by era, and for what is behind."""

from __future__ import annotations

import asyncio

import pytest

from cove.drivers.base import Launch
from gateway.world import BOUND, Asked, Gate, World, answer, receive, request, serving

MODERN = "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\n"
BODY = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{}}'


class Watched:
    """A backend that never answers, and tells when its caller has left."""

    def __init__(self, first: bytes = b"") -> None:
        self.first = first
        self.asked = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(
        self, launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if await receive(reader) is None:
            return
        writer.write(self.first)
        self.asked.set()
        try:
            await reader.read()
        finally:
            self.left.set()


async def wait(event: asyncio.Event) -> None:
    async with asyncio.timeout(BOUND):
        await event.wait()


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"])
@pytest.mark.parametrize("politely", [True, False])
async def test_a_modern_client_that_leaves_takes_its_request_with_it(
    world: World, first: bytes, politely: bool
) -> None:
    backend = Watched(first)
    world.function(backend, kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", BODY, headers=MODERN))
    await wait(backend.asked)
    client.close() if politely else client.abort()
    async with asyncio.timeout(1):
        await backend.left.wait()
    await world.until(world.idle)


async def test_a_web_client_that_leaves_takes_its_request_with_it(world: World) -> None:
    backend = Watched()
    world.function(backend)
    client = await world.client()
    client.write(request())
    await wait(backend.asked)
    client.abort()
    async with asyncio.timeout(1):
        await backend.left.wait()
    await world.until(world.idle)


async def test_a_legacy_client_that_leaves_has_not_cancelled(world: World) -> None:
    gate = Gate()
    world.function(serving(gate), kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", BODY))
    await gate.next()
    client.abort()
    await asyncio.sleep(0.1)
    assert world.one().inflight == 1
    gate.open.set()
    await world.until(world.idle)
    assert gate.served == 1
    assert world.counted() == {200: 1}


async def test_a_legacy_request_that_nobody_waits_for_still_ends_in_time(world: World) -> None:
    backend = Watched()
    world.function(backend, kind="mcp", limits={"timeout": 0.2})
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", BODY))
    await wait(backend.asked)
    client.abort()
    async with asyncio.timeout(0.8):
        await backend.left.wait()
        await world.until(world.idle)


async def test_a_legacy_client_that_leaves_midway_through_its_body_is_given_up(
    world: World,
) -> None:
    world.function(kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", BODY)[:-5])
    await world.until(lambda: any(i.inflight for p in world.pools for i in p.instances))
    client.abort()
    await world.until(world.idle)


@pytest.mark.parametrize("path", ["/fn/fn/sse", "/fn/fn/messages/?session_id=x"])
async def test_a_client_that_leaves_a_bridge_midway_leaves_no_task(world: World, path: str) -> None:
    world.function(kind="mcp")
    client = await world.client()
    client.write(request("POST" if "messages" in path else "GET", path, BODY)[:-5])
    await asyncio.sleep(0.05)
    client.abort()
    await world.until(world.idle)


async def test_a_client_that_leaves_while_it_waits_is_forgotten(world: World) -> None:
    world.function(kind="mcp")
    world.driver.start_delay = 0.2
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", BODY, headers=MODERN))
    await world.until(lambda: world.pools[0].waiting == 1)
    client.abort()
    await world.until(lambda: world.pools[0].waiting == 0)
    await world.until(world.idle)


async def test_a_request_is_not_run_twice(world: World) -> None:
    seen = 0

    def handle(launch: Launch, asked: Asked) -> bytes | None:
        nonlocal seen
        seen += 1
        return answer() if seen == 1 else None  # the kept connection breaks under the second

    world.function(serving(handle))
    assert (await world.ask(request("POST"))).status == 200
    assert (await world.ask(request("POST"))).status == 502
    assert seen == 2


async def test_a_get_on_a_kept_connection_that_was_closed_is_asked_anew(world: World) -> None:
    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if await receive(reader) is not None:
            writer.write(answer())
            await receive(reader)  # and gone, with a request on its way

    world.function(app)
    client = await world.client()
    for _ in range(3):
        assert (await client.ask(request())).status == 200


async def test_a_kept_connection_that_was_closed_in_time_is_not_used(world: World) -> None:
    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if await receive(reader) is not None:
            writer.write(answer())

    world.function(app)
    client = await world.client()
    for _ in range(5):
        assert (await client.ask(request("POST"))).status == 200
        await asyncio.sleep(0.02)
