"""What a caller may get wrong on the wire: the answer says what to do, and others are served.

Where each kind is tested; here are the words, and what is not said elsewhere:

- a body over the bound, 413: test_wire (declared, chunked, during a start); here on MCP routes
- a head over its bounds, 431: test_wire (at once, in parts, endless); here within a read
- malformed HTTP, 400 and close: test_wire (REFUSED); here its words, and other protocols
- conflicting or repeated lengths: test_wire (REFUSED)
- bare CR or LF, folded lines, odd names: test_wire (REFUSED)
- chunks: test_wire (endless trailers); here sizes, extensions and what trailers say
- a wish for another protocol: test_wire (h2c), test_websockets; here what only looks like one
- a slow client (head, body, reading the reply, idle): test_timeouts; here behind another request
- a queue that is full, 503: test_scale; here on MCP routes
- too many connections, 503: test_observed; here with a request underway
- a port in use: test_listener
- a request during a drain: test_observed, test_streams; here behind another one
- whatever else there is: tests/fuzz
"""

from __future__ import annotations

import asyncio
import json

import pytest
import structlog

from cove.drivers.base import Launch
from cove.gateway.exchange import Exchange
from gateway.world import BOUND, Asked, Gate, Reply, World, answer, receive, request, serving

HTTP = "cove.gateway.http."
CHUNKED = "Transfer-Encoding: chunked\r\n"


async def refused(world: World, data: bytes | str) -> Reply:
    """The reply to what is refused: it closes, nobody was asked, and others are served."""
    client = await world.client()
    reply = await client.ask(data)
    assert reply.get("connection") == "close"
    assert reply.get("content-type") == "text/plain; charset=utf-8"
    assert await client.end() == b""
    assert (await world.ask(request(path="/healthz"))).status == 200
    assert world.driver.started == []
    return reply


SAID = {
    "a host twice": ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "send it once"),
    "no host": ("GET / HTTP/1.1\r\n\r\n", "asks for one"),
    "a name that is none": (
        "GET / HTTP/1.1\r\nHost: a\r\nX A: b\r\n\r\n",
        "malformed HTTP: Invalid",
    ),
    "a bare line feed": ("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", "RFC 9112"),
    "another coding": (
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "send the body chunked, or Content-Length",
    ),
    "a length of zeroes": (
        f"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {'0' * 5000}5\r\n\r\nhello",
        "send the body's length",
    ),
    "a handshake with a body": (
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        "Content-Length: 2\r\n\r\nhi",
        "send it without",
    ),
    "a handshake with a body in chunks": (
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        "send it without",
    ),
    "a proxy's request": ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", "send /path?query"),
    "a proxy's request for a path": ("CONNECT /fn/fn/ HTTP/1.1\r\nHost: a\r\n\r\n", "/path?query"),
    "a fragment": ("GET /fn/fn#/../b HTTP/1.1\r\nHost: a\r\n\r\n", "send /path?query"),
    "another host in the target": ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", "send the path"),
    "a user in the target": ("GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", "send the path"),
    "RTSP": ("DESCRIBE / RTSP/1.0\r\nHost: a\r\n\r\n", "send HTTP/1.1"),
    "ICE": ("SOURCE / ICE/1.0\r\nHost: a\r\n\r\n", "send HTTP/1.1"),
    "TLS": ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + "\x7f" * 500, "malformed HTTP"),
    "SMTP": ("EHLO example.com\r\n", "malformed HTTP"),
}


@pytest.mark.parametrize("what", SAID)
async def test_what_is_refused_is_told_why_and_what_to_send(world: World, what: str) -> None:
    world.function()
    data, words = SAID[what]
    reply = await refused(world, data)
    assert reply.status == 400
    assert words in reply.body.decode()


@pytest.mark.parametrize(
    "chunk",
    [
        *(
            "5 \r\nhello",
            "+5\r\nhello",
            "0x5\r\nhello",
            "-5\r\nhello",
            "5\nhello",
            "5\r\nhellojunk",
        ),
        *("5;a=\0\r\nhello", "5;a\nb\r\nhello", "5;a\r\r\nhello", "f" * 17 + "\r\nhello"),
    ],
)
async def test_a_chunk_that_two_readers_could_measure_differently_is_refused(
    world: World, chunk: str
) -> None:
    world.function()
    head = request("PUT", headers=CHUNKED).decode()
    reply = await refused(world, f"{head}{chunk}\r\n0\r\n\r\n")
    assert reply.status == 400
    assert "malformed HTTP" in reply.body.decode()


async def test_endless_chunk_extensions_are_refused(world: World) -> None:
    world.function()
    client = await world.client()
    client.write(request("PUT", headers=CHUNKED) + b"2\r\nok\r\n5;")
    client.write("e" * 2_000_000)
    reply = await client.reply()
    assert (reply.status, reply.get("connection")) == (400, "close")
    assert "send none" in reply.body.decode()
    client.abort()
    await world.until(world.idle)


async def test_a_head_over_the_bounds_is_told_them(world: World) -> None:
    many = "".join(f"X-{n}: {n}\r\n" for n in range(200))
    for headers in (many, "X: " + "v" * 70_000 + "\r\n"):
        reply = await refused(world, request(headers=headers))
        assert reply.status == 431
        assert (
            "64 KiB and 100 header fields are the most of a head; send fewer" in reply.body.decode()
        )


@pytest.mark.parametrize("parts", [1, 2])
async def test_a_large_head_is_refused_wherever_in_a_read_it_begins(
    world: World, parts: int
) -> None:
    world.function()
    client = await world.client()
    data = request(path="/healthz") + request(headers="X-Long: " + "v" * 70_000 + "\r\n")
    step = -(-len(data) // parts)
    for start in range(0, len(data), step):
        client.write(data[start : start + step])
        await asyncio.sleep(0.02)
    assert (await client.reply()).status == 200
    assert (await client.reply()).status == 431
    assert await client.end() == b""
    assert world.driver.started == []


async def test_a_head_within_the_bounds_is_served_wherever_in_a_read_it_begins(
    world: World,
) -> None:
    world.function()
    client = await world.client()
    data = request(path="/healthz") + request(headers="X-Long: " + "v" * 60_000 + "\r\n")
    for start in range(0, len(data), 20_000):
        client.write(data[start : start + 20_000])
        await asyncio.sleep(0.01)
    assert [(await client.reply()).status for _ in range(2)] == [200, 200]


# Bodies over the bound, in the protocol of the route.


async def test_a_chunked_body_over_the_bound_is_json_rpc_on_mcp_routes(world: World) -> None:
    world.function(kind="mcp", limits={"body": 1000})
    client = await world.client()
    client.write(request("PUT", "/fn/fn/mcp/x", headers=CHUNKED))
    for _ in range(3):
        client.write(b"1f4\r\n" + b"x" * 500 + b"\r\n")
        await asyncio.sleep(0.01)
    reply = await client.reply()
    assert (reply.status, reply.get("connection")) == (413, "close")
    error = reply.json["error"]
    assert (reply.json["jsonrpc"], error["code"]) == ("2.0", -32600)
    assert "limits.body" in error["message"]
    await client.end()
    await world.until(world.idle)
    assert (await world.ask(request("POST", "/fn/fn/mcp", b"{}"))).status == 200


async def test_not_a_byte_is_read_of_a_body_that_says_it_is_too_large(world: World) -> None:
    world.function(limits={"body": 1000})
    client = await world.client()
    client.writer.transport.set_write_buffer_limits(high=64 * 1024)
    client.write("POST /fn/fn/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000000\r\n\r\n")
    reply = await client.reply()
    assert (reply.status, reply.get("connection")) == (413, "close")
    assert reply.json["error"]["hint"] == "send less, or raise limits.body in cove.toml"
    assert await client.end() == b""
    assert world.driver.started == []


# Wishes for another protocol: what one reader takes for one, and the next does not.

SMUGGLED = request(path="/fn/fn/smuggled")
NEXT = request(path="/fn/fn/next")


@pytest.mark.parametrize(
    "wish",
    [
        "Proxy-Connection: upgrade\r\nUpgrade: h2c\r\n",
        "Proxy-Connection: upgrade\r\nUpgrade: websocket\r\n",
        "Connection: x-upgrade\r\nUpgrade: h2c\r\n",
        "Connection: upgraded\r\nUpgrade: websocket\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\n",
        "Connection: keep-alive, Upgrade\r\nUpgrade: h2c\r\n",
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_is_no_request_whatever_its_head_wishes_for(
    world: World, wish: str, chunked: bool
) -> None:
    world.function()
    client = await world.client()
    if chunked:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
        client.write(request("PUT", headers=wish + CHUNKED) + body + NEXT)
    else:
        client.write(request("POST", body=SMUGGLED, headers=wish) + NEXT)
    first, second = await client.reply(), await client.reply()
    assert first.json["body"] == SMUGGLED.decode()
    assert (second.json["path"], second.json["method"]) == ("/next", "GET")
    assert not {"upgrade", "content-length"} & second.json["headers"].keys()


WEBSOCKET = "Connection: Upgrade\r\nUpgrade: websocket\r\n"


async def test_what_follows_a_handshake_that_is_not_granted_is_served(world: World) -> None:
    world.function()
    client = await world.client()
    client.write(request(path="/fn/fn/a", headers=WEBSOCKET) * 3 + NEXT)
    replies = [await client.reply() for _ in range(4)]
    assert [reply.json["path"] for reply in replies] == ["/a", "/a", "/a", "/next"]
    assert (await client.ask(NEXT)).json["path"] == "/next"


async def test_nothing_is_read_as_a_request_while_a_handshake_waits(world: World) -> None:
    asked, granted = asyncio.Event(), asyncio.Event()

    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await receive(reader)
        writer.write(answer())
        await receive(reader)
        asked.set()
        await granted.wait()
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        writer.write(await reader.readexactly(len(NEXT)))

    world.function(app)
    client = await world.client()
    client.write(request() + request(headers=WEBSOCKET))
    assert (await client.reply()).status == 200
    async with asyncio.timeout(BOUND):
        await asked.wait()
        client.write(NEXT)
        await asyncio.sleep(0.05)
        granted.set()
        assert (await client.reply()).status == 101
        assert await client.reader.readexactly(len(NEXT)) == NEXT


@pytest.mark.parametrize("method", ["POST", "HEAD"])
async def test_only_a_get_shakes_hands(world: World, method: str) -> None:
    world.function()
    client = await world.client()
    for _ in range(2):
        reply = await client.ask(request(method, headers=WEBSOCKET), to_head=method == "HEAD")
        assert reply.status == 200


async def test_nobody_of_http_1_0_is_told_to_continue_or_to_switch(world: World) -> None:
    world.function()
    expects = request("POST", body=b"hello", headers="Expect: 100-continue\r\n", version="1.0")
    client = await world.client()
    client.write(expects[:-5])
    await asyncio.sleep(0.05)
    client.write(expects[-5:])
    assert (await client.reply()).json["body"] == "hello"
    reply = await world.ask(request(headers=WEBSOCKET, version="1.0"))
    assert (reply.status, "upgrade" in reply.json["headers"]) == (200, False)


async def test_a_trailer_that_closes_the_connection_does_so(world: World) -> None:
    world.function()
    client = await world.client()
    client.write(request("PUT", headers=CHUNKED) + b"0\r\nConnection: close\r\n\r\n")
    assert (await client.reply()).status == 200
    assert await client.end() == b""


# Targets.


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://fn.localhost?x=/fn/other/", "/?x=/fn/other/"),
        ("HTTP://FN.localhost/a?b", "/a?b"),
        ("http://fn.localhost", "/"),
    ],
)
async def test_an_absolute_target_is_read_as_its_parts_say(
    world: World, target: str, path: str
) -> None:
    world.function()
    world.function(name="other", auth="key")
    reply = await world.ask(request(path=target, host="fn.localhost"))
    assert (reply.status, reply.json["path"]) == (200, path)


# After the last reply.


async def test_nothing_is_served_after_the_last_reply(world: World) -> None:
    reached = []

    def handle(launch: Launch, asked: Asked) -> bytes:
        reached.append(asked)
        return answer()

    world.function(serving(handle))
    for data in (
        request(version="1.0", headers="Connection: keep-alive\r\n"),
        request(headers="Connection: close\r\n"),
    ):
        client = await world.client()
        client.write(data + NEXT)
        assert (await client.reply()).status == 200
        assert await client.end() == b""
    assert len(reached) == 2


@pytest.mark.parametrize("behind", [b"0\r\n\r\n" + NEXT, b"what is no chunk\r\n"])
async def test_nothing_comes_of_what_stands_behind_a_body_that_was_refused(
    world: World, behind: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    reached = []

    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        reached.append(await reader.readuntil(b"\r\n\r\n"))
        await reader.read()

    world.function(app, limits={"body": 1000})
    client = await world.client()
    client.write(request("PUT", headers=CHUNKED))
    await world.until(lambda: bool(reached))
    client.write(b"7d0\r\n" + b"x" * 2000 + b"\r\n" + behind)
    assert (await client.reply()).status == 413
    assert await client.end() == b""
    await world.until(world.idle)
    assert len(reached) == 1
    assert "Fatal error" not in caplog.text


async def test_a_refusal_reaches_a_client_that_goes_on_sending(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HTTP + "_BODY_SECONDS", 0.1)
    world.function(limits={"body": 10_000_000})
    client = await world.client()
    client.write("POST /fn/fn/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\nabc")
    reply = await client.head()
    client.write(b"x" * 1_000_000)
    reply.body = await client.reader.readexactly(int(reply.get("content-length") or 0))
    assert (reply.status, reply.get("connection")) == (408, "close")
    assert "send it in one go" in reply.body.decode()
    assert await client.end() == b""
    await world.until(world.idle)


async def test_who_never_closes_after_the_last_reply_is_cut_off(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HTTP + "_LINGER_SECONDS", 0.1)
    client = await world.client()
    assert (await client.ask("rubbish\r\n\r\n")).status == 400

    async def drip() -> None:
        while True:
            client.write("x")
            await asyncio.sleep(0.01)

    drops = asyncio.create_task(drip())
    await world.until(lambda: not world.gateway._connections)
    drops.cancel()


async def test_a_defect_under_a_body_is_answered_and_logged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Exchange, data: bytes) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(Exchange, "feed", broken)
    with structlog.testing.capture_logs() as logs:
        reply = await refused(world, request("POST", body=b"hello"))
    assert reply.status == 500
    assert "its log says why" in reply.body.decode()
    assert [line["error"] for line in logs] == ["KeyError('a defect')"]


# Slow clients, in phases that have another before them.


async def test_a_head_that_begins_behind_another_request_is_bounded_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HTTP + "_HEAD_SECONDS", 0.1)
    client = await world.client()
    client.write(request(path="/healthz") + b"GET /healthz HTTP/1.1\r\nHo")
    assert (await client.reply()).status == 200
    reply = await client.reply()
    assert (reply.status, reply.get("connection")) == (408, "close")
    assert "the head took more than 0.1 s" in reply.body.decode()
    assert await client.end() == b""


async def test_a_body_that_stalls_under_an_answer_does_not_pass_for_its_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HTTP + "_BODY_SECONDS", 0.1)

    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
        await reader.read()

    world.function(app)
    client = await world.client()
    client.write(request("POST", body=b"0123456789", version="1.0")[:-5])
    assert (await client.head()).status == 200
    with pytest.raises(ConnectionError):
        await client.reader.read()
    await world.until(world.idle)


# No room.


async def test_a_full_queue_is_json_rpc_on_mcp_routes(world: World) -> None:
    gate = Gate()
    world.function(serving(gate), kind="mcp", scale={"concurrency": 1, "max": 1, "queue": 1})
    clients = [await world.client() for _ in range(2)]
    call = request("POST", "/fn/fn/mcp", json.dumps({"jsonrpc": "2.0", "id": 7}).encode())
    clients[0].write(call)
    await gate.next()
    clients[1].write(call)
    await world.until(lambda: world.pools[0].waiting == 1)
    third = await world.client()
    reply = await third.ask(call)
    assert (reply.status, reply.get("retry-after")) == (503, "1")
    error = reply.json["error"]
    assert (reply.json["jsonrpc"], error["code"]) == ("2.0", -32000)
    assert (error["data"]["code"], error["data"]["retry"]) == ("overloaded", True)
    assert "scale." in error["message"]
    assert reply.get("connection") is None
    assert (await third.ask(request(path="/healthz"))).status == 200
    gate.open.set()
    assert {(await client.reply()).status for client in clients} == {200}


async def test_one_connection_too_many_is_told_so_whatever_it_has_sent(world: World) -> None:
    world.gateway._most = 2
    first, _second = [await world.client() for _ in range(2)]
    for _ in range(20):
        third = await world.client()
        third.write(request("POST", "/healthz", b"x" * 10_000))
        reply = await third.reply()
        assert (reply.status, reply.get("retry-after")) == (503, "1")
        assert "try again later" in reply.body.decode()
        third.abort()
    assert (await first.ask(request(path="/healthz"))).status == 200


# Drain.


async def test_a_request_behind_another_is_not_begun_during_a_drain(world: World) -> None:
    gate = Gate()
    world.function(serving(gate))
    client = await world.client()
    client.write(request() * 3)
    await gate.next()
    drain = asyncio.create_task(world.gateway.drain(BOUND))
    await world.until(lambda: world.gateway.draining)
    gate.open.set()
    reply = await client.reply()
    assert (reply.status, reply.get("connection")) == (200, "close")
    assert await client.end() == b""
    await asyncio.wait_for(drain, BOUND)
    assert gate.served == 1
