"""What operators see: metrics, health, and a gateway that leaves in order."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from cove.drivers.base import Launch
from gateway.world import BOUND, Asked, Gate, World, answer, request, serving

INIT = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}'


async def scrape(world: World) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    reply = await world.ask(request(path="/metrics"))
    assert reply.status == 200
    assert (reply.get("content-type") or "").startswith("text/plain; version=0.0.4")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }


def count(status: int, name: str = "fn") -> tuple[str, tuple[tuple[str, str], ...]]:
    return "cove_requests_total", (("function", name), ("status", str(status)))


async def test_requests_are_counted_by_function_and_status(world: World) -> None:
    world.function(limits={"body": 10})
    world.function(name="shut", auth="key")
    for _ in range(3):
        await world.ask(request())
    await world.ask(request("POST", "/fn/fn/", b"x" * 11))
    await world.ask(request(path="/fn/shut/"))
    await world.ask(request(path="/fn/nobody/"))
    found = await scrape(world)
    assert {key: value for key, value in found.items() if key[0] == "cove_requests_total"} == {
        count(200): 3.0,
        count(413): 1.0,
        count(401, "shut"): 1.0,
    }


async def test_durations_add_up(world: World) -> None:
    world.function()
    for _ in range(4):
        await world.ask(request())
    found = await scrape(world)
    fn = ("function", "fn")
    assert found["cove_request_seconds_count", (fn,)] == 4.0
    assert found["cove_request_seconds_bucket", (fn, ("le", "+Inf"))] == 4.0
    assert 0.0 < found["cove_request_seconds_sum", (fn,)] < BOUND
    assert found["cove_start_seconds_count", (fn,)] == 1.0
    assert found["cove_queue_seconds_count", (fn,)] == 1.0


async def test_what_bridges_and_streams_refuse_is_counted_too(world: World) -> None:
    world.function(kind="mcp")
    assert (await world.ask(request("GET", "/fn/fn/mcp"))).status == 400
    assert (await world.ask(request("POST", "/fn/fn/sse", INIT))).status == 405
    assert (await world.ask(request("POST", "/fn/fn/messages/", INIT))).status == 404
    found = await scrape(world)
    assert [found.get(count(status)) for status in (400, 405, 404)] == [1.0, 1.0, 1.0]


async def test_health_and_readiness_are_told(world: World) -> None:
    assert (await world.ask(request(path="/healthz"))).status == 200
    assert (await world.ask(request(path="/readyz"))).body == b"ready\n"
    world.gateway.draining = True
    reply = await world.ask(request(path="/readyz"))
    assert (reply.status, reply.body) == (503, b"draining\n")
    assert (await world.ask(request(path="/healthz"))).status == 200


async def test_draining_lets_requests_finish_and_closes_the_rest(world: World) -> None:
    gate = Gate()
    world.function(serving(gate))
    idle, busy = await world.client(), await world.client()
    assert (await idle.ask(request(path="/healthz"))).status == 200
    busy.write(request())
    await gate.next()
    drain = asyncio.create_task(world.gateway.drain(BOUND))
    assert await idle.end() == b""
    assert not drain.done()
    gate.open.set()
    reply = await busy.reply()
    assert (reply.status, reply.get("connection")) == (200, "close")
    assert await busy.end() == b""
    await asyncio.wait_for(drain, BOUND)


async def test_draining_ends_in_time_whoever_still_talks(world: World) -> None:
    gate = Gate()
    world.function(serving(gate))
    client = await world.client()
    client.write(request())
    await gate.next()
    drain = asyncio.create_task(world.gateway.drain(0.1))
    reply = await client.reply()
    assert (reply.status, reply.get("connection"), reply.get("retry-after")) == (503, "close", "1")
    assert reply.json["error"]["code"] == "draining"
    assert await client.end() == b""
    await asyncio.wait_for(drain, BOUND)
    gate.open.set()
    await world.until(world.idle)


async def test_connections_are_bounded(world: World) -> None:
    world.gateway._most = 2
    first, second, third = [await world.client() for _ in range(3)]
    reply = await third.reply()
    assert (reply.status, reply.get("connection"), reply.get("retry-after")) == (503, "close", "1")
    assert reply.get("x-request-id")
    assert await third.end() == b""
    assert (await first.ask(request(path="/healthz"))).status == 200
    second.close()
    await world.until(lambda: len(world.gateway._connections) == 1)
    assert (await world.ask(request(path="/healthz"))).status == 200


async def test_draining_lets_a_slow_reader_have_its_whole_answer(world: World) -> None:
    body = bytes(range(256)) * 4096  # more than all buffers on the way: its end waits in Cove

    async def handle(launch: Launch, asked: Asked) -> bytes:
        return answer(body)

    world.function(serving(handle))
    client = await world.small()
    client.write(request())
    await world.until(lambda: any(pool.ready for pool in world.pools) and world.one().inflight == 1)
    drain = asyncio.create_task(world.gateway.drain(BOUND))
    await client.head()
    got = b""
    while data := await client.reader.read(16 * 1024):
        got += data
        await asyncio.sleep(0.005)
    assert got == body
    await asyncio.wait_for(drain, BOUND)
