"""What an instance that ends, a client that leaves or a cancelled wait must not leave behind."""

from __future__ import annotations

import asyncio
import gc
import warnings
import weakref
from typing import Any

import pytest

from cove.drivers.base import Exit, Launch
from cove.engine.instance import Instance
from cove.engine.sessions import Session
from cove.gateway.forward import Forward
from gateway.test_retries import wire
from gateway.test_streams import SSE, STREAMABLE, Sse, Streamable, call, result, sse
from gateway.world import BOUND, Asked, Gate, World, answer, request, serving


def empty(world: World) -> bool:
    """No claim, no slot, no task."""
    return world.idle() and all(not i.slots for pool in world.pools for i in pool.instances)


async def test_who_leaves_while_a_loss_is_looked_into_leaves_no_claim(world: World) -> None:
    world.function(serving(lambda launch, asked: None))  # it cuts connections, and lives
    client = await world.client()
    client.write(request("POST"))
    await world.until(lambda: any("_explain" in repr(t) for t in world.gateway._tasks))
    client.abort()
    await world.until(world.idle)
    assert world.one().inflight == 0
    assert [line.status for line in world.lines] == [499]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("kind", ["web", "mcp"])
async def test_who_leaves_before_the_first_step_leaves_no_claim(
    world: World, kept: bool, kind: Any
) -> None:
    world.function(kind=kind, affinity="none")
    await world.ask(request("POST", "/fn/fn/mcp", call(1)))
    if not kept:
        for upstream in world.routes.get("fn").upstreams.values():  # type: ignore[union-attr]
            upstream.close()
    _, connection = await wire(world)
    connection.data_received(request("POST", "/fn/fn/mcp", call(1))[:-3])
    connection.connection_lost(None)  # in the same turn of the loop
    await world.until(world.idle)
    assert world.one().inflight == 0
    assert [line.status for line in world.lines] == [200, 499]


async def test_a_stream_whose_client_leaves_at_once_is_not_begun(world: World) -> None:
    world.function(Sse(), kind="mcp", facts=SSE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, connection = await wire(world)
        connection.data_received(request(path="/fn/fn/sse"))
        connection.connection_lost(None)
        await world.until(world.idle)
        gone = weakref.ref(connection)
        connection._transport.abort()
        del connection
        await world.until(lambda: gc.collect() >= 0 and gone() is None)
    assert [str(w.message) for w in caught] == []
    assert world.driver.started == []


@pytest.mark.parametrize("bridged", [True, False])
@pytest.mark.parametrize("per_instance", [1, 20])
async def test_an_initialize_nobody_hears_the_answer_of_keeps_no_session(
    world: World, bridged: bool, per_instance: int
) -> None:
    deleted: list[Asked] = []
    gate = Gate()

    async def app(launch: Launch, asked: Asked) -> bytes:
        if asked.method == "DELETE":
            deleted.append(asked)
            return answer()
        await gate(launch, asked)
        return answer(result(0), headers="Mcp-Session-Id: own\r\n")

    backend = Sse(late=("initialize",)) if bridged else serving(app)
    facts = SSE if bridged else STREAMABLE
    world.function(backend, kind="mcp", facts=facts, session={"per_instance": per_instance})
    if bridged:
        world.driver.start_delay = 0.1
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call(0, "initialize")))
    await world.until(lambda: bool(gate.seen) or bool(world.pools[0].waiting))
    client.abort()
    await world.until(lambda: not world.gateway._connections)
    gate.open.set()
    if isinstance(backend, Sse):
        backend.open.set()
    await world.until(lambda: bool(world.pools[0].ready) and empty(world))
    assert world.sessions.of() == []
    if not bridged:
        assert [asked.get("mcp-session-id") for asked in deleted] == ["own"]


async def test_a_session_that_ends_while_its_instance_starts_leaves_nothing(world: World) -> None:
    gate = Gate()
    world.driver.start_delay = 0.2
    world.function(serving(gate), affinity="header:X-Key", session={"per_instance": 1})
    client, other = await world.client(), await world.client()
    client.write(request(headers="X-Key: a\r\n"))
    await world.until(lambda: len(world.gateway._tasks) == 1)
    (session,) = world.sessions.of()
    world.sessions.end(session, 0.0)  # as it does when its time has come
    first, _ = await gate.next()
    other.write(request(headers="X-Key: b\r\n"))
    second, _ = await gate.next()
    assert first.id != second.id  # nobody else's request is where a session is
    gate.open.set()
    assert [(await each.reply()).status for each in (client, other)] == [200, 200]
    assert sorted(s.key for s in world.sessions.of()) == ["a", "b"]
    assert session not in world.sessions.of()
    await world.until(world.idle)
    assert [i.slots for i in world.pools[0].ready] == [1, 1]


async def test_a_session_is_not_opened_on_an_instance_that_has_ended(world: World) -> None:
    async def app(launch: Launch, asked: Asked) -> bytes:
        return answer(result(0), headers="Mcp-Session-Id: own\r\n")

    world.function(serving(app), kind="mcp", facts=STREAMABLE)
    learn = world.affinity.learn

    def late(*args: Any) -> bytes:
        world.driver.running[world.one().id].exited.set_result(Exit(code=1))
        instance = world.one()
        world.supervisor._exited(world.pools[0], instance, Exit(code=1))
        return learn(*args)

    world.affinity.learn = late  # type: ignore[method-assign]
    await world.ask(request("POST", "/fn/fn/mcp", call(0, "initialize")))
    assert world.sessions.of() == []
    await world.until(world.idle)


async def test_who_joins_a_session_that_is_lost_in_that_moment_is_served_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.driver.start_delay = 0.1
    pool = world.function(affinity="header:X-Key")
    place = world.sessions.place

    def placed(session: Session, instance: Instance) -> None:
        place(session, instance)
        if len(world.driver.started) == 1:
            world.crash(instance)

    monkeypatch.setattr(world.sessions, "place", placed)
    clients = [await world.client() for _ in range(3)]
    for client in clients:
        client.write(request(headers="X-Key: a\r\n"))
    await world.until(lambda: len(world.gateway._tasks) == 3)
    replies = [await client.reply() for client in clients]
    assert [reply.status for reply in replies] == [200, 200, 200]
    assert {reply.json["instance"] for reply in replies} == {world.one().id}
    await world.until(world.idle)
    assert pool.waiting == 0
    assert len(world.sessions.of()) == 1


@pytest.mark.parametrize("transport", ["sse", "bridge", "native"])
async def test_an_instance_that_ends_takes_its_streams_sessions_along(
    world: World, transport: str
) -> None:
    if transport == "bridge":
        world.function(Sse(), kind="mcp", facts=SSE)
        await world.ask(request("POST", "/fn/fn/mcp", call(0, "initialize")))
        instance = world.one()
        assert instance.slots == 1
        world.crash(instance)
    else:
        native = transport == "native"
        backend = Sse() if native else Streamable()
        world.function(backend, kind="mcp", facts=SSE if native else STREAMABLE)
        async with sse(world) as stream:
            instance = world.one()
            assert instance.slots == 1
            world.crash(instance)
            assert [left async for left in stream.events] == []
    await world.until(lambda: (instance.slots, instance.inflight) == (0, 0))
    await world.until(world.idle)
    assert world.sessions.of() == []


async def test_a_deadline_in_the_first_turn_leaves_no_claim(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.function()
    await world.ask(request())
    for upstream in world.routes.get("fn").upstreams.values():  # type: ignore[union-attr]
        upstream.close()
    begun: list[Forward] = []
    start = Forward.start

    def starting(self: Forward) -> None:
        begun.append(self)
        start(self)

    monkeypatch.setattr(Forward, "start", starting)
    client, connection = await wire(world)
    connection.data_received(request())
    begun[0]._timed_out()
    assert (await client.reply()).status == 504
    await world.until(world.idle)
    assert world.one().inflight == 0


async def test_what_is_drained_in_its_first_turn_is_answered(world: World) -> None:
    world.function(kind="mcp")
    client, connection = await wire(world)
    connection.data_received(request("POST", "/fn/fn/mcp", call(3)))
    await asyncio.wait_for(world.gateway.drain(0), BOUND)
    reply = await client.reply()
    assert (reply.status, reply.json["id"]) == (503, 3)
    assert world.idle()
