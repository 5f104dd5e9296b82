"""Upgrades: another protocol through the same connection, both ways, to its end."""

from __future__ import annotations

import asyncio

import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve

from cove.drivers.base import Exit, Launch
from gateway.world import BOUND, Client, Gate, World, answer, receive, request, serving

UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"


async def _join(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, other: asyncio.StreamWriter
) -> None:
    while data := await reader.read(65536):
        other.write(data)
        await other.drain()
    other.close()


class Chat:
    """A real WebSocket server, as a function: bytes are joined to it."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.closed: asyncio.Queue[int | None] = asyncio.Queue()
        self._server: Server | None = None

    async def handle(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.paths.append(connection.request.path)
        try:
            async for message in connection:
                await connection.send(message)
        finally:
            self.closed.put_nowait(connection.close_code)

    async def open(self) -> None:
        self._server = await serve(self.handle, "127.0.0.1", 0, max_size=None)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def __call__(
        self, launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        assert self._server is not None
        port = next(iter(self._server.sockets)).getsockname()[1]
        inner, outer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_join(reader, writer, outer), _join(inner, outer, writer))


def dial(world: World, path: str = "/fn/fn/ws") -> connect:
    return connect(f"ws://127.0.0.1:{world.port}{path}", max_size=None, open_timeout=BOUND)


async def test_messages_pass_both_ways(world: World) -> None:
    chat = Chat()
    await chat.open()
    world.function(chat)
    async with dial(world, "/fn/fn/ws?room=1") as connection:
        for message in ("hello", b"\x00\xff" * 10, "ä" * 1000):
            await connection.send(message)
            assert await connection.recv() == message
        assert chat.paths == ["/ws?room=1"]
        assert world.one().inflight == 1
    assert await asyncio.wait_for(chat.closed.get(), BOUND) == 1000
    await world.until(world.idle)
    await chat.close()


async def test_large_messages_pass_whole(world: World) -> None:
    chat = Chat()
    await chat.open()
    world.function(chat)
    async with dial(world) as connection:
        for size in (70_000, 10_000_000):
            message = bytes(range(256)) * (size // 256)
            await asyncio.gather(connection.send(message), _receives(connection, message))
    await chat.close()


async def _receives(connection: ClientConnection, message: bytes) -> None:
    assert await asyncio.wait_for(connection.recv(), BOUND) == message


async def test_a_tunnel_is_not_bounded_by_the_timeout_of_requests(world: World) -> None:
    chat = Chat()
    await chat.open()
    world.function(chat, limits={"timeout": 0.1})
    async with dial(world) as connection:
        await asyncio.sleep(0.3)
        await connection.send("still here")
        assert await connection.recv() == "still here"
    await chat.close()


async def test_a_tunnel_ends_after_its_lifetime(world: World) -> None:
    chat = Chat()
    await chat.open()
    world.function(chat, session={"lifetime": 0.2})
    async with dial(world) as connection:
        with pytest.raises(websockets.ConnectionClosed) as caught:
            await asyncio.wait_for(connection.recv(), BOUND)
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (
            *(1001, "session.lifetime has passed"),
        )
    await world.until(world.idle)
    await chat.close()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (Exit(code=7), "the instance ended: exit code 7"),
        (Exit(signal=9), "the instance ended: killed by signal 9"),
    ],
)
async def test_a_client_is_told_in_a_close_frame_how_its_instance_ended(
    world: World, how: Exit, words: str
) -> None:
    chat = Chat()
    await chat.open()
    world.function(chat)
    async with dial(world) as connection:
        await connection.send("hello")
        await connection.recv()
        world.ends(world.one(), how)
        with pytest.raises(websockets.ConnectionClosedError) as caught:
            await asyncio.wait_for(connection.recv(), BOUND)
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1011, words)
    await world.until(world.idle)
    await chat.close()


async def test_an_instance_that_only_hangs_up_is_told_as_that(world: World) -> None:
    connection = await _tunnel(world, b"\x81\x05hello")
    assert await connection.end() == b"\x88\x16\x03\xf3the instance hung up"
    await world.until(world.idle)


@pytest.mark.parametrize(
    "said",
    [
        b"\x81\x05hel",  # within a frame
        b"\x81",
        b"\x81\x7e\x01",
        b"\x81\x02hi\x88\x02\x03\xe8",  # after its own Close frame
        b"first words",  # what is no WebSocket at all
    ],
)
async def test_where_no_frame_can_stand_none_is_sent(world: World, said: bytes) -> None:
    connection = await _tunnel(world, said)
    assert await connection.end() == b""
    await world.until(world.idle)


async def test_a_message_in_parts_is_no_hindrance_to_a_control_frame(world: World) -> None:
    connection = await _tunnel(world, b"\x01\x03hel")
    assert (await connection.end()).startswith(b"\x88")


async def test_a_drain_sends_tunnels_away_last(world: World) -> None:
    chat, gate = Chat(), Gate()
    await chat.open()
    world.function(chat)
    world.function(serving(gate), name="slow")
    slow = await world.client()
    slow.write(request(path="/fn/slow/"))
    await gate.next()
    async with dial(world) as connection:
        drain = asyncio.create_task(world.gateway.drain(BOUND))
        await connection.send("still here")
        assert await connection.recv() == "still here"
        gate.open.set()
        assert (await slow.reply()).status == 200
        with pytest.raises(websockets.ConnectionClosedOK) as caught:
            await asyncio.wait_for(connection.recv(), BOUND)
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1001, "Cove is stopping")
    await asyncio.wait_for(drain, BOUND)
    await world.until(world.idle)
    await chat.close()


async def _tunnel(world: World, said: bytes) -> Client:
    """A tunnel through which so much was said before the instance hangs up."""

    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if await receive(reader) is None:
            return
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        writer.write(said)
        await seen.wait()

    seen = asyncio.Event()
    world.function(app)
    client = await world.client()
    client.write(request(headers=UPGRADE))
    assert (await client.head()).status == 101
    async with asyncio.timeout(BOUND):
        assert await client.reader.readexactly(len(said)) == said
    seen.set()
    return client


@pytest.mark.parametrize("side", ["client", "instance"])
async def test_a_tunnel_ends_with_either_side(world: World, side: str) -> None:
    chat = Chat()
    await chat.open()
    world.function(chat)
    async with dial(world) as connection:
        await connection.send("hello")
        await connection.recv()
        if side == "client":
            connection.transport.abort()
        else:
            world.crash(world.one())
            with pytest.raises(websockets.ConnectionClosed):
                await asyncio.wait_for(connection.recv(), BOUND)
    await asyncio.wait_for(chat.closed.get(), BOUND)
    await world.until(world.idle)
    await chat.close()


async def test_what_comes_right_behind_the_handshake_is_not_lost(world: World) -> None:
    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if await receive(reader) is None:
            return
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: x\r\n\r\nfirst words"
        )
        while data := await reader.read(100):
            writer.write(data.upper())

    world.function(app)
    client = await world.client()
    client.write(request(headers=UPGRADE) + b"early bird")
    reply = await client.head()
    assert (reply.status, reply.get("upgrade")) == (101, "websocket")
    assert reply.get("sec-websocket-accept") == "x"
    async with asyncio.timeout(BOUND):
        assert await client.reader.readexactly(11) == b"first words"
        assert await client.reader.readexactly(10) == b"EARLY BIRD"


async def test_a_tunnel_holds_back_whoever_is_too_fast(world: World) -> None:
    sent = 0

    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        nonlocal sent
        if await receive(reader) is None:
            return
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        for _ in range(1000):
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    world.function(app)
    client = await world.small()
    client.write(request(headers=UPGRADE))
    assert (await client.head()).status == 101
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.1)
    assert sent < 24_000_000
    async with asyncio.timeout(BOUND):
        assert len(await client.reader.readexactly(65_536_000)) == 65_536_000


async def test_an_upgrade_that_is_refused_is_an_answer_like_any_other(world: World) -> None:
    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while (asked := await receive(reader)) is not None:
            upgrade = asked.get("upgrade")
            writer.write(answer(b"no", status="403 Forbidden") if upgrade else answer(b"yes"))

    world.function(app)
    client = await world.client()
    reply = await client.ask(request(headers=UPGRADE))
    assert (reply.status, reply.body) == (403, b"no")
    await world.until(world.idle)
    if reply.get("connection") != "close":
        assert (await client.ask(request())).body == b"yes"


async def test_an_upgrade_that_nobody_asked_for_opens_no_tunnel(world: World) -> None:
    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while await receive(reader) is not None:
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
            )

    world.function(app)
    reply = await world.ask(request())
    assert (reply.status, reply.json["error"]["code"]) == (502, "bad_gateway")
    await world.until(world.idle)


async def test_an_upgrade_waits_for_its_instance(world: World) -> None:
    chat = Chat()
    await chat.open()
    world.function(chat)
    world.driver.start_delay = 0.1
    async with dial(world) as connection:
        await connection.send("hello")
        assert await connection.recv() == "hello"
    await chat.close()
