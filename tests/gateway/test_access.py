"""Access lines: one for each request that was for a function, with what is known of it."""

from __future__ import annotations

import asyncio

import pytest

from cove.drivers.base import Exit, Launch
from cove.model import Facts
from gateway.test_cancellation import MODERN, Watched, wait
from gateway.test_losses import PROGRESS, STREAM, chunk, saying
from gateway.test_retries import wire
from gateway.test_streams import SSE, STREAMABLE, Sse, Streamable, call, result, sse
from gateway.test_websockets import UPGRADE
from gateway.world import (
    BEARER,
    BOUND,
    Asked,
    Client,
    Gate,
    Line,
    World,
    answer,
    receive,
    request,
    serving,
)


async def lines(world: World, count: int = 1) -> list[Line]:
    """So many lines, and after a while no more."""
    await world.until(lambda: len(world.lines) >= count)
    await world.until(world.idle)
    assert len(world.lines) == count, world.lines
    return world.lines


def brief(line: Line) -> tuple[bytes, bytes, int]:
    return line.method, line.target, line.status


async def test_a_request_that_was_served_is_told_whole(world: World) -> None:
    world.function(auth="key")
    reply = await world.ask(request("PUT", "/fn/fn/a?b=c", b"d", headers=BEARER))
    (line,) = await lines(world)
    assert line[:-1] == (
        *("fn", 1, world.one().id, "", (reply.get("x-request-id") or "").encode()),
        *("project", b"PUT", b"/fn/fn/a?b=c", 200),
    )
    assert 0 < line.seconds < BOUND


async def test_every_request_of_a_connection_has_its_line(world: World) -> None:
    world.function()
    client = await world.client()
    client.write(request() + request("POST") + request("HEAD"))
    for to_head in (False, False, True):
        await client.reply(to_head=to_head)
    assert [line.method for line in await lines(world, 3)] == [b"GET", b"POST", b"HEAD"]


async def test_a_session_is_named_from_its_first_request_on(world: World) -> None:
    world.function(affinity="header:X-Key")
    for _ in range(2):
        await world.ask(request(headers="X-Key: a\r\n"))
    (session,) = world.sessions.of()
    assert [line.session for line in await lines(world, 2)] == [session.id] * 2


async def test_an_mcp_session_is_named_from_its_first_request_on(world: World) -> None:
    world.function(Streamable(), kind="mcp", facts=STREAMABLE)
    opened = await world.ask(request("POST", "/fn/fn/mcp", call(0, "initialize")))
    headers = f"Mcp-Session-Id: {opened.get('mcp-session-id')}\r\n"
    await world.ask(request("POST", "/fn/fn/mcp", call(1), headers=headers))
    (session,) = world.sessions.of()
    assert [line.session for line in await lines(world, 2)] == [session.id] * 2


async def test_a_session_that_stays_on_an_old_version_is_told_with_that(world: World) -> None:
    world.function(affinity="header:X-Key")
    await world.ask(request(headers="X-Key: a\r\n"))
    world.function(affinity="header:X-Key")
    await world.ask(request(headers="X-Key: a\r\n"))
    await world.ask(request(headers="X-Key: b\r\n"))
    assert [line.version for line in await lines(world, 3)] == [1, 1, 2]


# What was refused.


@pytest.mark.parametrize(
    ("asked", "status", "principal"),
    [
        (request(), 401, "anonymous"),
        (request("POST", body=b"x" * 11, headers=BEARER), 413, "project"),
        (request("POST", "/fn/fn/mcp", headers=BEARER + "Mcp-Session-Id: no\r\n"), 404, "project"),
        (request(headers=BEARER + "Origin: http://elsewhere\r\n"), 403, "project"),
        (request("POST", "/fn/fn/sse", headers=BEARER), 405, "project"),
        (request("POST", "/fn/fn/messages/", headers=BEARER), 404, "project"),
        (request("GET", "/fn/fn/mcp", headers=BEARER), 400, "project"),
    ],
)
async def test_what_met_no_instance_is_told_too(
    world: World, asked: bytes, status: int, principal: str
) -> None:
    world.function(kind="mcp", auth="key", limits={"body": 10})
    reply = await world.ask(asked)
    assert reply.status == status
    (line,) = await lines(world)
    assert (line.function, line.version, line.instance, line.session) == ("fn", 1, "", "")
    assert (line.status, line.principal) == (status, principal)
    assert line.request.decode() == reply.get("x-request-id")


async def test_coves_own_paths_have_no_lines(world: World) -> None:
    world.function()
    for path in ("/healthz", "/readyz", "/metrics", "/v1/functions", "/fn/nobody/", "/nowhere"):
        await world.ask(request(path=path))
    await world.ask(request(host="elsewhere.example"))
    await world.ask(request())
    (line,) = await lines(world)
    assert line.target == b"/fn/fn/"


async def test_a_body_that_stalls_is_told_as_it_was_answered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cove.gateway.http._BODY_SECONDS", 0.1)
    world.function()
    client = await world.client()
    client.write(request("POST", body=b"whole")[:-1])
    assert (await client.reply()).status == 408
    (line,) = await lines(world)
    assert line.status == 408


async def test_a_body_that_goes_wrong_is_told_as_it_was_answered(world: World) -> None:
    world.function()
    client = await world.client()
    client.write(
        "POST /fn/fn/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        "5\r\nhello\r\n"
    )
    await world.until(lambda: bool(world.pools[0].ready) and world.one().inflight == 1)
    client.write("zz\r\n")
    assert (await client.reply()).status == 400
    (line,) = await lines(world)
    assert line.status == 400


async def test_answers_that_fail_are_told_with_their_error(world: World) -> None:
    world.function(saying(STREAM, chunk(PROGRESS)), kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call(1)))
    await client.head()
    await client.chunk()
    instance = world.one()
    world.ends(instance, Exit(code=1))
    (line,) = await lines(world)
    assert (line.status, line.instance) == (502, instance.id)


async def test_who_is_cut_by_the_drain_is_told(world: World) -> None:
    gate = Gate()
    world.function(serving(gate))
    client = await world.client()
    client.write(request())
    await gate.next()
    await asyncio.wait_for(world.gateway.drain(0.05), BOUND)
    (line,) = await lines(world)
    assert line.status == 503


# Who left.


async def test_a_client_that_leaves_before_its_answer_is_499(world: World) -> None:
    backend = Watched()
    world.function(backend, kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call(1), headers=MODERN))
    await wait(backend.asked)
    client.abort()
    (line,) = await lines(world)
    assert (line.status, line.instance) == (499, world.one().id)


async def test_a_client_that_leaves_while_it_waits_is_499(world: World) -> None:
    world.driver.start_delay = 0.2
    world.function()
    client = await world.client()
    client.write(request())
    await world.until(lambda: world.pools[0].waiting == 1)
    client.abort()
    (line,) = await lines(world)
    assert (line.status, line.instance) == (499, "")


async def test_a_legacy_client_that_leaves_is_499_when_its_request_ends(world: World) -> None:
    gate = Gate()
    world.function(serving(gate), kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call(1)))
    await gate.next()
    client.abort()
    await world.until(lambda: not world.gateway._connections)
    assert world.lines == []
    gate.open.set()
    (line,) = await lines(world)
    assert line.status == 499
    assert world.counted() == {200: 1}


async def test_a_client_that_leaves_within_its_answer_is_told_with_that(world: World) -> None:
    world.function(saying(b"HTTP/1.1 201 Made\r\nContent-Length: 10\r\n\r\nhello"))
    client = await world.client()
    client.write(request())
    await client.head()
    client.abort()
    (line,) = await lines(world)
    assert line.status == 201


@pytest.mark.parametrize("path", ["/fn/fn/sse", "/fn/fn/messages/?session_id=x", "/fn/fn/mcp"])
async def test_a_client_that_leaves_a_bridge_before_its_answer_is_499(
    world: World, path: str
) -> None:
    world.driver.start_delay = 0.2
    world.function(Sse(), kind="mcp", facts=SSE)
    client = await world.client()
    method = "GET" if path.endswith("sse") else "POST"
    whole = request(method, path, call(1, "initialize") if method == "POST" else b"")
    client.write(whole[:-5] if "messages" in path else whole)
    await asyncio.sleep(0.05)
    client.abort()
    if "messages" in path:  # nobody has that session: it was answered at once
        assert [line.status for line in await lines(world)] == [404]
    else:
        assert [line.status for line in await lines(world)] == [499]


async def test_a_client_that_leaves_before_it_was_looked_at_is_499(world: World) -> None:
    world.function(Sse(), kind="mcp", facts=SSE)
    _, connection = await wire(world)
    connection.data_received(request(path="/fn/fn/sse"))
    connection.connection_lost(None)  # before the stream's task has begun
    assert [line.status for line in await lines(world)] == [499]


# Streams, each at its end.


async def test_a_tunnel_is_told_when_it_ends(world: World) -> None:
    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await receive(reader)
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        await reader.read()

    world.function(app)
    client = await world.client()
    client.write(request(headers=UPGRADE))
    await client.head()
    await asyncio.sleep(0.1)
    assert world.lines == []
    client.abort()
    (line,) = await lines(world)
    assert (line.status, line.instance) == (101, world.one().id)
    assert line.seconds > 0.1


async def leaves(world: World, client: Client) -> None:
    await asyncio.sleep(0.05)
    assert world.lines == []
    client.abort()


async def test_a_held_stream_is_told_when_it_ends(world: World) -> None:
    world.function(kind="mcp", facts=Facts("http", "/mcp", modern=False, stateful=False))
    client = await world.client()
    client.write(request(path="/fn/fn/mcp"))
    assert (await client.head()).status == 200
    await leaves(world, client)
    (line,) = await lines(world)
    assert (line.status, line.instance) == (200, "")  # there was none, and it was held
    assert line.seconds > 0.04


async def test_a_stream_that_is_passed_on_is_told_with_its_instance(world: World) -> None:
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
    client = await world.client()
    client.write(request(path="/fn/fn/mcp", headers=session))
    await client.head()
    client.abort()
    told = (await lines(world, 2))[1]
    assert (told.instance, told.session) == (world.one().id, world.sessions.of()[0].id)


async def test_a_refusal_of_the_servers_own_is_told_as_that(world: World) -> None:
    world.function(Streamable(), kind="mcp", facts=STREAMABLE)
    opened = await world.ask(request("POST", "/fn/fn/mcp", call(0, "initialize")))
    session = f"Mcp-Session-Id: {opened.get('mcp-session-id')}\r\n"
    assert (await world.ask(request(path="/fn/fn/mcp", headers=session))).status == 405
    assert [line.status for line in await lines(world, 2)] == [200, 405]
    assert world.counted() == {200: 1, 405: 1}


@pytest.mark.parametrize("native", [True, False])
async def test_an_sse_session_is_told_with_what_it_was_asked(world: World, native: bool) -> None:
    backend = Sse() if native else Streamable()
    world.function(backend, kind="mcp", facts=SSE if native else STREAMABLE)
    async with sse(world) as stream:
        (session,) = world.sessions.of()
        assert await stream.post(call(1)) == 202
        assert (await stream.next())["id"] == 1
        instance = world.one().id
    told = await lines(world, 3)
    assert [(line.method, line.status) for line in told] == [
        *((b"POST", 202), (b"POST", 202), (b"GET", 200)),
    ]
    assert {(line.session, line.instance) for line in told} == {(session.id, instance)}


async def test_a_bridged_session_is_told_with_what_it_was_asked(world: World) -> None:
    world.function(Sse(), kind="mcp", facts=SSE)
    opened = await world.ask(request("POST", "/fn/fn/mcp", call(0, "initialize")))
    headers = f"Mcp-Session-Id: {opened.get('mcp-session-id')}\r\n"
    (session,) = world.sessions.of()
    for body in (call(1), b'{"jsonrpc":"2.0","method":"notifications/initialized"}', b"no JSON"):
        await world.ask(request("POST", "/fn/fn/mcp", body, headers=headers))
    await world.ask(request("DELETE", "/fn/fn/mcp", headers=headers))
    await world.until(lambda: len(world.lines) == 5)
    assert [line.status for line in world.lines] == [200, 200, 202, 400, 200]
    known = [line.session for line in world.lines]
    assert known == [session.id, session.id, session.id, "", session.id]


@pytest.mark.parametrize("leaves_", [True, False])
async def test_what_waits_beside_a_full_instance_is_told_once(world: World, leaves_: bool) -> None:
    backend = Streamable(held=("tools/call",))
    world.function(backend, kind="mcp", facts=STREAMABLE, scale={"concurrency": 1})
    opened = await world.ask(request("POST", "/fn/fn/mcp", call(0, "initialize")))
    headers = f"Mcp-Session-Id: {opened.get('mcp-session-id')}\r\n"
    client, note = await world.client(), await world.client()
    client.write(request("POST", "/fn/fn/mcp", call(1), headers=headers))
    await world.until(lambda: len(backend.asked) == 2)
    full = await world.ask(request("POST", "/fn/fn/mcp", call(2), headers=headers))
    assert (full.status, full.json["id"]) == (429, 2)
    body = b'{"jsonrpc":"2.0","method":"notifications/cancelled"}'
    whole = request("POST", "/fn/fn/mcp", body, headers=headers)
    note.write(whole[:-3])
    await asyncio.sleep(0.05)
    if leaves_:
        note.abort()
    else:
        note.write(whole[-3:])
        assert (await note.reply()).status == 202
    backend.open.set()
    assert (await client.reply()).status == 200
    told = sorted(line.status for line in await lines(world, 4))
    assert told == ([200, 200, 429, 499] if leaves_ else [200, 200, 202, 429])


# Whose an instance's output is.


async def test_what_an_instance_prints_is_its_only_requests(world: World) -> None:
    gate = Gate()
    world.function(serving(gate), affinity="header:X-Key", scale={"max": 1})
    first, second = await world.client(), await world.client()
    first.write(request(headers="X-Key: a\r\n"))
    await gate.next()
    instance, (session,) = world.one(), world.sessions.of()
    _, asked = gate.last
    assert instance.serving == ((asked.get("x-request-id") or "").encode(), session.id)
    second.write(request(headers="X-Key: b\r\n"))
    await gate.next()
    assert instance.serving is None  # whose of the two?
    gate.open.set()
    replies = [await first.reply(), await second.reply()]
    assert instance.serving is None
    third = await world.ask(request(headers="X-Key: a\r\n"))
    assert instance.serving == ((third.get("x-request-id") or "").encode(), session.id)
    assert len({reply.get("x-request-id") for reply in [*replies, third]}) == 3


async def test_what_an_instance_prints_at_its_start_is_nobodys_then_the_first_ones(
    world: World,
) -> None:
    world.function()
    reply = await world.ask(request())
    assert world.one().serving == ((reply.get("x-request-id") or "").encode(), "")


async def test_a_session_that_opens_is_known_for_its_first_request(world: World) -> None:
    world.function(Streamable(), kind="mcp", facts=STREAMABLE)
    reply = await world.ask(request("POST", "/fn/fn/mcp", call(0, "initialize")))
    (session,) = world.sessions.of()
    assert world.one().serving == ((reply.get("x-request-id") or "").encode(), session.id)


@pytest.mark.parametrize("native", [True, False])
async def test_what_an_instance_prints_is_an_sse_sessions(world: World, native: bool) -> None:
    held = ("tools/call",)
    backend = Sse(late=held) if native else Streamable(held=held)
    world.function(backend, kind="mcp", facts=SSE if native else STREAMABLE)
    async with sse(world) as stream:
        (session,) = world.sessions.of()
        reply = await world.ask(request("POST", stream.path, call(1)))
        asked = ((reply.get("x-request-id") or "").encode(), session.id)
        assert world.one().serving == asked
        if not native:
            await world.ask(request("POST", stream.path, call(2)))
            assert world.one().serving is None
        backend.open.set()


async def test_what_an_instance_prints_is_a_bridged_sessions(world: World) -> None:
    world.function(Sse(), kind="mcp", facts=SSE)
    reply = await world.ask(request("POST", "/fn/fn/mcp", call(0, "initialize")))
    (session,) = world.sessions.of()
    assert world.one().serving == ((reply.get("x-request-id") or "").encode(), session.id)


async def test_what_is_said_beside_a_full_instance_makes_its_output_nobodys(world: World) -> None:
    gate = Gate()

    async def app(launch: Launch, asked: Asked) -> bytes:
        if b"initialize" in asked.body:
            return answer(result(0), headers="Mcp-Session-Id: own\r\n")
        return await gate(launch, asked) if b"tools" in asked.body else answer(b"")

    world.function(serving(app), kind="mcp", scale={"concurrency": 1}, facts=STREAMABLE)
    opened = await world.ask(request("POST", "/fn/fn/mcp", call(0, "initialize")))
    headers = f"Mcp-Session-Id: {opened.get('mcp-session-id')}\r\n"
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call(1), headers=headers))
    await gate.next()
    assert world.one().serving is not None
    note = b'{"jsonrpc":"2.0","method":"notifications/progress"}'
    await world.ask(request("POST", "/fn/fn/mcp", note, headers=headers))
    assert world.one().serving is None
    gate.open.set()
    assert (await client.reply()).status == 200
