"""Scale from zero, to as many as are needed, and back."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from cove.drivers.base import Launch
from cove.errors import CoveError
from gateway.world import Asked, Gate, World, answer, receive, request, serving


async def test_a_request_is_held_through_a_cold_start(world: World) -> None:
    world.function()
    world.driver.start_delay = 0.2
    loop = asyncio.get_running_loop()
    begun = loop.time()
    reply = await world.ask(request())
    assert reply.status == 200
    assert loop.time() - begun >= 0.2


async def test_a_body_sent_during_a_cold_start_arrives_whole(world: World) -> None:
    world.function()
    world.driver.start_delay = 0.1
    client = await world.client()
    body = b"0123456789" * 100_000
    client.write(request("POST", "/fn/fn/", body))
    reply = await client.reply()
    assert reply.json["body"].encode() == body


@pytest.mark.parametrize(
    ("concurrency", "target", "requests", "wanted"),
    [(1, 0.7, 6, 6), (4, 1.0, 8, 2), (5, 1.0, 11, 3)],
)
async def test_concurrent_requests_start_as_many_instances_as_they_need(
    world: World, concurrency: int, target: float, requests: int, wanted: int
) -> None:
    gate = Gate()
    world.function(serving(gate), scale={"concurrency": concurrency, "target": target})
    clients = [await world.client() for _ in range(requests)]
    for client in clients:
        client.write(request())
    homes = [(await gate.next())[0].id for _ in clients]
    assert len(set(homes)) == wanted
    assert max(homes.count(home) for home in homes) <= concurrency
    gate.open.set()
    assert {(await client.reply()).status for client in clients} == {200}
    await world.until(world.idle)


async def test_there_are_never_more_instances_than_the_most(world: World) -> None:
    gate = Gate()
    world.function(serving(gate), scale={"concurrency": 2, "max": 3})
    clients = [await world.client() for _ in range(20)]
    for client in clients:
        client.write(request())
    for _ in range(6):
        await gate.next()
    await world.until(lambda: world.pools[0].waiting == 14)
    await asyncio.sleep(0.1)
    assert len(world.driver.started) == 3
    gate.open.set()
    assert {(await client.reply()).status for client in clients} == {200}
    assert len(world.driver.started) == 3


async def test_a_full_queue_turns_requests_away_with_a_time_to_retry(world: World) -> None:
    gate = Gate()
    world.function(serving(gate), scale={"concurrency": 1, "max": 1, "queue": 2})
    clients = [await world.client() for _ in range(3)]
    clients[0].write(request())
    await gate.next()
    for client in clients[1:]:
        client.write(request())
    await world.until(lambda: world.pools[0].waiting == 2)
    reply = await world.ask(request())
    assert (reply.status, reply.get("retry-after")) == (503, "1")
    assert reply.json["error"]["code"] == "overloaded"
    gate.open.set()
    assert {(await client.reply()).status for client in clients} == {200}


async def test_a_request_that_finds_no_room_in_time_is_turned_away(world: World) -> None:
    gate = Gate()
    world.function(serving(gate), scale={"concurrency": 1, "max": 1}, limits={"timeout": 0.3})
    first = await world.client()
    first.write(request())
    await gate.next()
    reply = await world.ask(request())
    assert reply.status in (503, 504)
    gate.open.set()
    await world.until(world.idle)


async def test_a_client_that_leaves_the_queue_makes_room_in_it(world: World) -> None:
    gate = Gate()
    world.function(serving(gate), scale={"concurrency": 1, "max": 1, "queue": 1})
    first, second = await world.client(), await world.client()
    first.write(request())
    await gate.next()
    second.write(request())
    await world.until(lambda: world.pools[0].waiting == 1)
    second.abort()
    await world.until(lambda: world.pools[0].waiting == 0)
    third = await world.client()
    third.write(request())
    await world.until(lambda: world.pools[0].waiting == 1)
    gate.open.set()
    assert (await third.reply()).status == 200


async def test_a_start_that_fails_is_said_with_the_programs_lines_and_tried_again(
    world: World,
) -> None:
    world.function()
    world.driver.fail_start = CoveError(
        "start_failed", "it ended while starting: exit code 1", lines=["Traceback", "boom"]
    )
    clients = [await world.client() for _ in range(3)]
    for client in clients:
        client.write(request())
    for client in clients:
        reply = await client.reply()
        assert (reply.status, reply.json["error"]["code"]) == (502, "start_failed")
        assert reply.json["error"]["lines"] == ["Traceback", "boom"]
    world.driver.fail_start = None
    assert (await clients[0].ask(request())).status == 200


async def test_a_driver_that_breaks_is_said_and_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.function()

    async def broken(launch: Launch) -> None:
        raise OSError("no file descriptors left")

    with monkeypatch.context() as patch:
        patch.setattr(world.driver, "start", broken)
        reply = await world.ask(request())
        assert (reply.status, reply.json["error"]["code"]) == (502, "start_failed")
        assert "no file descriptors left" in reply.json["error"]["message"]
    assert (await world.ask(request())).status == 200


async def test_an_idle_instance_stops(world: World) -> None:
    pool = world.function(scale={"idle": 0.1})
    assert (await world.ask(request())).status == 200
    await world.until(lambda: not world.driver.running)
    assert pool.instances == []
    route = world.routes.get("fn")
    assert route is not None
    assert route.upstreams == {}
    assert (await world.ask(request())).status == 200
    assert len(world.driver.started) == 2


async def test_requests_keep_an_instance_from_stopping(world: World) -> None:
    gate = Gate()
    world.function(serving(gate), scale={"idle": 0.05})
    client = await world.client()
    client.write(request())
    await gate.next()
    await asyncio.sleep(0.2)
    assert len(world.driver.running) == 1
    gate.open.set()
    assert (await client.reply()).status == 200
    await world.until(lambda: not world.driver.running)


async def test_the_declared_minimum_runs_without_requests_and_stays(world: World) -> None:
    pool = world.function(scale={"min": 2, "idle": 0.05})
    await world.until(lambda: len(pool.ready) == 2)
    await asyncio.sleep(0.2)
    assert len(world.driver.started) == 2
    world.crash(pool.ready[0])
    await world.until(lambda: len(world.driver.started) == 3 and len(pool.ready) == 2)


async def test_an_instance_that_crashes_under_a_request_is_named_with_its_exit(
    world: World,
) -> None:
    gate = Gate()
    world.function(serving(gate))
    client = await world.client()
    client.write(request())
    await gate.next()
    world.crash(world.one(), 7)
    reply = await client.reply()
    assert (reply.status, reply.json["error"]["code"]) == (502, "bad_gateway")
    assert "exit code 7" in reply.json["error"]["message"]
    await world.until(world.idle)
    gate.open.set()
    assert (await client.ask(request())).status == 200


async def test_an_instance_that_crashes_while_starting_is_not_handed_out(world: World) -> None:
    pool = world.function(limits={"startup": 1.0})
    start = world.driver.start

    async def stillborn(launch: Launch):  # type: ignore[no-untyped-def]
        running = await start(launch)
        connect = running.connect

        async def connect_and_die():  # type: ignore[no-untyped-def]
            sock = await connect()
            running.crash(3)
            await asyncio.sleep(0.01)  # everybody hears of the end before the start goes on
            return sock

        running.connect = connect_and_die  # type: ignore[method-assign]
        return running

    world.driver.start = stillborn  # type: ignore[assignment,method-assign]
    reply = await world.ask(request())
    assert reply.status == 502
    assert "exit code 3" in reply.json["error"]["message"]
    assert pool.instances == []
    world.driver.start = start  # type: ignore[method-assign]
    assert (await world.ask(request())).status == 200


async def test_requests_finish_on_the_old_version_while_a_new_one_serves(world: World) -> None:
    gate = Gate()
    world.function(serving(gate), scale={"idle": 60.0})
    client = await world.client()
    client.write(request())
    launch, _ = await gate.next()
    world.function(serving(lambda launch, asked: answer(b"new")))
    assert (await world.ask(request())).body == b"new"
    assert launch.id in world.driver.running
    gate.open.set()
    assert (await client.reply()).body == launch.id.encode()
    assert (await client.ask(request())).body == b"new"
    await world.until(lambda: launch.id not in world.driver.running)


async def test_requests_that_waited_for_the_old_version_are_served_by_it(world: World) -> None:
    world.function(serving(lambda launch, asked: answer(b"old")))
    world.driver.start_delay = 0.1
    client = await world.client()
    client.write(request())
    await world.until(lambda: world.pools[0].waiting == 1)
    world.function(serving(lambda launch, asked: answer(b"new")))
    assert (await client.reply()).body == b"old"
    assert (await client.ask(request())).body == b"new"


async def test_many_clients_share_few_kept_connections(world: World) -> None:
    connections = 0

    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        nonlocal connections
        connections += 1
        while await receive(reader) is not None:
            writer.write(answer())

    world.function(app)
    for _ in range(20):
        assert (await world.ask(request())).status == 200
    assert connections <= 2  # one is the supervisor's question whether the port is open


async def test_fifty_clients_at_once_are_all_served(world: World) -> None:
    async def handle(launch: Launch, asked: Asked) -> bytes:
        await asyncio.sleep(0.001)
        return answer(asked.body)

    world.function(serving(handle), scale={"concurrency": 8})

    async def talk(number: int) -> None:
        client = await world.client()
        for turn in range(10):
            body = b"%d-%d-" % (number, turn) * (number + 1)
            assert (await client.ask(request("POST", "/fn/fn/", body))).body == body

    await asyncio.gather(*(talk(n) for n in range(50)))
    await world.until(world.idle)
    assert world.counted() == {200: 500}


async def test_a_stopped_instance_leaves_no_connections_kept(world: World) -> None:
    world.function()
    assert (await world.ask(request())).status == 200
    instance, route = world.one(), world.routes.get("fn")
    assert route is not None
    world.crash(instance)
    await world.until(lambda: instance.exit is not None)
    with contextlib.suppress(OSError):
        route.upstream(instance)
    assert route.upstreams == {}
