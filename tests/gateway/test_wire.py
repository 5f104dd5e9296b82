"""The wire: what RFC 9112 and 9110 ask of whoever stands in the middle."""

from __future__ import annotations

import asyncio
import http.client
import re

import pytest

from cove.drivers.base import Launch
from cove.gateway.http import Connection
from gateway.world import (
    BEARER,
    BOUND,
    Asked,
    Gate,
    Reply,
    World,
    answer,
    receive,
    request,
    serving,
)

CHUNKED = "Transfer-Encoding: chunked\r\n"


def raw(data: bytes, *, end: bool = False):  # type: ignore[no-untyped-def]
    """A backend that answers every request with these bytes, and then closes or not."""

    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while await receive(reader) is not None:
            writer.write(data)
            await writer.drain()
            if end:
                return

    return app


# Requests.


async def test_a_connection_carries_one_request_after_another(world: World) -> None:
    world.function()
    client = await world.client()
    for path in ("/a", "/b?x=1", "/c"):
        reply = await client.ask(request("POST", f"/fn/fn{path}", b"hello"))
        assert reply.status == 200
        assert (reply.json["path"], reply.json["body"]) == (path, "hello")


async def test_pipelined_requests_are_answered_in_order_with_their_bodies(world: World) -> None:
    world.function()
    client = await world.client()
    count = 50
    client.write(
        b"".join(request("POST", f"/fn/fn/{n}", b"body-%d" % n * (n + 1)) for n in range(count))
    )
    for n in range(count):
        said = (await client.reply()).json
        assert (said["path"], said["body"]) == (f"/{n}", f"body-{n}" * (n + 1))


async def test_pipelined_requests_wait_for_a_slow_one_before_them(world: World) -> None:
    gate = Gate()

    async def handle(launch: Launch, asked: Asked) -> bytes:
        if asked.path == "/slow":
            await gate(launch, asked)
        return answer(asked.path.encode() + asked.body)

    world.function(serving(handle))
    client = await world.client()
    client.write(
        request(path="/fn/fn/slow")
        + request("POST", "/fn/fn/next", b"x" * 1000)
        + request("POST", "/fn/fn/last", b"2\r\nhi\r\n0\r\n\r\n")[: -len(b"2\r\nhi\r\n0\r\n\r\n")]
    )
    await gate.next()
    client.write(b"2\r\nhi\r\n0\r\n\r\n")
    gate.open.set()
    assert (await client.reply()).body == b"/slow"
    assert (await client.reply()).body == b"/next" + b"x" * 1000
    assert (await client.reply()).body == b"/last2\r\nhi\r\n0\r\n\r\n"


async def test_a_chunked_request_arrives_whole(world: World) -> None:
    world.function()
    client = await world.client()
    client.write(request(headers=CHUNKED, method="PUT"))
    for part in (b"a" * 10, b"b" * 70_000, b"c"):
        client.write(b"%x\r\n%b\r\n" % (len(part), part))
        await asyncio.sleep(0)
    client.write(b"0\r\n\r\n")
    reply = await client.reply()
    assert reply.json["body"] == "a" * 10 + "b" * 70_000 + "c"


async def test_a_request_arrives_byte_by_byte(world: World) -> None:
    world.function()
    client = await world.client()
    for byte in request("POST", "/fn/fn/slow", b"body", headers="X-A: 1\r\n"):
        client.write(bytes([byte]))
        await asyncio.sleep(0)
    said = (await client.reply()).json
    assert (said["path"], said["body"], said["headers"]["x-a"]) == ("/slow", "body", "1")


async def test_http_1_0_is_answered_and_closed(world: World) -> None:
    world.function(
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
    )
    client = await world.client()
    reply = await client.ask(request(version="1.0"))
    assert reply.get("transfer-encoding") is None
    assert reply.body == b"hi"
    assert await client.end() == b""


async def test_connection_close_is_obeyed(world: World) -> None:
    world.function()
    client = await world.client()
    reply = await client.ask(request(headers="Connection: close\r\n"))
    assert (reply.status, reply.get("connection")) == (200, "close")
    assert await client.end() == b""


async def test_an_absolute_target_is_its_path(world: World) -> None:
    world.function()
    reply = await world.ask(request(path="http://127.0.0.1/fn/fn/a?b=c"))
    assert reply.json["path"] == "/a?b=c"


async def test_a_function_answers_by_host_name(world: World) -> None:
    world.function(name="weather")
    reply = await world.ask(request(path="/x/y?z", host="weather.localhost:7070"))
    assert reply.json["path"] == "/x/y?z"
    assert "x-forwarded-prefix" not in reply.json["headers"]


@pytest.mark.parametrize("path", ["/fn/fn", "/fn/fn?a=1"])
async def test_a_function_without_a_slash_is_asked_for_its_root(world: World, path: str) -> None:
    world.function()
    reply = await world.ask(request(path=path))
    assert reply.json["path"] == path.replace("/fn/fn", "/")


async def test_an_unknown_function_names_the_nearest(world: World) -> None:
    world.function(name="weather")
    reply = await world.ask(request(path="/fn/wether/mcp"))
    assert reply.status == 404
    assert "weather" in reply.json["error"]["hint"]


async def test_connect_is_refused(world: World) -> None:
    reply = await world.ask("CONNECT example.com:443 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert reply.status == 400


async def test_a_wish_for_h2c_is_passed_over(world: World) -> None:
    world.function()
    client = await world.client()
    wish = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    for method in ("GET", "DELETE"):
        reply = await client.ask(request(method, headers=wish))
        assert reply.status == 200
        assert {"upgrade", "http2-settings"}.isdisjoint(reply.json["headers"])


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_wish_for_h2c_does_not_cost_the_body(world: World, chunked: bool) -> None:
    world.function()
    client = await world.client()
    wish = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    body = request(path="/fn/fn/smuggled")
    if chunked:
        whole = request("PUT", headers=wish + CHUNKED) + b"%x\r\n%b\r\n0\r\n\r\n" % (
            len(body),
            body,
        )
    else:
        whole = request("POST", "/fn/fn/", body, headers=wish)
    client.write(whole + request(path="/fn/fn/next"))
    async with asyncio.timeout(1):
        assert (await client.reply()).json["body"] == body.decode()
        assert (await client.reply()).json["path"] == "/next"


async def test_many_pipelined_wishes_for_h2c_are_passed_over(world: World) -> None:
    client = await world.client()
    count = 900
    wish = "Connection: Upgrade\r\nUpgrade: h2c\r\n"
    client.write(request(path="/healthz", headers=wish) * count)
    for _ in range(count):
        assert (await client.reply()).status == 200


async def test_100_continue_is_said_before_the_body_is_sent(world: World) -> None:
    world.function()
    client = await world.client()
    whole = request("POST", "/fn/fn/", b"hello", headers="Expect: 100-continue\r\n")
    client.write(whole[:-5])
    assert (await client.reply()).status == 100
    client.write(b"hello")
    reply = await client.reply()
    assert reply.json["body"] == "hello"
    assert "expect" not in reply.json["headers"]


async def test_100_continue_never_comes_between_the_bytes_of_another_reply(world: World) -> None:
    gate = Gate()
    world.function(serving(gate))
    client = await world.client()
    client.write(request())
    await gate.next()
    client.write(request("POST", "/fn/fn/", b"hello", headers="Expect: 100-continue\r\n")[:-5])
    await asyncio.sleep(0.05)
    gate.open.set()
    assert (await client.reply()).status == 200
    reply = await client.reply()
    assert reply.status == 100


# Refusals.

REFUSED = {
    "both lengths": "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
    "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both lengths, the other way round": "POST / HTTP/1.1\r\nHost: a\r\n"
    "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "two lengths": "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
    "Content-Length: 3\r\n\r\nabc",
    "a list of lengths": "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc",
    "a negative length": "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -3\r\n\r\n",
    "a signed length": "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
    "a length past counting": "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999"
    "\r\n\r\n",
    "another coding": "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "a coding twice": "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
    "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a veiled coding": "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "a coding in 1.0": "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a broken chunk": "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "two hosts": "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "no host": "GET / HTTP/1.1\r\n\r\n",
    "two callers": "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n",
    "two sessions": "GET / HTTP/1.1\r\nHost: a\r\nMcp-Session-Id: a\r\nMcp-Session-Id: b\r\n\r\n",
    "a folded line": "GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\n 2\r\n\r\n",
    "space before the colon": "GET / HTTP/1.1\r\nHost: a\r\nX-A : 1\r\n\r\n",
    "space in a name": "GET / HTTP/1.1\r\nHost: a\r\nX A: 1\r\n\r\n",
    "a name of nothing": "GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n",
    "a zero byte": "GET / HTTP/1.1\r\nHost: a\r\nX-A: a\0b\r\n\r\n",
    "a lone CR": "GET / HTTP/1.1\r\nHost: a\r\nX-A: a\rX-B: b\r\n\r\n",
    "a lone LF": "GET / HTTP/1.1\r\nHost: a\r\nX-A: a\nX-B: b\r\n\r\n",
    "lone LFs throughout": "GET / HTTP/1.1\nHost: a\n\n",
    "an unknown method": "BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
    "another protocol": "SSH-2.0-OpenSSH_9.2\r\n",
    "HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9": "GET / HTTP/9.9\r\nHost: a\r\n\r\n",
    "a websocket with a body": "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n"
    "Upgrade: websocket\r\nContent-Length: 3\r\n\r\nabc",
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_two_readers_would_read_differently_is_refused(world: World, what: str) -> None:
    client = await world.client()
    reply = await client.ask(REFUSED[what])
    assert (reply.status, reply.get("connection")) == (400, "close")
    assert await client.end() == b""


async def test_a_refused_request_reaches_no_instance(world: World) -> None:
    world.function()
    for text in REFUSED.values():
        client = await world.client()
        client.write(
            re.sub(r"^(\w+) / ", r"\1 /fn/fn/ ", text).replace("Host: a", "Host: localhost")
        )
        await client.end()
    assert world.driver.started == []


@pytest.mark.parametrize(
    "parts",
    [1, 20],
)
async def test_a_header_block_over_64_kib_is_refused(world: World, parts: int) -> None:
    world.function()
    client = await world.client()
    data = request(headers="".join(f"X-{n}: {'v' * 2000}\r\n" for n in range(40)))
    step = -(-len(data) // parts)
    for start in range(0, len(data), step):
        client.write(data[start : start + step])
        await asyncio.sleep(0.001 if parts > 1 else 0)
    reply = await client.reply()
    assert (reply.status, reply.get("connection")) == (431, "close")
    await client.end()


async def test_a_header_block_that_never_ends_is_refused(world: World) -> None:
    client = await world.client()
    client.write(b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 140_000)
    assert (await client.reply()).status == 431
    await client.end()


async def test_more_than_a_hundred_headers_are_refused(world: World) -> None:
    world.function()
    lines = "".join(f"X-{n}: {n}\r\n" for n in range(99))
    assert (await world.ask(request(headers=lines))).status == 200
    assert (await world.ask(request(headers=lines + "X: y\r\n"))).status == 431


async def test_a_large_header_block_within_bounds_passes(world: World) -> None:
    world.function()
    lines = "".join(f"X-{n}: {'v' * 1000}\r\n" for n in range(50))
    assert (await world.ask(request(headers=lines))).status == 200


async def test_a_body_over_the_bound_is_refused_before_it_is_sent(world: World) -> None:
    world.function(limits={"body": 1000})
    client = await world.client()
    client.write("POST /fn/fn/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1001\r\n\r\n")
    reply = await client.reply()
    assert (reply.status, reply.get("connection")) == (413, "close")
    assert "limits.body" in reply.json["error"]["hint"]
    await client.end()
    assert world.driver.started == []


async def test_a_refused_body_is_not_asked_for(world: World) -> None:
    world.function(limits={"body": 1000})
    client = await world.client()
    client.write(
        "POST /fn/fn/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1001\r\n"
        "Expect: 100-continue\r\n\r\n"
    )
    assert (await client.reply()).status == 413
    await client.end()


async def test_a_chunked_body_over_the_bound_is_refused_as_it_grows(world: World) -> None:
    world.function(limits={"body": 100_000})
    client = await world.client()
    client.write(request("PUT", headers=CHUNKED))
    chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
    for _ in range(11):
        client.write(chunk)
        await client.writer.drain()
    reply = await client.reply()
    assert reply.status == 413
    await client.end()
    await world.until(world.idle)


async def test_a_chunked_body_over_the_bound_is_refused_when_it_came_during_a_start(
    world: World,
) -> None:
    reached: list[Asked] = []

    def handle(launch: Launch, asked: Asked) -> bytes:
        reached.append(asked)
        return answer()

    world.function(serving(handle), limits={"body": 1000})
    world.driver.start_delay = 0.1
    client = await world.client()
    client.write(request("PUT", headers=CHUNKED))
    await asyncio.sleep(0.02)
    client.write(b"7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n")
    assert (await client.reply()).status == 413
    assert reached == []


async def test_refusals_of_mcp_routes_are_json_rpc(world: World) -> None:
    world.function(kind="mcp", limits={"body": 1000})
    reply = await world.ask(request("POST", "/fn/fn/mcp", b"x" * 1001))
    assert (reply.status, reply.get("content-type")) == (413, "application/json")
    assert reply.json["jsonrpc"] == "2.0"
    assert reply.json["id"] is None
    assert reply.json["error"]["code"] == -32600
    assert reply.json["error"]["data"]["code"] == "too_large"


async def test_a_body_of_exactly_the_bound_passes(world: World) -> None:
    world.function(limits={"body": 1000})
    assert len((await world.ask(request("POST", body=b"x" * 1000))).json["body"]) == 1000


async def test_a_malformed_request_waits_for_the_answers_before_it(world: World) -> None:
    gate = Gate()
    world.function(serving(gate))
    client = await world.client()
    client.write(request() + b"rubbish\r\n\r\n")
    gate.open.set()
    assert (await client.reply()).status == 200
    assert (await client.reply()).status == 400
    await client.end()


async def test_a_body_that_turns_malformed_leaves_nothing_claimed(world: World) -> None:
    world.function()
    client = await world.client()
    client.write(request("PUT", headers=CHUNKED) + b"5\r\nhello\r\n")
    await world.until(lambda: any(i.inflight for p in world.pools for i in p.instances))
    client.write(b"zz\r\n")
    assert (await client.reply()).status == 400
    client.abort()
    async with asyncio.timeout(1):
        await world.until(world.idle)


# Hosts and origins.


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:7070", "127.0.0.1:1", "127.9.9.9", "[::1]:7070", "a.localhost:7070"],
)
async def test_loopback_names_are_served(world: World, host: str) -> None:
    world.function()
    assert (await world.ask(request(host=host))).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.evil",
        "10.0.0.1",
        "",
    ],
)
async def test_a_foreign_host_on_loopback_is_misdirected(world: World, host: str) -> None:
    world.function()
    assert (await world.ask(request(host=host))).status == 421
    assert world.driver.started == []


async def test_any_host_is_served_on_a_public_listener(public: World) -> None:
    public.function(auth="none")
    assert (await public.ask(request(host="cove.example"))).status == 200


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "file://",
        "http://127.0.0.1.evil.example",
        "http://another.localhost:7070",  # the page of another function
    ],
)
async def test_a_foreign_origin_is_forbidden_on_mcp_routes(world: World, origin: str) -> None:
    world.function(kind="mcp")
    reply = await world.ask(request("POST", "/fn/fn/mcp", headers=f"Origin: {origin}\r\n"))
    assert (reply.status, reply.json["jsonrpc"]) == (403, "2.0")
    assert world.driver.started == []


@pytest.mark.parametrize("origin", ["http://localhost:5173", "http://127.0.0.1", "http://[::1]:3"])
async def test_an_origin_of_this_machine_is_served(world: World, origin: str) -> None:
    world.function(kind="mcp")
    reply = await world.ask(request("POST", "/fn/fn/mcp", headers=f"Origin: {origin}\r\n"))
    assert reply.status == 200
    assert "origin" not in reply.json["headers"]


async def test_on_a_public_listener_only_its_own_pages_are_served(public: World) -> None:
    public.function(kind="mcp", auth="none")
    for origin, status in (("http://cove.example", 200), ("http://localhost:5173", 403)):
        asked = request("POST", "/fn/fn/mcp", host="cove.example", headers=f"Origin: {origin}\r\n")
        assert (await public.ask(asked)).status == status


async def test_web_functions_judge_origins_themselves(world: World) -> None:
    world.function()
    reply = await world.ask(request(headers="Origin: https://other.example\r\n"))
    assert reply.json["headers"]["origin"] == "https://other.example"


# What is sent on.


async def test_the_backend_sees_whom_it_serves(world: World) -> None:
    world.function()
    spoofed = (
        "X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Prefix: /evil\r\n"
        "X-Request-Id: mine\r\nForwarded: for=evil\r\nX_Forwarded_Prefix: /evil\r\n"
    )
    reply = await world.ask(request(path="/fn/fn/a", host="localhost:7070", headers=spoofed))
    seen = reply.json["headers"]
    assert seen["host"] == seen["x-forwarded-host"] == "localhost:7070"
    assert seen["x-forwarded-prefix"] == "/fn/fn"
    assert seen["x-forwarded-proto"] == "http"
    assert seen["x-forwarded-for"] == "9.9.9.9, 127.0.0.1"
    assert seen["x-request-id"] == reply.get("x-request-id") != "mine"
    assert not {"forwarded", "x_forwarded_prefix"} & set(seen)


async def test_only_a_proxy_on_this_machine_says_for_whom_it_asks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Connection.connection_made

    def from_afar(self: Connection, transport: asyncio.BaseTransport) -> None:
        made(self, transport)
        self.peer, self.is_local = "203.0.113.7", False

    monkeypatch.setattr(Connection, "connection_made", from_afar)
    world.function()
    spoofed = "X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\n"
    seen = (await world.ask(request(headers=spoofed))).json["headers"]
    assert (seen["x-forwarded-for"], seen["x-forwarded-proto"]) == ("203.0.113.7", "http")


async def test_an_mcp_server_sees_a_loopback_name(world: World) -> None:
    world.function(kind="mcp")
    reply = await world.ask(request("POST", "/fn/fn/mcp", host="fn.localhost:7070"))
    assert reply.json["headers"]["host"] == "localhost:9000"


async def test_a_redirect_to_the_made_up_host_leads_back_to_the_function(world: World) -> None:
    async def handle(launch: Launch, asked: Asked) -> bytes:
        headers = f"Location: http://{asked.get('host')}/mcp\r\n"
        return answer(status="307 Temporary Redirect", headers=headers)

    world.function(serving(handle), kind="mcp")
    by_path = await world.ask(request("POST", "/fn/fn/other"))
    by_host = await world.ask(request("POST", "/other", host="fn.localhost"))
    assert (by_path.get("location"), by_host.get("location")) == ("/fn/fn/mcp", "/mcp")


async def test_endless_trailers_are_refused(world: World) -> None:
    world.function()
    client = await world.client()
    client.write(request("PUT", headers="Transfer-Encoding: chunked\r\n") + b"2\r\nok\r\n0\r\n")
    client.write("x-trailer: " + "a" * 2_000_000)
    assert (await client.head()).status == 400
    await world.until(world.idle)


async def test_headers_meant_for_one_hop_are_not_sent_on(world: World) -> None:
    world.function()
    hop = (
        "X-Before: 1\r\nConnection: keep-alive, X-Before, X-After\r\nX-After: 1\r\n"
        "Keep-Alive: timeout=5\r\nProxy-Connection: x\r\nProxy-Authorization: x\r\nTE: trailers\r\n"
        "Trailer: x\r\nX-Kept: 1\r\n"
    )
    seen = (await world.ask(request(headers=hop))).json["headers"]
    gone = {
        *("x-before", "x-after", "connection", "keep-alive", "proxy-connection"),
        *("proxy-authorization", "te", "trailer"),
    }
    assert gone.isdisjoint(seen)
    assert seen["x-kept"] == "1"


async def test_every_connection_header_of_a_request_counts(world: World) -> None:
    world.function()
    hop = "Connection: X-One\r\nX-One: 1\r\nConnection: X-Two\r\nX-Two: 2\r\n"
    seen = (await world.ask(request(headers=hop))).json["headers"]
    assert {"x-one", "x-two"}.isdisjoint(seen)


async def test_headers_meant_for_one_hop_do_not_come_back(world: World) -> None:
    hop = (
        "X-Before: 1\r\nConnection: keep-alive, X-Before, X-After\r\nX-After: 1\r\n"
        "Keep-Alive: timeout=5\r\nProxy-Authenticate: x\r\nUpgrade: h2c\r\nX-Kept: 1\r\n"
    )
    world.function(raw(answer(headers=hop)))
    reply = await world.ask(request())
    for name in ("x-before", "x-after", "keep-alive", "proxy-authenticate", "upgrade"):
        assert reply.get(name) is None, name
    assert reply.get("x-kept") == "1"


async def test_repeated_headers_are_kept_in_order_both_ways(world: World) -> None:
    def handle(launch: Launch, asked: Asked) -> bytes:
        seen = ",".join(value for name, value in asked.headers if name == "x-a")
        return answer(seen.encode(), headers="Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n")

    world.function(serving(handle))
    reply = await world.ask(request(headers="X-A: 1\r\nX-A: 2\r\n"))
    assert reply.body == b"1,2"
    assert [v for k, v in reply.headers if k == "set-cookie"] == ["a=1", "b=2"]


async def test_trailers_do_not_become_headers(world: World) -> None:
    world.function()
    world.driver.start_delay = 0.02
    reply = await world.ask(
        request("PUT", headers=CHUNKED) + b"2\r\nhi\r\n0\r\nX-Evil: 1\r\nAuthorization: x\r\n\r\n"
    )
    assert (reply.status, reply.json["body"]) == (200, "hi")
    assert {"x-evil", "authorization"}.isdisjoint(reply.json["headers"])


async def test_the_project_key_never_reaches_a_function(world: World) -> None:
    world.function(auth="key")
    seen = (await world.ask(request(headers=BEARER))).json["headers"]
    assert "authorization" not in seen


async def test_another_authorization_is_the_functions_own(world: World) -> None:
    world.function()
    mine = "Authorization: Bearer its-own\r\n"
    seen = (await world.ask(request(headers=mine))).json["headers"]
    assert seen["authorization"] == "Bearer its-own"


async def test_a_function_that_asks_for_a_key_lets_nobody_else_in(world: World) -> None:
    world.function(auth="key")
    for headers in ("", "Authorization: Bearer wrong\r\n", "Authorization: Basic eDp5\r\n"):
        reply = await world.ask(request(headers=headers))
        assert reply.status == 401
        assert reply.get("www-authenticate") == 'Bearer realm="cove"'
    assert world.driver.started == []


async def test_a_public_listener_asks_for_a_key_unless_told_otherwise(public: World) -> None:
    public.function()
    public.function(name="open", auth="none")
    assert (await public.ask(request())).status == 401
    assert (await public.ask(request(headers=BEARER))).status == 200
    assert (await public.ask(request(path="/fn/open/"))).status == 200
    assert (await public.ask(request(path="/metrics"))).status == 401
    assert (await public.ask(request(path="/metrics", headers=BEARER))).status == 200


# Answers.


async def test_a_chunked_answer_comes_whole(world: World) -> None:
    body = b"".join(b"%x\r\n%b\r\n" % (n, b"x" * n) for n in (1, 10, 70_000)) + b"0\r\n\r\n"
    world.function(raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body))
    client = await world.client()
    for _ in range(2):
        assert len((await client.ask(request())).body) == 70_011


async def test_an_answer_that_ends_with_its_connection_is_whole(world: World) -> None:
    world.function(raw(b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\n" + b"y" * 100_000, end=True))
    client = await world.client()
    for _ in range(2):
        reply = await client.ask(request())
        assert (reply.body, reply.get("x-a")) == (b"y" * 100_000, "1")


async def test_an_answer_of_http_1_0_is_passed_on(world: World) -> None:
    world.function(raw(b"HTTP/1.0 200 OK\r\n\r\nhello", end=True))
    reply = await world.ask(request())
    assert (reply.status, reply.body, reply.version) == (200, b"hello", "HTTP/1.1")


async def test_answers_to_head_have_no_body_and_keep_the_connection(world: World) -> None:
    def handle(launch: Launch, asked: Asked) -> bytes:
        return answer(b"" if asked.method == "HEAD" else b"body", headers="X-A: 1\r\n").replace(
            b"Content-Length: 0", b"Content-Length: 4"
        )

    world.function(serving(handle))
    client = await world.client()
    for _ in range(3):
        reply = await client.ask(request("HEAD"), to_head=True)
        assert (reply.status, reply.get("content-length")) == (200, "4")
        assert (await client.ask(request())).body == b"body"
    assert len(world.driver.started) == 1


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/nothing", "/fn/unknown/"])
async def test_coves_own_answers_to_head_have_no_body(world: World, path: str) -> None:
    client = await world.client()
    head = await client.ask(request("HEAD", path), to_head=True)
    reply = await client.ask(request("GET", "/readyz"))
    assert (reply.status, reply.body) == (200, b"ready\n"), head


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_answers_without_a_body_keep_the_connection(world: World, status: str) -> None:
    extra = "ETag: x\r\nContent-Length: 5\r\n" if status.startswith("304") else ""
    world.function(raw(f"HTTP/1.1 {status}\r\n{extra}\r\n".encode()))
    client = await world.client()
    for _ in range(3):
        reply = await client.ask(request())
        assert (f"{reply.status}", reply.get("transfer-encoding")) == (status[:3], None)


async def test_interim_answers_are_passed_over(world: World) -> None:
    world.function(
        raw(
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
            + answer()
        )
    )
    client = await world.client()
    for _ in range(2):
        reply = await client.ask(request())
        assert (reply.status, reply.body, reply.get("link")) == (200, b"ok", None)


@pytest.mark.parametrize(
    "said",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 100_000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    ],
)
async def test_an_answer_that_is_not_http_is_a_bad_gateway(world: World, said: bytes) -> None:
    world.function(raw(said))
    reply = await world.ask(request())
    assert (reply.status, reply.json["error"]["code"]) == (502, "bad_gateway")


async def test_a_second_answer_that_nobody_asked_for_reaches_nobody(world: World) -> None:
    world.function(raw(answer(b"first") + answer(b"smuggled")))
    client = await world.client()
    for _ in range(3):
        assert (await client.ask(request())).body == b"first"


async def test_an_early_answer_reaches_a_client_that_still_sends(world: World) -> None:
    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(b"no", status="403 Forbidden"))
        await reader.read()

    world.function(app)
    client = await world.client()
    client.write("POST /fn/fn/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nabc")
    reply = await client.reply()
    assert (reply.status, reply.body) == (403, b"no")
    await client.end()
    await world.until(world.idle)


async def test_a_stream_is_passed_on_event_by_event(world: World) -> None:
    more = asyncio.Event()

    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await receive(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await more.wait()
        writer.write(b"data: 2\n\n")

    world.function(app)
    client = await world.client()
    client.write(request())
    assert (await client.head()).get("content-type") == "text/event-stream"
    assert await client.chunk() == b"data: 1\n\n"
    more.set()
    assert await client.chunk() == b"data: 2\n\n"
    assert await client.chunk() == b""


# Request ids.


async def _refusals(world: World) -> list[Reply]:
    """One reply of every kind that Cove makes itself."""
    large = request(headers="".join(f"X-{n}: {n}\r\n" for n in range(200)))
    return [
        await world.ask(text)
        for text in (
            *("GET / HTTP/1.1\r\n\r\n", "rubbish\r\n\r\n", large),
            *(request(), request(path="/healthz"), request(path="/readyz")),
            *(request(path="/metrics"), request(path="/nothing"), request(path="/fn/nobody/")),
            *(request(host="evil.example"), request(path="/fn/shut/")),
            request("POST", "/fn/fn/", b"x" * 101),
        )
    ]


async def test_every_reply_has_a_request_id_of_its_own(world: World) -> None:
    world.function(limits={"body": 100})
    world.function(name="shut", auth="key")
    replies = await _refusals(world)
    ids = [reply.get("x-request-id") for reply in replies]
    assert None not in ids, [(r.status, r.body) for r in replies if not r.get("x-request-id")]
    assert len(set(ids)) == len(ids)


async def test_a_backends_own_request_id_does_not_replace_coves(world: World) -> None:
    def handle(launch: Launch, asked: Asked) -> bytes:
        return answer((asked.get("x-request-id") or "").encode(), headers="X-Request-Id: own\r\n")

    world.function(serving(handle))
    reply = await world.ask(request())
    assert reply.get("x-request-id") == reply.body.decode()


# Ordinary clients.


async def test_the_standard_librarys_client_is_served(world: World) -> None:
    world.function()

    def talk() -> list[tuple[int, int]]:
        connection = http.client.HTTPConnection("127.0.0.1", world.port, timeout=BOUND)
        said = []
        for body in (None, b"x" * 1000, iter([b"a" * 10, b"b" * 10])):
            connection.request("POST", "/fn/fn/x", body, encode_chunked=not isinstance(body, bytes))
            response = connection.getresponse()
            said.append((response.status, len(response.read())))
        connection.close()
        return said

    statuses = [status for status, _ in await asyncio.to_thread(talk)]
    assert statuses == [200, 200, 200]
