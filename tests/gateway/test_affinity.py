"""Affinity: who comes back to which instance, and what nobody else can reach."""

from __future__ import annotations

import asyncio
import gc
import json

import pytest

from cove.drivers.base import Launch
from cove.errors import CoveError
from cove.model import Facts
from gateway.world import (
    Asked,
    Gate,
    Reply,
    World,
    answer,
    request,
    serving,
)

INIT = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}).encode()
CALL = json.dumps({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}).encode()
ALICE = "Authorization: Bearer alice\r\n"
BOB = "Authorization: Bearer bob\r\n"


class McpServer:
    """What of a legacy MCP server matters to whoever routes to it."""

    def __init__(self) -> None:
        self.sessions: dict[str, str] = {}
        self.seen: list[tuple[str, Asked]] = []
        self.deleted = "200 OK"

    def __call__(self, launch: Launch, asked: Asked) -> bytes:
        self.seen.append((launch.id, asked))
        session = asked.get("mcp-session-id")
        if asked.method == "DELETE":
            self.sessions.pop(session or "", None)
            return answer(b"", status=self.deleted)
        if b'"initialize"' in asked.body:
            session = f"raw-{len(self.seen)}"
            self.sessions[session] = launch.id
            return answer(b"{}", headers=f"Mcp-Session-Id: {session}\r\n")
        if self.sessions.get(session or "") != launch.id:
            return answer(b"{}", status="404 Not Found")
        return answer(launch.id.encode(), headers=f"Mcp-Session-Id: {session}\r\n")


def post(body: bytes = CALL, token: str | None = None, headers: str = "") -> bytes:
    session = f"Mcp-Session-Id: {token}\r\n" if token is not None else ""
    return request("POST", "/fn/fn/mcp", body, headers=headers + session)


async def initialize(world: World, headers: str = "") -> str:
    reply = await world.ask(post(INIT, headers=headers))
    assert reply.status == 200
    token = reply.get("mcp-session-id")
    assert token is not None
    return token


def refused(reply: Reply) -> bool:
    """An unknown session, said in JSON-RPC so that the client initializes again."""
    return (
        reply.status == 404
        and reply.json["jsonrpc"] == "2.0"
        and reply.json["error"]["data"]["code"] == "session_not_found"
    )


# MCP sessions.


async def test_an_mcp_session_returns_to_its_instance(world: World) -> None:
    server = McpServer()
    world.function(serving(server), kind="mcp", session={"per_instance": 1})
    tokens = [await initialize(world) for _ in range(3)]
    homes = [(await world.ask(post(token=token))).body.decode() for token in tokens]
    assert len(set(homes)) == 3
    assert sorted(homes) == sorted(server.sessions.values())
    again = [(await world.ask(post(token=token))).body.decode() for token in tokens]
    assert again == homes


async def test_a_backends_own_session_id_is_never_shown(world: World) -> None:
    server = McpServer()
    world.function(serving(server), kind="mcp")
    token = await initialize(world)
    assert "raw-1" not in token
    reply = await world.ask(post(token=token))
    assert reply.get("mcp-session-id") == token
    assert server.seen[-1][1].get("mcp-session-id") == "raw-1"


@pytest.mark.parametrize("status", ["400 Bad Request", "404 Not Found", "500 Oops"])
async def test_an_initialize_that_fails_pins_nothing(world: World, status: str) -> None:
    said = answer(b"{}", status=status, headers="Mcp-Session-Id: throwaway\r\n")
    world.function(serving(lambda launch, asked: said), kind="mcp")
    reply = await world.ask(post(INIT))
    assert (f"{reply.status}", reply.get("mcp-session-id")) == (status[:3], None)
    assert world.sessions.of() == []
    assert world.one().slots == 0


async def test_only_initialize_opens_a_session(world: World) -> None:
    said = answer(b"{}", headers="Mcp-Session-Id: throwaway\r\n")
    world.function(serving(lambda launch, asked: said), kind="mcp")
    for body in (CALL, b'{"params": "initialize"}', b'"initialize"', b"[]", b"\xff\xfe", b""):
        assert (await world.ask(post(body))).get("mcp-session-id") is None
    assert world.sessions.of() == []
    assert world.one().slots == 0


async def test_modern_requests_neither_open_nor_follow_sessions(world: World) -> None:
    said = answer(b"{}", headers="Mcp-Session-Id: throwaway\r\n")
    world.function(serving(lambda launch, asked: said), kind="mcp")
    modern = "MCP-Protocol-Version: 2026-07-28\r\n"
    reply = await world.ask(post(INIT, token="whatever", headers=modern))
    assert (reply.status, reply.get("mcp-session-id")) == (200, None)
    assert world.sessions.of() == []


async def test_an_unknown_session_is_not_found(world: World) -> None:
    world.function(serving(McpServer()), kind="mcp")
    assert refused(await world.ask(post(token="made-up")))
    assert world.driver.started == []


async def test_a_tampered_session_is_not_found(world: World) -> None:
    world.function(serving(McpServer()), kind="mcp")
    token = await initialize(world)
    for place in (0, 10, 30, len(token) - 1):
        other = "A" if token[place] != "A" else "B"
        assert refused(await world.ask(post(token=token[:place] + other + token[place + 1 :])))
    for changed in (token + "=", token + "!", "!" + token, token[:-1], token + "A"):
        assert refused(await world.ask(post(token=changed))), changed
    assert len(world.sessions.of()) == 1


async def test_a_session_of_somebody_else_is_not_found(world: World) -> None:
    world.function(serving(McpServer()), kind="mcp")
    token = await initialize(world, ALICE)
    assert (await world.ask(post(token=token, headers=ALICE))).status == 200
    for headers in (BOB, ""):
        assert refused(await world.ask(post(token=token, headers=headers)))


async def test_a_session_of_another_function_is_not_found(world: World) -> None:
    world.function(serving(McpServer()), kind="mcp")
    world.function(serving(McpServer()), kind="mcp", name="other")
    token = await initialize(world)
    assert refused(await world.ask(post(token=token).replace(b"/fn/fn/", b"/fn/other/")))


async def test_delete_ends_a_session_and_gives_its_slot_back(world: World) -> None:
    server = McpServer()
    world.function(serving(server), kind="mcp")
    token = await initialize(world)
    assert world.one().slots == 1
    delete = request("DELETE", "/fn/fn/mcp", headers=f"Mcp-Session-Id: {token}\r\n")
    assert (await world.ask(delete)).status == 200
    assert (world.sessions.of(), world.one().slots) == ([], 0)
    asked = len(server.seen)
    assert refused(await world.ask(post(token=token)))
    assert len(server.seen) == asked
    assert world.one().slots == 0


async def test_a_server_that_keeps_its_session_keeps_it_here_too(world: World) -> None:
    server = McpServer()
    server.deleted = "405 Method Not Allowed"
    world.function(serving(server), kind="mcp")
    token = await initialize(world)
    delete = request("DELETE", "/fn/fn/mcp", headers=f"Mcp-Session-Id: {token}\r\n")
    assert (await world.ask(delete)).status == 405
    assert len(world.sessions.of()) == 1


@pytest.mark.parametrize("bound", ["idle", "lifetime"])
async def test_a_session_ends_after_its_time(world: World, bound: str) -> None:
    world.function(serving(McpServer()), kind="mcp", session={bound: 0.15})
    token = await initialize(world)
    await world.until(lambda: not world.sessions.of())
    assert world.one().slots == 0
    assert refused(await world.ask(post(token=token)))
    assert world.one().slots == 0


async def test_requests_keep_a_session_from_idling_out(world: World) -> None:
    world.function(serving(McpServer()), kind="mcp", session={"idle": 0.2})
    token = await initialize(world)
    for _ in range(6):
        await asyncio.sleep(0.08)
        assert (await world.ask(post(token=token))).status == 200
    await world.until(lambda: not world.sessions.of())


async def test_a_session_does_not_idle_out_under_an_open_request(world: World) -> None:
    gate, server = Gate(), McpServer()

    async def handle(launch: Launch, asked: Asked) -> bytes:
        if asked.body == CALL:
            await gate(launch, asked)
        return server(launch, asked)

    world.function(serving(handle), kind="mcp", session={"idle": 0.1})
    token = await initialize(world)
    client = await world.client()
    client.write(post(token=token))
    await gate.next()
    await asyncio.sleep(0.3)
    assert len(world.sessions.of()) == 1
    gate.open.set()
    assert (await client.reply()).status == 200
    await world.until(lambda: not world.sessions.of())


async def test_a_session_whose_instance_is_lost_is_not_found(world: World) -> None:
    world.function(serving(McpServer()), kind="mcp")
    token = await initialize(world)
    world.crash(world.one())
    assert refused(await world.ask(post(token=token)))
    assert await initialize(world) != token


async def test_a_session_stays_on_its_version_while_new_ones_open_on_the_next(
    world: World,
) -> None:
    old, new = McpServer(), McpServer()
    world.function(serving(old), kind="mcp")
    token = await initialize(world)
    world.function(serving(new), kind="mcp")
    assert (await world.ask(post(token=token))).status == 200
    assert len(old.seen) == 2
    assert (await world.ask(post(token=await initialize(world)))).status == 200
    assert len(new.seen) == 2


async def test_an_instance_with_sessions_does_not_stop_for_idleness(world: World) -> None:
    world.function(serving(McpServer()), kind="mcp", scale={"idle": 0.05}, session={"idle": 0.4})
    token = await initialize(world)
    await asyncio.sleep(0.2)
    assert (await world.ask(post(token=token))).status == 200
    await world.until(lambda: not world.driver.running)
    assert refused(await world.ask(post(token=token)))


async def test_the_sessions_of_an_instance_are_bounded(world: World) -> None:
    server = McpServer()
    world.function(serving(server), kind="mcp", session={"per_instance": 3}, scale={"max": 2})
    for _ in range(6):
        await initialize(world)
    homes = list(server.sessions.values())
    assert {homes.count(home) for home in homes} == {3}


async def test_a_client_that_asks_for_a_session_beyond_all_room_waits_for_it(world: World) -> None:
    world.function(serving(McpServer()), kind="mcp", session={"per_instance": 1}, scale={"max": 1})
    token = await initialize(world)
    client = await world.client()
    client.write(post(INIT))
    await world.until(lambda: any(pool.waiting for pool in world.pools))
    delete = request("DELETE", "/fn/fn/mcp", headers=f"Mcp-Session-Id: {token}\r\n")
    assert (await world.ask(delete)).status == 200
    assert (await client.reply()).status == 200


async def test_thousands_of_sessions_that_never_say_goodbye_leave_nothing(world: World) -> None:
    pool = world.function(
        serving(McpServer()),
        kind="mcp",
        session={"idle": 0.3, "per_instance": 5000},
        scale={"idle": 0.3},
    )
    client = await world.client()
    count = 2000
    batch = 100
    for _ in range(count // batch):
        client.write(post(INIT) * batch)
        for _ in range(batch):
            assert (await client.reply()).get("mcp-session-id")
    instance = world.one()
    assert len(world.driver.started) == 1
    await world.until(lambda: not world.sessions.of())
    assert instance.slots == 0
    assert len(instance.on_stopping) <= 1  # the route's kept connections
    await world.until(lambda: not world.driver.running)
    sessions = world.sessions
    sessions.take_changed()
    gc.collect()
    assert (sessions._by_key, sessions._due, sessions._changed) == ({}, [], {})
    assert (instance.on_stopping, pool.on_change) == (set(), set())
    route = world.routes.get("fn")
    assert route is not None
    assert route.upstreams == {}
    assert world.idle()


# per_instance = 1.


@pytest.mark.parametrize("other", ["session", "modern", "sessionless"])
async def test_an_instance_of_its_own_is_shared_with_nobody(world: World, other: str) -> None:
    server = McpServer()
    world.function(serving(server), kind="mcp", session={"per_instance": 1}, scale={"max": 3})
    token = await initialize(world)
    home = server.seen[-1][0]
    if other == "session":
        await initialize(world)
    elif other == "modern":
        await world.ask(post(headers="MCP-Protocol-Version: 2026-07-28\r\n"))
    else:
        await world.ask(post())
    assert server.seen[-1][0] != home
    assert (await world.ask(post(token=token))).body.decode() == home


async def test_requests_without_a_session_have_an_exclusive_instance_while_they_last(
    world: World,
) -> None:
    gate = Gate()
    world.function(serving(gate), kind="mcp", session={"per_instance": 1}, scale={"max": 3})
    clients = [await world.client() for _ in range(3)]
    for client in clients:
        client.write(post(headers="MCP-Protocol-Version: 2026-07-28\r\n"))
    homes = {(await gate.next())[0].id for _ in clients}
    assert len(homes) == 3
    gate.open.set()
    for client in clients:
        assert (await client.reply()).status == 200
    assert all(not i.slots for pool in world.pools for i in pool.instances)


# Keys that callers bring.


def where(reply: Reply) -> str:
    assert reply.status == 200, reply
    return str(reply.json["instance"])


async def test_a_header_without_a_value_gets_one_back_in_the_same_header(world: World) -> None:
    world.function(affinity="header:X-Session", session={"per_instance": 1})
    first = await world.ask(request())
    key = first.get("x-session")
    assert key
    again = await world.ask(request(headers=f"X-Session: {key}\r\n"))
    assert where(again) == where(first)
    assert again.get("x-session") is None
    other = await world.ask(request())
    assert where(other) != where(first)
    assert other.get("x-session") != key


async def test_a_header_with_a_value_is_its_callers_session(world: World) -> None:
    world.function(affinity="header:x-session", session={"per_instance": 1})
    ask = request(headers="X-SESSION: mine\r\n")
    assert where(await world.ask(ask)) == where(await world.ask(ask))
    reply = await world.ask(request(headers="X-Session: other\r\n"))
    assert where(reply) != where(await world.ask(ask))
    assert reply.json["headers"]["x-session"] == "other"


@pytest.mark.parametrize("value", ["a" * 257, "a b", "\xe9"])
async def test_a_key_that_is_no_key_is_refused(world: World, value: str) -> None:
    world.function(affinity="header:x-session")
    assert (await world.ask(request(headers=f"X-Session: {value}\r\n"))).status == 400
    assert world.sessions.of() == []


async def test_two_callers_with_the_same_key_have_two_sessions(world: World) -> None:
    world.function(affinity="header:x-session", session={"per_instance": 1})
    homes = {
        where(await world.ask(request(headers=f"X-Session: same\r\n{who}")))
        for who in (ALICE, BOB, "")
    }
    assert len(homes) == 3


async def test_a_cookie_is_planted_and_followed(world: World) -> None:
    world.function(affinity="cookie:sid", session={"per_instance": 1, "lifetime": 3600.0})
    first = await world.ask(request())
    cookie, *attributes = (first.get("set-cookie") or "").split("; ")
    assert set(attributes) == {"Max-Age=3600", "Path=/fn/fn", "HttpOnly", "SameSite=Lax"}
    again = await world.ask(request(headers=f"Cookie: a=b; {cookie}\r\n"))
    assert where(again) == where(first)
    assert again.get("set-cookie") is None
    assert where(await world.ask(request())) != where(first)


async def test_a_cookie_planted_by_host_is_for_the_whole_host(world: World) -> None:
    world.function(affinity="cookie:sid")
    reply = await world.ask(request(path="/", host="fn.localhost"))
    assert "Path=/;" in (reply.get("set-cookie") or "")


async def test_a_forged_cookie_is_replaced(world: World) -> None:
    world.function(affinity="cookie:sid")
    for forged in ("made-up", "A" * 60, ""):
        reply = await world.ask(request(headers=f"Cookie: sid={forged}\r\n"))
        assert "sid=" in (reply.get("set-cookie") or "")
    stolen = await world.ask(request(headers=ALICE))
    cookie = (stolen.get("set-cookie") or "").split(";")[0]
    reply = await world.ask(request(headers=f"Cookie: {cookie}\r\n{BOB}"))
    assert reply.get("set-cookie") is not None


async def test_a_cookie_is_found_among_others_that_nobody_can_parse(world: World) -> None:
    world.function(affinity="cookie:sid", session={"per_instance": 1})
    first = await world.ask(request())
    cookie = (first.get("set-cookie") or "").split(";")[0]
    odd = f'Cookie: prefs={{"a": 1}}; b[c]=d; {cookie}\r\n'
    again = await world.ask(request(headers=odd))
    assert again.get("set-cookie") is None
    assert where(again) == where(first)


async def test_a_query_parameter_is_a_key(world: World) -> None:
    world.function(affinity="query:room", session={"per_instance": 1})
    one = where(await world.ask(request(path="/fn/fn/?a=b&room=1")))
    assert where(await world.ask(request(path="/fn/fn/other?room=1&c"))) == one
    assert where(await world.ask(request(path="/fn/fn/?room=2"))) != one
    assert (await world.ask(request(path="/fn/fn/?roam=2"))).status == 400


async def test_a_principal_is_a_key(world: World) -> None:
    world.function(affinity="principal", session={"per_instance": 1})
    alice = where(await world.ask(request(headers=ALICE)))
    assert where(await world.ask(request(headers=ALICE))) == alice
    assert where(await world.ask(request(headers=BOB))) != alice


async def test_an_existing_session_over_its_instances_room_gets_429(world: World) -> None:
    gate = Gate()
    world.function(serving(gate), affinity="header:x-session", scale={"concurrency": 2})
    mine = request(headers="X-Session: mine\r\n")
    clients = [await world.client() for _ in range(2)]
    homes = set()
    for client in clients:
        client.write(mine)
        homes.add((await gate.next())[0].id)
    reply = await world.ask(mine)
    assert (reply.status, reply.get("retry-after")) == (429, "1")
    other = await world.client()
    other.write(request(headers="X-Session: other\r\n"))
    homes.add((await gate.next())[0].id)
    assert len(homes) == 2
    gate.open.set()
    for client in (*clients, other):
        assert (await client.reply()).status == 200


async def test_an_ended_key_is_a_new_session(world: World) -> None:
    world.function(
        affinity="header:x-session", session={"per_instance": 1, "idle": 0.1}, scale={"idle": 9.0}
    )
    ask = request(headers="X-Session: mine\r\n")
    first = where(await world.ask(ask))
    (before,) = world.sessions.of()
    await world.until(lambda: not world.sessions.of())
    assert where(await world.ask(ask)) == first  # its instance is free again
    (after,) = world.sessions.of()
    assert after.id != before.id


async def test_a_key_whose_instance_is_lost_is_a_new_session(world: World) -> None:
    world.function(affinity="header:x-session")
    ask = request(headers="X-Session: mine\r\n")
    first = where(await world.ask(ask))
    world.crash(world.one())
    assert where(await world.ask(ask)) != first


@pytest.mark.parametrize("affinity", ["header:x-session", "query:s", "principal"])
async def test_concurrent_first_requests_of_one_key_open_one_session(
    world: World, affinity: str
) -> None:
    world.function(affinity=affinity, session={"per_instance": 1})
    world.driver.start_delay = 0.05
    clients = [await world.client() for _ in range(10)]
    for client in clients:
        client.write(request(path="/fn/fn/?s=1", headers="X-Session: mine\r\n"))
    homes = {where(await client.reply()) for client in clients}
    assert len(homes) == len(world.driver.started) == 1
    assert len(world.sessions.of()) == 1


async def test_two_first_requests_of_one_moment_do_not_wait_for_each_other(world: World) -> None:
    world.function(affinity="principal", limits={"timeout": 1.0})
    clients = [await world.client() for _ in range(20)]
    for client in clients:  # all in one read of the loop
        client.write(request())
    for client in clients:
        assert (await client.reply()).status == 200


async def test_the_first_of_a_session_leaving_does_not_cost_the_others(world: World) -> None:
    world.function(affinity="header:x-session")
    world.driver.start_delay = 0.1
    first, second = await world.client(), await world.client()
    first.write(request(headers="X-Session: mine\r\n"))
    await world.until(lambda: bool(world.sessions.of()))
    second.write(request(headers="X-Session: mine\r\n"))
    await world.until(lambda: any(s.inflight == 2 for s in world.sessions.of()))
    first.abort()
    assert (await second.reply()).status == 200


async def test_a_failed_start_is_said_to_everyone_who_waits_for_the_session(world: World) -> None:
    world.function(affinity="header:x-session")
    world.driver.start_delay = 0.05
    world.driver.fail_start = CoveError("start_failed", "no such program", lines=["boom"])
    clients = [await world.client() for _ in range(5)]
    for client in clients:
        client.write(request(headers="X-Session: mine\r\n"))
    assert {(await client.reply()).status for client in clients} == {502}


async def test_requests_refused_for_want_of_room_do_not_keep_a_session_alive(world: World) -> None:
    gate = Gate()
    world.function(
        serving(gate),
        affinity="header:x-session",
        scale={"concurrency": 1},
        session={"idle": 0.1},
    )
    world.driver.start_delay = 0.05
    clients = [await world.client() for _ in range(3)]
    for client in clients:
        client.write(request(headers="X-Session: mine\r\n"))
    await gate.next()
    gate.open.set()
    assert sorted([(await client.reply()).status for client in clients]) == [200, 429, 429]
    await world.until(lambda: not world.sessions.of())


async def test_a_session_that_ends_while_its_instance_starts_leaves_no_slot(world: World) -> None:
    world.function(affinity="header:x-session", session={"lifetime": 0.05})
    world.driver.start_delay = 0.2
    reply = await world.ask(request(headers="X-Session: mine\r\n"))
    assert reply.status in (200, 503)
    await world.until(lambda: bool(world.pools[0].ready))
    await world.until(lambda: not world.sessions.of())
    assert world.one().slots == 0


async def test_a_listening_stranger_is_not_sent_to_an_instance_of_its_own(world: World) -> None:
    server = McpServer()
    world.function(
        serving(server), kind="mcp", session={"per_instance": 1}, facts=Facts(modern=True)
    )
    await initialize(world, ALICE)
    listen = json.dumps(
        {"jsonrpc": "2.0", "id": 9, "method": "subscriptions/listen", "params": {}}
    ).encode()
    modern = "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: subscriptions/listen\r\n"
    client = await world.client()
    client.write(post(listen, headers=BOB + modern))
    await asyncio.sleep(0.1)
    assert [asked.body for _, asked in server.seen] == [INIT]
