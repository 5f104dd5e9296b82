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
from cove.gateway.routes import Route
from cove.model import Plan
from gateway.test_losses import data
from gateway.test_streams import call
from gateway.world import World, request

DIES = """
import os, signal, socket
HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nTransfer-Encoding: chunked\\r\\n"
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
while True:
    caller, _ = listener.accept()
    said = caller.recv(65536)
    if b"/die" in said:
        os._exit(7)
    if b"stream" in said:
        caller.sendall(HEAD + b"\\r\\n9\\r\\ndata: 1\\n\\n\\r\\n")
    if b"kill" in said:
        os.kill(os.getpid(), signal.SIGKILL)
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


@pytest.mark.parametrize("stream", [True, False])
async def test_an_mcp_caller_is_told_by_name_of_a_kill(
    world: World, pool: Pool, stream: bool
) -> None:
    pool.version = dataclasses.replace(
        pool.version, spec=dataclasses.replace(pool.version.spec, kind="mcp")
    )
    world.routes.put(Route(pool, world.metrics.function("fn"), key_by_default=False))
    client = await world.client()
    client.write(request("POST", "/fn/fn/mcp", call("stream kill" if stream else "kill")))
    reply = await client.reply()
    assert reply.status == (200 if stream else 502)
    said = reply.json if not stream else data(reply.body.split(b"\n\n")[1])
    assert said["id"] == ("stream kill" if stream else "kill")
    assert said["error"]["data"]["reason"] == {"signal": 9}


async def test_the_request_after_a_crash_is_served_by_a_new_instance(
    world: World, pool: Pool
) -> None:
    assert (await world.ask(request())).body == b"ok"
    assert (await world.ask(request(path="/fn/fn/die"))).status == 502
    for _ in range(3):
        assert (await world.ask(request())).status == 200
