"""A connection's requests look alike and are decided on once: until what was decided on changes."""

from __future__ import annotations

import asyncio

import pytest

from cove.drivers.base import Launch
from gateway.world import BEARER, Asked, World, answer, request, serving


async def test_alike_requests_differ_in_what_is_their_own(world: World) -> None:
    world.function()
    client = await world.client()
    seen = set()
    for body in (b"", b"one", b"", b"three" * 1000, b"x"):
        reply = await client.ask(request("POST", body=body))
        assert reply.json["body"] == body.decode()
        assert reply.json["headers"]["content-length"] == str(len(body))
        assert reply.json["headers"]["x-request-id"] == reply.get("x-request-id")
        seen.add(reply.get("x-request-id"))
    assert len(seen) == 5


async def test_requests_that_differ_little_are_told_apart(world: World) -> None:
    world.function(name="a")
    world.function(name="b")
    client = await world.client()
    variants = [
        request(path="/fn/a/x"),
        request(path="/fn/a/y"),
        request(path="/fn/b/x"),
        request("PUT", path="/fn/a/x"),
        request(path="/fn/a/x", headers="X-A: 1\r\n"),
        request(path="/fn/a/x", headers="X-A: 2\r\n"),
        request(path="/fn/a/x", headers="X-B: 1\r\n"),
        request(path="/fn/a/x", host="localhost"),
        request("POST", path="/fn/a/x"),
    ]
    said = []
    for _ in range(2):
        for variant in variants:
            reply = await client.ask(variant)
            seen = {k: v for k, v in reply.json["headers"].items() if k != "x-request-id"}
            said.append((reply.json["instance"], reply.json["method"], reply.json["path"], seen))
    assert said[: len(variants)] == said[len(variants) :]
    assert len({repr(one) for one in said}) == len(variants)


async def test_a_function_that_is_removed_answers_no_more(world: World) -> None:
    world.function()
    client = await world.client()
    assert (await client.ask(request())).status == 200
    world.routes.remove("fn")
    assert (await client.ask(request())).status == 404


async def test_a_function_that_is_deployed_again_answers_anew(world: World) -> None:
    world.function(serving(lambda launch, asked: answer(b"old")), auth="none")
    client = await world.client()
    assert (await client.ask(request())).body == b"old"
    world.function(serving(lambda launch, asked: answer(b"new")), auth="none")
    assert (await client.ask(request())).body == b"new"
    world.function(auth="key")
    assert (await client.ask(request())).status == 401


async def test_a_key_that_is_withdrawn_opens_nothing(world: World) -> None:
    world.function(auth="key")
    client = await world.client()
    ask = request(headers=BEARER)
    assert (await client.ask(ask)).status == 200
    world.policy.trust([])
    assert (await client.ask(ask)).status == 401


@pytest.mark.parametrize("how", ["idle", "crash"])
async def test_a_session_that_has_ended_is_not_followed(world: World, how: str) -> None:
    world.function(affinity="header:x-session", session={"idle": 0.1 if how == "idle" else 9.0})
    client = await world.client()
    ask = request(headers="X-Session: mine\r\n")
    assert (await client.ask(ask)).status == 200
    (before,) = world.sessions.of()
    if how == "crash":
        world.crash(world.one())
    await world.until(lambda: not world.sessions.of())
    assert (await client.ask(ask)).status == 200
    (after,) = world.sessions.of()
    assert after.id != before.id
    assert after.instance in world.pools[0].ready


async def test_a_request_without_a_key_is_a_new_session_each_time(world: World) -> None:
    world.function(affinity="header:x-session")
    client = await world.client()
    keys = {(await client.ask(request())).get("x-session") for _ in range(4)}
    assert len(keys) == len(world.sessions.of()) == 4


async def test_a_connection_may_carry_the_requests_of_several_callers(world: World) -> None:
    world.function(affinity="header:x-session", session={"per_instance": 1})
    client = await world.client()
    homes = {}
    for _ in range(3):
        for who in ("alice", "bob"):
            headers = f"Authorization: Bearer {who}\r\nX-Session: same\r\n"
            reply = await client.ask(request(headers=headers))
            assert homes.setdefault(who, reply.json["instance"]) == reply.json["instance"]
            assert reply.json["headers"]["authorization"] == f"Bearer {who}"
    assert len(set(homes.values())) == 2


async def test_lengths_and_chunks_alternate(world: World) -> None:
    async def handle(launch: Launch, asked: Asked) -> bytes:
        return answer(asked.body)

    world.function(serving(handle))
    client = await world.client()
    for turn in range(4):
        assert (await client.ask(request("PUT", body=b"long" * turn))).body == b"long" * turn
        client.write(request("PUT", headers="Transfer-Encoding: chunked\r\n"))
        await asyncio.sleep(0.005 * (turn % 2))
        client.write(b"3\r\nabc\r\n")
        await asyncio.sleep(0.005 * (turn % 2))
        client.write(b"0\r\n\r\n")
        assert (await client.reply()).body == b"abc"


CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"


async def test_answers_that_look_alike_are_framed_for_whom_they_are(world: World) -> None:
    def handle(launch: Launch, asked: Asked) -> bytes:
        return CHUNKS[: -len(b"2\r\nok\r\n0\r\n\r\n")] if asked.method == "HEAD" else CHUNKS

    world.function(serving(handle), affinity="cookie:sid", scale={"max": 1})
    planted = (await world.ask(request())).get("set-cookie") or ""
    cookie = f"Cookie: {planted.split(';')[0]}\r\n"
    for _ in range(3):
        for version, headers, method in (
            ("1.1", cookie, "GET"),
            ("1.0", cookie, "GET"),
            ("1.1", cookie + "Connection: close\r\n", "GET"),
            ("1.1", cookie, "HEAD"),
            ("1.1", "", "GET"),
        ):
            reply = await world.ask(
                request(method, headers=headers, version=version), to_head=method == "HEAD"
            )
            closes = version == "1.0" or "close" in headers
            assert reply.body == (b"" if method == "HEAD" else b"ok")
            assert reply.get("connection") == ("close" if closes else None)
            assert (reply.get("set-cookie") is None) == bool(headers)
            if method == "GET":
                chunked = "chunked" if version == "1.1" else None
                assert reply.get("transfer-encoding") == chunked


async def test_one_callers_session_id_is_never_shown_to_another(world: World) -> None:
    def handle(launch: Launch, asked: Asked) -> bytes:
        return answer(b"{}", headers="Mcp-Session-Id: always-the-same\r\n")

    world.function(serving(handle), kind="mcp")
    init = request("POST", "/fn/fn/mcp", b'{"jsonrpc":"2.0","id":1,"method":"initialize"}')
    client = await world.client()
    tokens = [(await client.ask(init)).get("mcp-session-id") for _ in range(2)]
    alice = init.replace(b"Content", b"Authorization: Bearer alice\r\nContent")
    tokens += [(await client.ask(alice)).get("mcp-session-id")]
    assert None not in tokens
    assert tokens[2] not in tokens[:2]
    plain = request("POST", "/fn/fn/mcp", b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}')
    assert (await client.ask(plain)).get("mcp-session-id") is None
