"""Cove leaves: what each protocol's callers hear of it, and in what order."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from cove.drivers.base import Launch
from cove.model import Facts
from gateway.test_losses import PROGRESS, STREAM, chunk, data, events, saying
from gateway.test_streams import SSE, STREAMABLE, Sse, Streamable, call, result, sse
from gateway.world import BOUND, Client, Gate, World, answer, receive, request, serving

MODERN = Facts("http", "/mcp", modern=True, legacy=True, stateful=False)
RETRY = b"retry: 1000"


def drained(world: World, seconds: float = BOUND) -> asyncio.Task[None]:
    return asyncio.create_task(world.gateway.drain(seconds))


async def over(drain: asyncio.Task[None]) -> None:
    await asyncio.wait_for(drain, BOUND)


async def busy(world: World) -> tuple[Gate, Client]:
    """A request that keeps the drain waiting."""
    gate = Gate()
    world.function(serving(gate), name="busy")
    client = await world.client()
    client.write(request(path="/fn/busy/"))
    await gate.next()
    return gate, client


# Requests.


async def test_who_is_connected_is_told_that_cove_is_not_ready(world: World) -> None:
    kept = await world.client()
    assert (await kept.ask(request(path="/readyz"))).status == 200
    gate, client = await busy(world)
    drain = drained(world)
    await asyncio.sleep(0)
    reply = await kept.ask(request(path="/readyz"))
    assert (reply.status, reply.body, reply.get("connection")) == (503, b"draining\n", "close")
    assert await kept.end() == b""
    gate.open.set()
    last = await client.reply()
    assert (last.status, last.get("connection")) == (200, "close")
    await over(drain)


async def test_who_is_connected_may_ask_once_more(world: World) -> None:
    world.function()
    kept = await world.client()
    assert (await kept.ask(request())).status == 200
    gate, client = await busy(world)
    drain = drained(world)
    await asyncio.sleep(0)
    reply = await kept.ask(request("POST", body=b"last"))
    assert (reply.status, reply.json["body"], reply.get("connection")) == (200, "last", "close")
    assert await kept.end() == b""
    gate.open.set()
    assert (await client.reply()).status == 200
    await over(drain)


async def test_idle_connections_are_closed_while_there_is_time_left(world: World) -> None:
    kept = await world.client()
    assert (await kept.ask(request(path="/healthz"))).status == 200
    gate, client = await busy(world)
    drain = drained(world, 0.4)
    assert await kept.end() == b""
    assert not drain.done()
    gate.open.set()
    assert (await client.reply()).status == 200
    await over(drain)


@pytest.mark.parametrize("affinity", ["mcp", "none", "header:X-Key"])
async def test_who_waits_for_an_instance_is_told_at_once(world: World, affinity: str) -> None:
    world.driver.start_delay = 1.0
    world.function(kind="mcp", affinity=affinity)
    clients = [await world.client() for _ in range(3)]
    for number, client in enumerate(clients):
        client.write(request("POST", "/fn/fn/mcp", call(number), headers="X-Key: a\r\n"))
    await world.until(lambda: len(world.gateway._tasks) == 3)
    drain = drained(world)
    for number, client in enumerate(clients):
        reply = await client.reply()
        assert (reply.status, reply.json["id"]) == (503, number)
        assert reply.json["error"]["data"]["code"] == "draining"
        assert reply.get("retry-after")
    await over(drain)
    assert world.idle()
    assert not world.sessions.of()


@pytest.mark.parametrize("path", ["/fn/cold/mcp", "/fn/cold/sse"])
async def test_who_would_have_to_wait_does_not_begin_to(world: World, path: str) -> None:
    world.function(name="cold", kind="mcp")
    kept = await world.client()
    assert (await kept.ask(request(path="/healthz"))).status == 200
    gate, client = await busy(world)
    drain = drained(world)
    await asyncio.sleep(0)
    method = "POST" if path.endswith("mcp") else "GET"
    reply = await kept.ask(request(method, path, call(1) if method == "POST" else b""))
    assert (reply.status, reply.json["error"]["data"]["code"]) == (503, "draining")
    gate.open.set()
    assert (await client.reply()).status == 200
    await over(drain)
    assert [launch.function for launch in world.driver.started] == ["busy"]


async def test_a_request_that_is_cut_before_its_answer_is_told_by_name(world: World) -> None:
    gate = Gate()
    world.function(serving(gate), kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call("mine")))
    await gate.next()
    drain = drained(world, 0.05)
    reply = await client.reply()
    assert (reply.status, reply.json["id"], reply.get("connection")) == (503, "mine", "close")
    assert reply.json["error"]["data"]["code"] == "draining"
    assert await client.end() == b""
    await over(drain)
    assert world.idle()


async def test_a_request_that_is_cut_while_it_is_sent_hears_why(world: World) -> None:
    world.function()
    client = await world.client()
    client.write(request("POST", body=b"x" * 1_000_000)[:-500_000])
    await world.until(lambda: any(i.inflight for pool in world.pools for i in pool.instances))
    drain = drained(world, 0.05)
    reply = await client.reply()
    assert reply.status == 503
    for _ in range(5):
        client.write(b"x" * 100_000)
        await client.writer.drain()
        await asyncio.sleep(0.01)
    assert not client.writer.transport.is_closing()  # a reset could have cost it the reply
    assert not drain.done()
    client.close()
    await over(drain)


async def test_an_answer_that_is_cut_is_reset(world: World) -> None:
    world.function(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"))
    client = await world.client()
    client.write(request())
    await client.head()
    drain = drained(world, 0.05)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.reader.readexactly(10)
    await over(drain)


async def test_a_request_nobody_waits_for_may_finish(world: World) -> None:
    gate = Gate()
    world.function(serving(gate), kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call(1)))
    await gate.next()
    client.abort()
    await world.until(lambda: not world.gateway._connections)
    drain = drained(world)
    await asyncio.sleep(0.05)
    assert not drain.done()
    gate.open.set()
    await over(drain)
    assert world.counted() == {200: 1}


async def test_a_request_nobody_waits_for_is_ended_in_time(world: World) -> None:
    gate = Gate()
    world.function(serving(gate), kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call(1)))
    await gate.next()
    client.abort()
    await world.until(lambda: not world.gateway._connections)
    await over(drained(world, 0.05))
    assert world.idle()
    assert [line.status for line in world.lines] == [499]


# Streams.


async def test_a_stream_that_owes_an_answer_is_waited_for(world: World) -> None:
    go = asyncio.Event()

    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await receive(reader)
        writer.write(STREAM + chunk(PROGRESS))
        await go.wait()
        writer.write(chunk(PROGRESS) + b"0\r\n\r\n")
        await reader.read()

    world.function(app, kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call(1)))
    await client.head()
    drain = drained(world)
    await asyncio.sleep(0.05)
    assert not drain.done()
    go.set()
    assert len(await events(client)) == 2
    await over(drain)


async def test_a_stream_that_still_owes_its_answer_ends_with_an_error(world: World) -> None:
    world.function(saying(STREAM, chunk(PROGRESS)), kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call(1)))
    await client.head()
    await client.chunk()
    drain = drained(world, 0.05)
    (last,) = await events(client)
    assert (data(last)["id"], data(last)["error"]["data"]["code"]) == (1, "draining")
    await over(drain)
    assert world.idle()


async def held(world: World, gate: Gate, drain_of: Client, head: bytes) -> tuple[Client, Any]:
    client = await world.client()
    client.write(head)
    assert (await client.head()).status == 200
    drain = drained(world)
    for _ in range(3):
        await asyncio.sleep(0.01)
        assert not client.reader.at_eof()
    assert not drain.done()
    gate.open.set()
    assert (await drain_of.reply()).status == 200
    return client, drain


async def test_a_held_get_stream_ends_last_and_is_asked_to_come_back(world: World) -> None:
    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while (asked := await receive(reader)) is not None:
            if asked.method == "GET":
                writer.write(STREAM + chunk(PROGRESS))
            else:
                writer.write(answer(result(0), headers="Mcp-Session-Id: own\r\n"))

    world.function(app, kind="mcp", facts=STREAMABLE)
    opened = await world.ask(request("POST", "/fn/fn/mcp", call(0, "initialize")))
    session = f"Mcp-Session-Id: {opened.get('mcp-session-id')}\r\n"
    gate, client = await busy(world)
    stream, drain = await held(world, gate, client, request(path="/fn/fn/mcp", headers=session))
    assert await events(stream) == [PROGRESS[:-2], RETRY]
    await over(drain)
    assert world.idle()
    assert len(world.sessions.of()) == 1  # to be come back to, where instances are kept


async def test_a_stream_held_for_nobody_ends_last_with_a_hint(world: World) -> None:
    world.function(kind="mcp", facts=Facts("http", "/mcp", modern=False, stateful=False))
    gate, client = await busy(world)
    stream, drain = await held(world, gate, client, request(path="/fn/fn/mcp"))
    found = await events(stream)
    assert found[-1] == RETRY
    await over(drain)
    assert world.idle()


async def test_a_subscription_ends_as_its_protocol_has_it(world: World) -> None:
    world.function(kind="mcp", facts=MODERN)
    gate, client = await busy(world)
    body = call(4, "subscriptions/listen", notifications={"toolsListChanged": True})
    headers = "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: subscriptions/listen\r\n"
    stream, drain = await held(
        world, gate, client, request("POST", "/fn/fn/mcp", body, headers=headers)
    )
    found = await events(stream)
    assert RETRY in found
    last = data(found[-1])
    assert (last["id"], last["result"]["resultType"]) == (4, "complete")
    await over(drain)


@pytest.mark.parametrize(
    ("said", "method", "end"),
    [
        (chunk(b"data: 1\n\n"), "GET", RETRY + b"\n\n"),
        (chunk(b"data: 1\n"), "GET", None),
        (chunk(b"data: 1\n\n"), "POST", None),
    ],
)
async def test_a_web_functions_stream_ends_properly_where_it_has_no_end_of_its_own(
    world: World, said: bytes, method: str, end: bytes | None
) -> None:
    world.function(saying(STREAM, said))
    client = await world.client()
    client.write(request(method))
    await client.head()
    await client.chunk()
    drain = drained(world)
    if end is None:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.chunk()
    else:
        assert await client.chunk() == end
        assert await client.chunk() == b""
    await over(drain)
    assert world.idle()


@pytest.mark.parametrize("native", [True, False])
async def test_an_sse_session_ends_after_the_errors_it_owes(world: World, native: bool) -> None:
    held_ = ("tools/call",)
    backend = Sse(late=held_) if native else Streamable(held=held_)
    world.function(backend, kind="mcp", facts=SSE if native else STREAMABLE)
    async with sse(world) as stream:
        assert await stream.post(call(1)) == 202
        drain = drained(world, 0.1)
        error = await stream.next()
        assert (error["id"], error["error"]["data"]["code"]) == (1, "draining")
        assert [left async for left in stream.events] == []
        await over(drain)
    assert world.idle()
    if isinstance(backend, Streamable):
        assert len(backend.of("DELETE")) == 1  # the server is told to forget it


async def test_a_stream_that_has_not_begun_is_told(world: World) -> None:
    world.function(saying(), kind="mcp", facts=SSE)  # never says where to post
    client = await world.client()
    client.write(request(path="/fn/fn/sse"))
    await world.until(lambda: bool(world.pools[0].ready) and world.one().inflight == 1)
    drain = drained(world, 0.05)
    reply = await client.reply()
    assert (reply.status, reply.json["error"]["data"]["code"]) == (503, "draining")
    await over(drain)
    assert world.idle()


async def test_an_sse_session_that_owes_nothing_is_not_waited_for(world: World) -> None:
    world.function(Streamable(), kind="mcp", facts=STREAMABLE)
    async with sse(world) as stream:
        drain = drained(world, 60.0)
        assert [left async for left in stream.events] == []
        await over(drain)


async def test_a_bridged_call_and_its_sessions_stream_end_properly(world: World) -> None:
    world.function(Sse(late=("tools/call",)), kind="mcp", facts=SSE)
    opened = await world.ask(request("POST", "/fn/fn/mcp", call(0, "initialize")))
    session = f"Mcp-Session-Id: {opened.get('mcp-session-id')}\r\n"
    stream, client = await world.client(), await world.client()
    stream.write(request(path="/fn/fn/mcp", headers=session))
    assert (await stream.head()).status == 200
    client.write(request("POST", "/fn/fn/mcp", call(1), headers=session))
    assert (await client.head()).status == 200
    drain = drained(world, 0.1)
    (last,) = await events(client)
    assert (data(last)["id"], data(last)["error"]["data"]["code"]) == (1, "draining")
    assert await events(stream) == [RETRY]
    await over(drain)
    assert world.idle()


async def test_a_bridged_call_that_was_not_accepted_is_told(world: World) -> None:
    backend = Sse(held=("tools/call",))
    world.function(backend, kind="mcp", facts=SSE)
    opened = await world.ask(request("POST", "/fn/fn/mcp", call(0, "initialize")))
    session = f"Mcp-Session-Id: {opened.get('mcp-session-id')}\r\n"
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call("b"), headers=session))
    await world.until(lambda: len(backend.posts) == 2)
    drain = drained(world, 0.1)
    reply = await client.reply()
    assert (reply.status, reply.json["id"]) == (503, "b")
    assert json.loads(reply.body)["error"]["data"]["code"] == "draining"
    await over(drain)
    assert world.idle()
