"""Instances that die under their requests: what callers are told, and on whose stream."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

import pytest

from cove.drivers.base import Exit, Launch
from cove.errors import CoveError
from cove.gateway.loss import lost
from cove.model import MIB
from gateway.test_streams import SSE, STREAMABLE, Sse, Streamable, call, event, result, sse
from gateway.world import BOUND, App, Client, Gate, World, receive, request, serving

EXITS = [
    (Exit(code=7), "exit code 7", {"exit_code": 7}),
    (Exit(signal=11), "killed by signal 11", {"signal": 11}),
    (
        Exit(oom=True, memory=64 * MIB),
        "killed: out of memory, over its 64 MiB",
        {"oom": True, "memory": 64 * MIB},
    ),
]
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PROGRESS = event(b'{"jsonrpc":"2.0","method":"notifications/progress","params":{}}')


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def saying(*parts: bytes) -> App:
    """A backend that says so much and then nothing more."""

    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if await receive(reader) is not None:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.01)
            await reader.read()

    return app


async def until_asked(world: World) -> None:
    await world.until(lambda: any(i.inflight for pool in world.pools for i in pool.instances))


# Before the answer.


@pytest.mark.parametrize(("how", "words", "reason"), EXITS)
async def test_an_instance_that_dies_under_a_call_is_told_with_its_reason(
    world: World, how: Exit, words: str, reason: dict[str, Any]
) -> None:
    gate = Gate()
    world.function(serving(gate), kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call("seven")))
    await gate.next()
    instance = world.one()
    world.ends(instance, how)
    reply = await client.reply()
    assert (reply.status, reply.json["jsonrpc"], reply.json["id"]) == (502, "2.0", "seven")
    error = reply.json["error"]
    assert words in error["message"]
    assert f"`cove logs fn --instance {instance.id}`" in error["message"]
    data = error["data"]
    assert (data["code"], data["reason"], data["instance"]) == (
        *("bad_gateway", reason, instance.id),
    )
    assert data["request_id"] == reply.get("x-request-id")
    assert (await client.ask(request(path="/healthz"))).status == 200


async def test_a_web_function_says_it_in_plain_json(world: World) -> None:
    gate = Gate()
    world.function(serving(gate))
    client = await world.client()
    client.write(request())
    await gate.next()
    world.ends(world.one(), Exit(signal=9))
    error = (await client.reply()).json["error"]
    assert (error["code"], error["reason"]) == ("bad_gateway", {"signal": 9})


async def test_memory_is_told_with_what_to_do(world: World) -> None:
    gate = Gate()
    world.function(serving(gate))
    client = await world.client()
    client.write(request())
    await gate.next()
    world.ends(world.one(), Exit(oom=True, memory=MIB))
    assert "raise limits.memory" in (await client.reply()).json["error"]["hint"]


async def test_an_instance_that_goes_on_is_not_said_to_have_ended(world: World) -> None:
    world.function(serving(lambda launch, asked: None), kind="mcp")
    reply = await world.ask(request("POST", "/fn/fn/mcp", call(1)))
    error = reply.json["error"]
    assert (reply.status, reply.json["id"]) == (502, 1)
    assert "its instance had not ended 0.25 s later" in error["message"]
    assert "reason" not in error["data"]
    assert error["data"]["instance"] == world.one().id


async def test_an_instance_that_is_being_stopped_is_said_to_be(world: World) -> None:
    gate = Gate()
    pool = world.function(serving(gate))
    client = await world.client()
    client.write(request())
    await gate.next()
    world.supervisor.stop(pool, instance := world.one())
    error = lost("fn", instance, "it hung up")
    assert "its instance was being stopped" in error.message
    gate.open.set()
    assert (await client.reply()).status == 200


# Whose error it is.


@pytest.mark.parametrize(
    ("body", "ident"),
    [
        (call("a"), "a"),
        (b"[" + call(3) + b"]", 3),
        (b"[" + call(3) + b"," + call(4) + b"]", None),
        (b'{"jsonrpc":"2.0","method":"notifications/initialized"}', None),
        (b"no JSON", None),
        (call(1, data="x" * 65_000), 1),
        (call(1, data="x" * 66_000), None),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_an_error_names_the_request_it_answers(
    world: World, body: bytes, ident: Any, at_once: bool
) -> None:
    world.function(serving(lambda launch, asked: None), kind="mcp")
    client = await world.client()
    whole = request("POST", "/fn/fn/mcp", body)
    if at_once:
        client.write(whole)
    else:
        for part in (whole[: -len(body)], whole[-len(body) : -3], whole[-3:]):
            client.write(part)
            await asyncio.sleep(0.05)
    reply = await client.reply()
    assert (reply.status, reply.json["id"]) == (502, ident)


async def test_a_call_in_chunks_is_answered_by_name_too(world: World) -> None:
    world.function(serving(lambda launch, asked: None), kind="mcp")
    client = await world.client()
    client.write(
        b"POST /fn/fn/mcp HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunk(call(8)[:10])
        + chunk(call(8)[10:])
        + b"0\r\n\r\n"
    )
    assert (await client.reply()).json["id"] == 8


async def test_errors_before_an_instance_name_their_request(world: World) -> None:
    gate = Gate()
    world.function(
        serving(gate), kind="mcp", scale={"max": 1, "concurrency": 1, "queue": 1}, limits={}
    )
    clients = [await world.client() for _ in range(2)]
    clients[0].write(request("POST", "/fn/fn/mcp", call(0)))
    await gate.next()
    clients[1].write(request("POST", "/fn/fn/mcp", call(1)))
    await world.until(lambda: world.pools[0].waiting == 1)
    full = await world.ask(request("POST", "/fn/fn/mcp", call("late")))
    assert (full.status, full.json["id"]) == (503, "late")
    unknown = await world.ask(
        request("POST", "/fn/fn/mcp", call("mine"), headers="Mcp-Session-Id: no\r\n")
    )
    assert (unknown.status, unknown.json["id"]) == (404, "mine")
    gate.open.set()
    assert [(await client.reply()).status for client in clients] == [200, 200]


async def test_a_call_that_takes_too_long_is_answered_by_name(world: World) -> None:
    world.function(saying(), kind="mcp", limits={"timeout": 0.1})
    reply = await world.ask(request("POST", "/fn/fn/mcp", call("slow")))
    assert (reply.status, reply.json["id"], reply.json["error"]["data"]["code"]) == (
        *(504, "slow", "timeout"),
    )


async def test_a_start_that_fails_is_answered_by_name(world: World) -> None:
    world.function(kind="mcp")
    world.driver.fail_start = CoveError("start_failed", "it would not")
    reply = await world.ask(request("POST", "/fn/fn/mcp", call(5)))
    assert (reply.status, reply.json["id"]) == (502, 5)


async def test_what_a_stranger_sends_is_not_looked_into(world: World) -> None:
    world.function(kind="mcp", auth="key")
    reply = await world.ask(request("POST", "/fn/fn/mcp", call(5)))
    assert (reply.status, reply.json["id"]) == (401, None)


# Within an answer.


async def events(client: Client) -> list[bytes]:
    """The events of a chunked reply, which must end properly."""
    body = b""
    while data := await client.chunk():
        body += data
    assert body.endswith(b"\n\n") or not body
    return body.split(b"\n\n")[:-1]


def data(raw: bytes) -> Any:
    return json.loads(raw.partition(b"data: ")[2])


@pytest.mark.parametrize(
    "said",
    [
        (),
        (chunk(PROGRESS),),
        (chunk(PROGRESS[:-2]), chunk(b"\n"), chunk(b"\n")),
        (chunk(PROGRESS.replace(b"\n", b"\r\n")),),
        (chunk(PROGRESS.replace(b"\n", b"\r")),),
        (chunk(b": comment\n\n"),),
    ],
)
async def test_a_stream_between_two_events_ends_with_the_error(
    world: World, said: tuple[bytes, ...]
) -> None:
    world.function(saying(STREAM, *said), kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call(1)))
    assert (await client.head()).status == 200
    for _ in said:
        await client.chunk()
    instance = world.one()
    world.ends(instance, Exit(code=3))
    (last,) = await events(client)
    answered = data(last)
    assert (answered["id"], answered["error"]["data"]["reason"]) == (1, {"exit_code": 3})
    assert f"--instance {instance.id}" in answered["error"]["message"]
    assert (await client.ask(request(path="/healthz"))).status == 200  # it ended properly
    await world.until(world.idle)
    assert world.counted() == {502: 1}


async def test_each_request_of_a_batch_has_its_error_event(world: World) -> None:
    batch = b"[" + call(1) + b"," + call("b") + b"]"
    world.function(saying(STREAM, chunk(event(result(1)))), kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", batch))
    await client.head()
    await client.chunk()
    world.ends(world.one(), Exit(code=1))
    assert [data(raw)["id"] for raw in await events(client)] == ["b"]  # 1 has its answer


async def test_a_request_that_was_answered_gets_no_error_too(world: World) -> None:
    world.function(saying(STREAM, chunk(event(result(1)))), kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call(1)))
    await client.head()
    await client.chunk()
    world.ends(world.one(), Exit(code=1))
    assert await client.chunk() == b""


@pytest.mark.parametrize(
    ("head", "said", "body"),
    [
        (STREAM, chunk(PROGRESS[:-1]), call(1)),  # within an event
        (STREAM, chunk(PROGRESS[:20]), call(1)),
        (STREAM, chunk(PROGRESS), b"no JSON"),  # whose error it would be is not known
        (STREAM, chunk(PROGRESS), call(1, data="x" * 70_000)),
        (
            STREAM.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"),
            chunk(b"\n\n"),
            call(1),
        ),
        (STREAM.replace(b"Transfer-Encoding: chunked", b"Content-Length: 999"), PROGRESS, call(1)),
        (STREAM.replace(b"text/event-stream", b"application/json"), chunk(b"{}\n\n"), call(1)),
    ],
)
async def test_what_cannot_be_ended_is_reset(
    world: World, head: bytes, said: bytes, body: bytes
) -> None:
    world.function(saying(head, said), kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", body))
    await client.head()
    async with asyncio.timeout(BOUND):
        await client.reader.readexactly(len(said))
    world.ends(world.one(), Exit(code=1))
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.chunk()
    await world.until(world.idle)


async def test_a_caller_of_http_1_0_is_told_too(world: World) -> None:
    world.function(saying(STREAM, chunk(PROGRESS)), kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call(1), version="1.0"))
    await client.head()
    await client.reader.readuntil(b"\n\n")
    world.ends(world.one(), Exit(code=1))
    assert data(await client.end())["id"] == 1


async def test_a_stream_of_a_web_function_is_reset(world: World) -> None:
    world.function(saying(STREAM, chunk(b"data: 1\n\n")))
    client = await world.client()
    client.write(request())
    await client.head()
    await client.chunk()
    world.ends(world.one(), Exit(code=1))
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.chunk()


async def test_a_stream_that_takes_too_long_ends_with_the_error(world: World) -> None:
    world.function(saying(STREAM, chunk(PROGRESS)), kind="mcp", limits={"timeout": 0.2})
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call(1)))
    await client.head()
    await client.chunk()
    (last,) = await events(client)
    assert (data(last)["id"], data(last)["error"]["data"]["code"]) == (1, "timeout")


async def test_what_came_with_the_break_is_not_lost(world: World) -> None:
    broken = b"zz\r\n"  # no chunk's size
    world.function(saying(STREAM + chunk(PROGRESS), chunk(PROGRESS) + broken), kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call(1)))
    await client.head()
    found = await events(client)
    assert [data(raw).get("id") for raw in found] == [None, None, 1]
    await world.until(world.idle)


async def test_an_answer_that_breaks_before_any_of_it_was_shown_is_a_bad_gateway(
    world: World,
) -> None:
    world.function(saying(STREAM + b"zz\r\n"), kind="mcp")
    client = await world.client()
    reply = await client.ask(request("POST", "/fn/fn/mcp", call(1)))
    assert (reply.status, reply.json["id"]) == (502, 1)
    assert (await client.ask(request(path="/healthz"))).status == 200


@pytest.mark.parametrize("dies", [True, False])
async def test_a_stream_whose_end_is_the_connections_is_ended_as_what_it_is(
    world: World, dies: bool
) -> None:
    head = STREAM.replace(b"Transfer-Encoding: chunked", b"Connection: close")

    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if await receive(reader) is not None:
            writer.write(head + PROGRESS)
            await hangs_up.wait()

    hangs_up = asyncio.Event()
    world.function(app, kind="mcp")
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call(1)))
    await client.head()
    await client.chunk()
    world.ends(world.one(), Exit(code=1)) if dies else hangs_up.set()
    assert [data(raw)["id"] for raw in await events(client)] == ([1] if dies else [])


async def test_an_answer_whose_end_is_the_connections_does_not_end_with_a_reset(
    world: World,
) -> None:
    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if await receive(reader) is not None:
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello")
            await broken.wait()
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    broken = asyncio.Event()
    world.function(app)
    client = await world.client()
    client.write(request())
    await client.head()
    assert await client.chunk() == b"hello"
    broken.set()
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.chunk()
    await world.until(world.idle)


# Bridges.


async def test_a_bridged_stream_ends_after_the_errors_it_owes(world: World) -> None:
    backend = Streamable(held=("tools/call",))
    world.function(backend, kind="mcp", facts=STREAMABLE)
    async with sse(world) as stream:
        for ident in (1, 2):
            assert await stream.post(call(ident)) == 202
        await world.until(lambda: len(backend.of("POST")) == 3)
        world.ends(world.one(), Exit(signal=9))
        errors = [await stream.next(), await stream.next()]
        assert {error["id"] for error in errors} == {1, 2}
        for error in errors:
            assert error["error"]["data"]["reason"] == {"signal": 9}
        assert [left async for left in stream.events] == []  # a proper end
    await world.until(world.idle)


async def test_a_native_stream_ends_after_the_errors_it_owes(world: World) -> None:
    backend = Sse(late=("tools/call",))
    world.function(backend, kind="mcp", facts=SSE)
    async with sse(world) as stream:
        assert await stream.post(call(1)) == 202
        world.ends(world.one(), Exit(signal=9))
        error = await stream.next()
        assert (error["id"], error["error"]["data"]["reason"]) == (1, {"signal": 9})
        assert [left async for left in stream.events] == []
    await world.until(world.idle)


async def test_sockets_that_close_before_the_exit_is_known_hide_no_reason(world: World) -> None:
    backend = Sse(late=("tools/call",))
    world.function(backend, kind="mcp", facts=SSE)
    async with sse(world) as stream:
        assert await stream.post(call(1)) == 202
        assert backend.stream is not None
        instance = world.one()
        backend.stream.transport.abort()
        await asyncio.sleep(0.05)
        world.ends(instance, Exit(code=4))
        assert (await stream.next())["error"]["data"]["reason"] == {"exit_code": 4}


async def test_nor_do_they_from_a_call_of_a_bridge(world: World) -> None:
    backend = Sse(late=("tools/call",))
    world.function(backend, kind="mcp", facts=SSE)
    reply = await world.ask(request("POST", "/fn/fn/mcp", call(0, "initialize")))
    session = f"Mcp-Session-Id: {reply.get('mcp-session-id')}\r\n"
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call(1), headers=session))
    assert (await client.head()).status == 200
    assert backend.stream is not None
    instance = world.one()
    backend.stream.transport.abort()
    await asyncio.sleep(0.05)
    world.ends(instance, Exit(code=4))
    (last,) = await events(client)
    assert data(last)["error"]["data"]["reason"] == {"exit_code": 4}


@pytest.mark.parametrize("accepted", [True, False])
async def test_a_call_of_a_bridge_to_a_native_server_is_told(world: World, accepted: bool) -> None:
    held = ("tools/call",)
    backend = Sse(late=held) if accepted else Sse(held=held)
    world.function(backend, kind="mcp", facts=SSE)
    reply = await world.ask(request("POST", "/fn/fn/mcp", call(0, "initialize")))
    session = f"Mcp-Session-Id: {reply.get('mcp-session-id')}\r\n"
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call(1), headers=session))
    await world.until(lambda: len(backend.posts) == 2)
    if accepted:
        assert (await client.head()).status == 200
    world.ends(world.one(), Exit(code=9))
    if accepted:
        (last,) = await events(client)
        said = data(last)
    else:
        answered = await client.reply()
        assert answered.status == 502
        said = answered.json
    assert (said["id"], said["error"]["data"]["reason"]) == (1, {"exit_code": 9})
    await world.until(world.idle)
