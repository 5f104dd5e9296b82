"""Whoever is slow slows the other side, and Cove holds next to nothing in between."""

from __future__ import annotations

import asyncio
import hashlib

from cove.drivers.base import Launch
from gateway.world import (
    BOUND,
    Asked,
    Client,
    World,
    answer,
    receive,
    request,
    resident,
    serving,
)

MIB = 1024 * 1024
PIECE = bytes(range(256)) * 256  # 64 KiB
LARGE = 200 * MIB
ROOM = 24 * MIB
"""What Cove, this test and both kernels' buffers may hold of a body, at most."""


class Source:
    """A backend that sends as much as is taken, and knows how much that was."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.sent = 0

    async def __call__(
        self, launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while await receive(reader) is not None:
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {self.size}\r\n\r\n".encode())
            for _ in range(self.size // len(PIECE)):
                writer.write(PIECE)
                await writer.drain()
                self.sent += len(PIECE)


class Sink:
    """A backend that reads a body only once it is let, and answers with its digest."""

    def __init__(self) -> None:
        self.read = asyncio.Event()

    async def __call__(
        self, launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        await self.read.wait()
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if b"content-length" in line
        )
        digest = hashlib.blake2b()
        while length:
            data = await reader.read(min(length, MIB))
            digest.update(data)
            length -= len(data)
        writer.write(answer(digest.hexdigest().encode()))


async def settled(count) -> int:  # type: ignore[no-untyped-def]
    """A number, once it grows no more."""
    async with asyncio.timeout(BOUND):
        before, now = -1, count()
        while before != now:
            await asyncio.sleep(0.1)
            before, now = now, count()
    return now


async def swallow(client: Client, size: int) -> str:
    """The digest of the next `size` bytes."""
    digest = hashlib.blake2b()
    async with asyncio.timeout(20):
        while size:
            data = await client.reader.read(min(size, MIB))
            assert data
            digest.update(data)
            size -= len(data)
    return digest.hexdigest()


def digest_of(size: int) -> str:
    digest = hashlib.blake2b()
    for _ in range(size // len(PIECE)):
        digest.update(PIECE)
    return digest.hexdigest()


async def test_an_answer_that_nobody_reads_is_not_taken_from_the_backend(world: World) -> None:
    source = Source(LARGE)
    world.function(source)
    client = await world.small()
    client.write(request())
    await client.head()
    before = resident()
    taken = await settled(lambda: source.sent)
    assert taken < ROOM
    assert resident() - before < ROOM
    assert await swallow(client, LARGE) == digest_of(LARGE)
    await world.until(world.idle)


async def test_answers_that_nobody_reads_do_not_pile_up_behind_each_other(world: World) -> None:
    served = 0

    def handle(launch: Launch, asked: Asked) -> bytes:
        nonlocal served
        served += 1
        return answer(PIECE[: 32 * 1024])

    world.function(serving(handle))
    client = await world.small()
    count = 1300
    client.write(request() * count)
    taken = await settled(lambda: served)
    for _ in range(count):
        assert len((await client.reply()).body) == 32 * 1024
    assert taken * 32 * 1024 < ROOM


async def test_a_body_that_the_backend_does_not_read_is_not_taken_from_the_client(
    world: World,
) -> None:
    sink = Sink()
    world.function(sink, limits={"body": LARGE})
    client = await world.client()
    client.writer.transport.set_write_buffer_limits(high=len(PIECE))
    sent = 0

    async def upload() -> None:
        nonlocal sent
        client.write(f"POST /fn/fn/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LARGE}\r\n\r\n")
        for _ in range(LARGE // len(PIECE)):
            client.write(PIECE)
            await client.writer.drain()
            sent += len(PIECE)

    before = resident()
    task = asyncio.create_task(upload())
    await asyncio.sleep(0.1)
    taken = await settled(lambda: sent)
    assert taken < ROOM
    assert resident() - before < ROOM
    sink.read.set()
    async with asyncio.timeout(20):
        await task
        assert (await client.reply()).body.decode() == digest_of(LARGE)


async def test_a_body_that_comes_before_its_instance_waits_at_the_client(world: World) -> None:
    sink = Sink()
    sink.read.set()
    world.function(sink, limits={"body": LARGE})
    world.driver.start_delay = 0.3
    client = await world.client()
    client.writer.transport.set_write_buffer_limits(high=len(PIECE))
    sent = 0
    size = 64 * MIB

    async def upload() -> None:
        nonlocal sent
        client.write(f"POST /fn/fn/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n")
        for _ in range(size // len(PIECE)):
            client.write(PIECE)
            await client.writer.drain()
            sent += len(PIECE)

    task = asyncio.create_task(upload())
    await asyncio.sleep(0.2)
    assert sent < ROOM
    async with asyncio.timeout(20):
        await task
        assert (await client.reply()).body.decode() == digest_of(size)


async def test_fifty_slow_readers_cost_fifty_small_buffers(world: World) -> None:
    source = Source(8 * MIB)
    world.function(source, scale={"concurrency": 100})
    clients = [await world.small() for _ in range(50)]
    before = resident()
    for client in clients:
        client.write(request())
    for client in clients:
        await client.head()
    await settled(lambda: source.sent)
    assert resident() - before < 50 * 2 * MIB
    expected = digest_of(8 * MIB)
    assert set(await asyncio.gather(*(swallow(c, 8 * MIB) for c in clients))) == {expected}
    await world.until(world.idle)
