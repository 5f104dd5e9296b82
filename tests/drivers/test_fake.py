"""What the fake driver lets a test do beyond the contract."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from conftest import BOUND, launch_of

from cove.drivers.base import Exit, Launch
from cove.drivers.fake import FakeDriver, FakeRunning
from cove.errors import CoveError


async def test_one_connection_carries_many_requests(tmp_path: Path) -> None:
    driver = FakeDriver()
    running = await driver.start(launch_of(tmp_path, ""))
    reader, writer = await asyncio.open_connection(sock=await running.connect())
    requests = (
        b"POST /a HTTP/1.1\r\nContent-Length: 2\r\nX-Y: z\r\n\r\nhi",
        b"PUT /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nho\r\n1\r\n!\r\n0\r\n\r\n",
    )
    for request, body in zip(requests, ("hi", "ho!"), strict=True):
        writer.write(request)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), BOUND)
        size = int(head.split(b"Content-Length: ")[1])
        said = json.loads(await reader.readexactly(size))
        assert (said["body"], said["instance"]) == (body, running.launch.id)
    writer.close()
    await driver.close()


async def test_a_crash_ends_it_with_the_code_and_cuts_its_connections(tmp_path: Path) -> None:
    driver = FakeDriver()
    running = await driver.start(launch_of(tmp_path, ""))
    reader, writer = await asyncio.open_connection(sock=await running.connect())
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), BOUND)
    driver.running[running.launch.id].crash(3)
    assert await running.exited == Exit(code=3)
    assert driver.running == {}
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(100_000), BOUND)
    with pytest.raises(ConnectionRefusedError):
        await running.connect()
    writer.close()


async def test_starts_fail_as_told(tmp_path: Path) -> None:
    driver = FakeDriver()
    driver.fail_start = CoveError("start_failed", "told to")
    with pytest.raises(CoveError, match="told to"):
        await driver.start(launch_of(tmp_path, ""))
    assert driver.running == {}


async def test_an_app_of_the_tests_own_serves(tmp_path: Path) -> None:
    async def app(
        launch: Launch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(launch.id.encode())

    driver = FakeDriver(app)
    running = await driver.start(launch_of(tmp_path, ""))
    reader, writer = await asyncio.open_connection(sock=await running.connect())
    assert await asyncio.wait_for(reader.read(), BOUND) == running.launch.id.encode()
    writer.close()
    await driver.close()


async def test_a_driver_adopts_what_another_has_left_in_its_world(tmp_path: Path) -> None:
    world: dict[str, FakeRunning] = {}
    forgotten = FakeDriver(world=world)
    before = await forgotten.start(launch_of(tmp_path, ""))
    driver = FakeDriver(world=world)
    (running,) = await driver.adopt()
    assert running.id == before.id
    assert driver.running == {running.id: running}
    driver.running[running.id].crash(3)
    assert await running.exited == Exit(code=3)
    assert not before.exited.done()
    assert await FakeDriver(world=world).adopt() == []
    assert await FakeDriver().adopt() == []
