"""What is asked again on another instance, and what never is: counted where it is executed."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from cove import runtimes
from cove.drivers.base import Exit, Launch
from cove.drivers.fake import FakeRunning
from cove.drivers.process import ProcessDriver
from cove.engine.instance import Instance
from cove.engine.pool import Pool
from cove.gateway.fetch import fetch, plain_head
from cove.gateway.http import Connection
from cove.model import Plan
from cove.states import InstanceState
from gateway.test_streams import SSE, STREAMABLE, Sse, Streamable, call, sse
from gateway.world import Asked, Client, Gate, World, answer, receive, request, serving

POST = request("POST", "/fn/fn/", b"{}")


class Counting:
    """A backend that counts what it executes, and whose connections a test can close."""

    def __init__(self) -> None:
        self.executed: list[tuple[str, Asked]] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def __call__(
        self, launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.writers.append(writer)
        while (asked := await receive(reader)) is not None:
            self.executed.append((launch.id, asked))
            writer.write(answer(launch.id.encode()))

    def hang_up(self) -> None:
        """Close everything now."""
        for writer in self.writers:
            if not writer.transport.is_closing():
                close(writer)
        self.writers.clear()


def close(writer: asyncio.StreamWriter) -> None:
    """As a server that closes: now, not at the loop's next turn."""
    with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as sock:
        sock.shutdown(socket.SHUT_RDWR)


async def wire(world: World) -> tuple[Client, Connection]:
    """A client, and Cove's side of its connection."""
    client = await world.client()
    await client.ask(request(path="/healthz"))
    port = client.writer.get_extra_info("sockname")[1]
    (found,) = [
        c for c in world.gateway._connections if c._transport.get_extra_info("peername")[1] == port
    ]
    return client, found


# Kept connections.


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_kept_connection_that_closes_as_we_write_costs_nothing(
    world: World, method: str
) -> None:
    backend = Counting()
    world.function(backend)
    client, connection = await wire(world)
    body = b"whole" if method == "POST" else b""
    for count in range(1, 4):
        assert (await client.ask(request(method, "/fn/fn/", body))).status == 200
        backend.hang_up()
        connection.data_received(request(method, "/fn/fn/again", body))  # before Cove can know
        reply = await client.reply()
        assert (reply.status, len(backend.executed)) == (200, 2 * count)
    assert {asked.body for _, asked in backend.executed} == {body}


async def test_a_body_that_came_late_goes_along(world: World) -> None:
    backend = Counting()
    world.function(backend)
    client, connection = await wire(world)
    assert (await client.ask(POST)).status == 200
    backend.hang_up()
    connection.data_received(POST[:-2])
    connection.data_received(POST[-2:])
    assert (await client.reply()).status == 200
    assert [asked.body for _, asked in backend.executed] == [b"{}", b"{}"]


async def test_a_body_too_large_to_keep_is_not_sent_again(world: World) -> None:
    backend = Counting()
    world.function(backend)
    client, connection = await wire(world)
    assert (await client.ask(POST)).status == 200
    backend.hang_up()
    connection.data_received(request("POST", "/fn/fn/", b"x" * 70_000))
    assert (await client.reply()).status == 502
    assert len(backend.executed) == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_what_an_instance_died_of_is_not_asked_of_another(world: World, method: str) -> None:
    gate, seen = Gate(), 0

    async def app(launch: Launch, asked: Asked) -> bytes | None:
        nonlocal seen
        seen += 1
        return answer() if seen == 1 else await gate(launch, asked)

    world.function(serving(app))
    client = await world.client()
    assert (await client.ask(request(method))).status == 200  # its connection is kept
    client.write(request(method))
    await gate.next()
    world.ends(world.one(), Exit(signal=9))
    reply = await client.reply()
    assert (reply.status, reply.json["error"]["reason"]) == (502, {"signal": 9})
    assert seen == 2


async def test_an_idle_instance_that_died_is_not_asked(world: World) -> None:
    backend = Counting()
    world.function(backend)
    client, connection = await wire(world)
    first = (await client.ask(POST)).body
    backend.hang_up()
    world.crash(world.one())
    connection.data_received(POST)  # nobody knows yet: to the kept connection it goes
    reply = await client.reply()
    assert (reply.status, len(backend.executed)) == (200, 2)
    assert reply.body != first


async def test_what_cove_itself_asks_is_asked_again_too(world: World) -> None:
    backend = Counting()
    world.function(backend)
    assert (await world.ask(POST)).status == 200
    (upstream,) = world.routes.get("fn").upstreams.values()  # type: ignore[union-attr]
    assert len(upstream._idle) == 1
    backend.hang_up()
    head = plain_head(b"POST", b"/again", [], port=80, length=2)
    async with fetch(upstream, head, b"{}") as response:
        assert (response.status, len(backend.executed)) == (200, 2)


# Instances that go before they are reached.


def on_first_connect(monkeypatch: pytest.MonkeyPatch, act: Callable[[FakeRunning], Any]) -> None:
    """`act` when the first request of all is about to connect."""
    connect, acted = FakeRunning.connect, False

    async def connecting(self: FakeRunning) -> Any:
        nonlocal acted
        if not acted and any(i.inflight for i in instances(self)):
            acted = True
            act(self)
        return await connect(self)

    def instances(running: FakeRunning) -> list[Instance]:
        return [i for pool in pools for i in pool.instances if i.running is running]

    pools: list[Pool] = []
    adopt = Pool.__init__

    def made(self: Pool, *args: Any, **kwargs: Any) -> None:
        adopt(self, *args, **kwargs)
        pools.append(self)

    monkeypatch.setattr(Pool, "__init__", made)
    monkeypatch.setattr(FakeRunning, "connect", connecting)


@pytest.mark.parametrize("affinity", ["none", "header:X-Key", "principal"])
async def test_who_finds_the_door_shut_is_served_by_another(
    world: World, monkeypatch: pytest.MonkeyPatch, affinity: str
) -> None:
    on_first_connect(monkeypatch, lambda running: running.crash(7))
    backend = Counting()
    world.function(backend, affinity=affinity)
    reply = await world.ask(request("POST", headers="X-Key: a\r\n"))
    assert reply.status == 200
    assert [launch for launch, _ in backend.executed] == [world.one().id]
    assert len(world.driver.started) == 2
    await world.until(world.idle)


async def test_an_instance_that_is_told_to_stop_is_sent_nothing_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, connect = Gate(), FakeRunning.connect

    async def connecting(self: FakeRunning) -> Any:
        made = await connect(self)
        if first is not None and self is first.running:
            world.supervisor.stop(pool, first)
        return made

    async def app(launch: Launch, asked: Asked) -> bytes:
        return await gate(launch, asked) if asked.method == "GET" else answer(launch.id.encode())

    monkeypatch.setattr(FakeRunning, "connect", connecting)
    first: Instance | None = None
    pool = world.function(serving(app))
    holder = await world.client()
    holder.write(request())
    await gate.next()
    first = world.one()  # it has a request to finish, and time for that
    reply = await world.ask(POST)
    assert (reply.status, reply.body) == (200, world.driver.started[1].id.encode())
    gate.open.set()
    assert (await holder.reply()).body == first.id.encode()
    await world.until(world.idle)


async def test_an_instance_that_always_dies_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = FakeRunning.connect

    async def connecting(self: FakeRunning) -> Any:
        if any(i.inflight for pool in world.pools for i in pool.instances):
            self.crash(7)
        return await connect(self)

    monkeypatch.setattr(FakeRunning, "connect", connecting)
    world.function(kind="mcp")
    reply = await world.ask(request("POST", "/fn/fn/mcp", call(1)))
    assert (reply.status, reply.json["id"]) == (502, 1)
    assert reply.json["error"]["data"]["reason"] == {"exit_code": 7}
    assert len(world.driver.started) == 3
    await world.until(world.idle)


@pytest.mark.parametrize("affinity", ["none", "header:X-Key"])
@pytest.mark.parametrize("per_instance", [1, 20])
async def test_an_instance_that_goes_as_somebodys_turn_comes_is_not_theirs(
    world: World, monkeypatch: pytest.MonkeyPatch, affinity: str, per_instance: int
) -> None:
    gate, executed = Gate(), []
    scale = {"max": 1, "concurrency": 1}

    async def app(launch: Launch, asked: Asked) -> bytes:
        executed.append(launch.id)
        return await gate(launch, asked) if asked.path == "/hold" else answer(launch.id.encode())

    pool = world.function(
        serving(app), affinity=affinity, scale=scale, session={"per_instance": per_instance}
    )
    holder, waiter = await world.client(), await world.client()
    holder.write(request("POST", "/fn/fn/hold", headers="X-Key: a\r\n"))
    await gate.next()
    first = world.one()
    waiter.write(request("POST", headers="X-Key: b\r\n"))
    await world.until(lambda: pool.waiting == 1)
    if per_instance == 1 and affinity != "none":
        for session in world.sessions.of():
            if session.key == "a":  # makes room for the other's session
                world.sessions.end(session, 0.0)
    dispatch = pool._dispatch

    def dispatched() -> None:
        dispatch()
        if not pool.waiting and first.state is InstanceState.READY:
            world.crash(first)

    monkeypatch.setattr(pool, "_dispatch", dispatched)
    gate.open.set()
    assert (await holder.reply()).status == 200
    reply = await waiter.reply()
    assert (reply.status, reply.body) == (200, world.one().id.encode())
    assert executed == [first.id, world.one().id]
    for session in world.sessions.of():
        assert session.instance is world.one()
    await world.until(world.idle)
    assert world.one().slots == (affinity != "none")


async def test_a_stream_whose_turn_comes_as_its_instance_goes_is_opened_at_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale, session = {"max": 1}, {"per_instance": 1}
    pool = world.function(Streamable(), kind="mcp", facts=STREAMABLE, scale=scale, session=session)
    waiter = await world.client()
    async with sse(world):
        first = world.one()
        waiter.write(request(path="/fn/fn/sse"))
        await world.until(lambda: pool.waiting == 1)
        dispatch = pool._dispatch

        def dispatched() -> None:
            dispatch()
            if not pool.waiting and first.state is InstanceState.READY:
                world.crash(first)

        monkeypatch.setattr(pool, "_dispatch", dispatched)
    assert (await waiter.head()).status == 200
    assert (world.one() is not first, world.one().slots) == (True, 1)
    waiter.abort()
    await world.until(lambda: (world.one().slots, world.one().inflight) == (0, 0))


async def test_a_stream_that_finds_the_door_shut_is_opened_at_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_first_connect(monkeypatch, lambda running: running.crash(7))
    world.function(Sse(), kind="mcp", facts=SSE)
    async with sse(world):
        assert len(world.driver.started) == 2
        assert (world.one().inflight, world.one().slots) == (0, 1)
    await world.until(world.idle)


async def test_a_bridge_that_finds_the_door_shut_is_opened_at_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_first_connect(monkeypatch, lambda running: running.crash(7))
    world.function(Sse(), kind="mcp", facts=SSE)
    reply = await world.ask(request("POST", "/fn/fn/mcp", call(1, "initialize")))
    assert reply.status == 200
    assert len(world.driver.started) == 2
    await world.until(lambda: (world.one().inflight, world.one().slots) == (0, 1))


# Decisions that are void by then.


async def test_who_waited_for_what_was_removed_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(running: FakeRunning) -> None:
        world.routes.remove("fn")
        running.crash(7)

    on_first_connect(monkeypatch, remove)
    world.function(kind="mcp")
    reply = await world.ask(request("POST", "/fn/fn/mcp", call(1)))
    assert (reply.status, reply.json["id"]) == (404, 1)
    assert "fn was removed" in reply.json["error"]["message"]
    await world.until(world.idle)
    assert [line.status for line in world.lines] == [404]


async def test_who_waited_for_an_old_version_is_served_by_the_new_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = Counting(), Counting()

    def deploy(running: FakeRunning) -> None:
        world.function(new)
        running.crash(7)

    on_first_connect(monkeypatch, deploy)
    world.function(old)
    assert (await world.ask(request("POST", "/fn/fn/", b"kept"))).status == 200
    assert old.executed == []
    assert [asked.body for _, asked in new.executed] == [b"kept"]
    await world.until(world.idle)
    assert [(line.version, line.status) for line in world.lines] == [(2, 200)]


async def test_nobody_waits_where_nobody_looks(world: World) -> None:
    """Between the decision and the wait, the pool went."""
    pool = world.function(Counting())
    client, connection = await wire(world)
    connection.data_received(POST)
    pool.live = False  # and its supervisor forgets it, before the request's task has begun
    world.supervisor._pools.discard(pool)
    new = Counting()
    world.function(new)
    assert (await client.reply()).status == 200
    assert len(new.executed) == 1


# Real programs.

MORTAL = """
import os, socket, threading
def serve(caller):
    while said := caller.recv(65536):
        number = said.split(b"/n/")[1].split(b" ")[0]
        with open(%r, "ab", buffering=0) as log:
            log.write(number + b"\\n")
        if said.endswith(b"die"):
            os._exit(7)
        caller.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
while True:
    threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
"""


@pytest.fixture
async def mortal(world: World, tmp_path: Path) -> AsyncIterator[Path]:
    driver = ProcessDriver(Path(runtimes.__file__).parent / "serve.py", tmp_path / "driver")
    world.supervisor._drivers = {"process": driver}
    pool = world.function(scale={"concurrency": 1, "max": 2})
    log = tmp_path / "executed"
    plan = Plan((sys.executable, "-c", MORTAL % str(log)), {}, str(tmp_path), None, None)
    pool.version = dataclasses.replace(pool.version, plan=plan)
    yield log
    await driver.close()


async def test_no_request_is_executed_twice_whoever_dies(world: World, mortal: Path) -> None:
    numbers = itertools.count()
    answered: dict[int, int] = {}

    async def caller(share: int) -> None:
        for step in range(8):
            number = next(numbers)
            verb = "die" if share == 0 and step in (2, 5) else "live"
            path = f"/fn/fn/n/{number}"
            reply = await world.ask(request("POST", path, verb.encode()))
            answered[number] = reply.status

    async def killer() -> None:
        for _ in range(6):
            await asyncio.sleep(0.1)
            for pool in world.pools:
                for instance in pool.ready[:1]:
                    if instance.pid is not None and not instance.inflight:
                        with contextlib.suppress(ProcessLookupError):  # it was quicker
                            os.kill(instance.pid, signal.SIGKILL)

    await asyncio.gather(*(caller(share) for share in range(3)), killer())
    executed = [int(line) for line in mortal.read_text().split()]
    assert len(executed) == len(set(executed))
    assert {n for n, status in answered.items() if status == 200} <= set(executed)
    assert set(answered.values()) <= {200, 502}
    assert list(answered.values()).count(200) >= 12
    await world.until(world.idle)
