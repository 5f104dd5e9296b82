"""Real programs that end under their requests: sockets close before anybody knows why."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cove import runtimes
from cove.drivers.process import ProcessDriver
from cove.engine.pool import Pool
from cove.model import Plan
from gateway.world import World, request

DIES = """
import os, socket
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
while True:
    caller, _ = listener.accept()
    said = caller.recv(65536)
    if b"/die" in said:
        os._exit(7)
    if said:
        head = b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\n"
        caller.sendall(head + b"ok")
    caller.close()
"""


@pytest.fixture
async def pool(world: World, tmp_path: Path) -> AsyncIterator[Pool]:
    serve = Path(runtimes.__file__).parent / "serve.py"
    driver = ProcessDriver(serve, tmp_path / "state")
    world.supervisor._drivers = {"process": driver}
    pool = world.function()
    plan = Plan((sys.executable, "-c", DIES), {}, str(tmp_path), None, None)
    pool.version = dataclasses.replace(pool.version, plan=plan)
    yield pool
    await driver.close()


async def test_a_program_that_ends_under_a_request_is_named_with_its_exit(
    world: World, pool: Pool
) -> None:
    assert (await world.ask(request())).body == b"ok"
    reply = await world.ask(request(path="/fn/fn/die"))
    assert reply.status == 502
    assert "exit code 7" in reply.json["error"]["message"]


async def test_the_request_after_a_crash_is_served_by_a_new_instance(
    world: World, pool: Pool
) -> None:
    assert (await world.ask(request())).body == b"ok"
    assert (await world.ask(request(path="/fn/fn/die"))).status == 502
    for _ in range(3):
        assert (await world.ask(request())).status == 200
