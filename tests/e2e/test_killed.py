"""SIGKILL of Cove: what it was doing ends with it, what it was keeping does not."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from e2e.clients import client, text
from e2e.conftest import installed
from e2e.installation import PATIENCE, Installation, until_async

COUNTER = '''
import os, threading, time
from mcp.server.mcpserver import MCPServer

mcp = MCPServer("counter")
count = 0

@mcp.tool()
def up() -> str:
    """Counts."""
    global count
    count += 1
    print("counted", count, flush=True)
    return f"{count} {os.getpid()}"

@mcp.tool()
def tick(seconds: float) -> str:
    """Prints numbered lines from now on, for so long, and then is gone."""
    def run():
        number, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            print("tick", number, flush=True)
            number += 1
            time.sleep(0.002)
        print("the end", number, flush=True)
        os._exit(7)
    threading.Thread(target=run, daemon=True).start()
    return "ok"
'''
KEYED = """
import json, os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    count = 0
    def do_GET(self):
        Handler.count += 1
        body = json.dumps({"count": Handler.count}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass

ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
WEB = 'kind = "web"\nentry = "server.py"\n'


@pytest.fixture(params=["auto", "process"])
def doomed(request: pytest.FixtureRequest) -> Iterator[Installation]:
    """An installation that is killed and started again."""
    yield from installed(request.param)


def kill(cove: Installation) -> None:
    """SIGKILL the server, and it alone."""
    assert cove.process is not None
    cove.process.send_signal(signal.SIGKILL)
    cove.process.wait(PATIENCE)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return False
    return state != "Z"


def lines(cove: Installation, name: str) -> list[str]:
    """What a function has printed, as its log has it."""
    records = map(json.loads, cove("logs", name, "--json", "--tail", "100000").out.splitlines())
    return [record["text"] for record in records if record["stream"] == "stdout"]


async def test_sessions_and_what_they_remember_go_on(doomed: Installation) -> None:
    cove = doomed
    cove.deploy("counter", {"server.py": COUNTER})
    own = '[session]\naffinity = "header:x-who"\nper_instance = 1\n'
    cove.deploy("keyed", {"server.py": KEYED}, WEB + own)
    async with (
        asyncio.timeout(4 * PATIENCE),
        client(cove, "counter", "legacy") as mcp,
        httpx2.AsyncClient(timeout=PATIENCE, headers={"x-who": "me"}) as http,
    ):
        first = text(await mcp.call_tool("up", {})).split()
        assert (await http.get(f"{cove.url}/fn/keyed/")).json() == {"count": 1}
        before = cove.describe("counter"), cove.describe("keyed")
        sessions = cove("session", "list", "--json").json
        await asyncio.to_thread(kill, cove)
        await asyncio.to_thread(cove.start)
        again = text(await mcp.call_tool("up", {})).split()
        assert (first[0], again[0], again[1]) == ("1", "2", first[1])
        assert (await http.get(f"{cove.url}/fn/keyed/")).json() == {"count": 2}
        after = cove.describe("counter"), cove.describe("keyed")
        for then, now in zip(before, after, strict=True):
            assert [i["pid"] for i in now["instances"]] == [i["pid"] for i in then["instances"]]
            assert [i["started_by"] for i in now["instances"]] == ["adopted"]
            assert now["versions"] == then["versions"]
        still = cove("session", "list", "--json").json
        assert {s["id"] for s in still} == {s["id"] for s in sessions} != set()
        assert await asyncio.to_thread(lines, cove, "counter") == ["counted 1", "counted 2"]
        kinds = [json_["kind"] for json_ in events(cove)]
        assert kinds.count("instance.adopted") == 2


def events(cove: Installation) -> list[dict[str, Any]]:
    return [json.loads(line) for line in cove("events", "--json").out.splitlines()]


async def test_what_is_printed_while_no_cove_is_there_is_kept(doomed: Installation) -> None:
    cove = doomed
    cove.deploy("counter", {"server.py": COUNTER})
    async with asyncio.timeout(4 * PATIENCE), client(cove, "counter", "legacy") as mcp:
        await mcp.call_tool("tick", {"seconds": 3})
        (instance,) = cove.instances("counter")
        await asyncio.sleep(0.7)
        await asyncio.to_thread(kill, cove)
        # It ends by itself while nobody looks: its last words must be there all the same.
        await until_async(lambda: not alive(instance["pid"]), "it has ended")
        await asyncio.to_thread(cove.start)
    said = await asyncio.to_thread(lines, cove, "counter")
    ticks = [int(line.split()[1]) for line in said if line.startswith("tick")]
    assert ticks == list(range(len(ticks)))
    assert said[-1] == f"the end {len(ticks)}"
    assert any(e["kind"] == "instance.crashed" and "the end" in e["reason"] for e in events(cove))


def test_a_second_cove_on_the_same_data_is_refused(doomed: Installation) -> None:
    second = doomed("up", "--listen", "127.0.0.1:0", code=1)
    assert "another Cove" in second.err
    assert str(doomed.data) in second.err


async def test_a_clean_stop_may_leave_sessions_for_the_next(doomed: Installation) -> None:
    cove = doomed
    cove.deploy("counter", {"server.py": COUNTER})
    cove.stop()
    cove.options = ["--keep-instances"]
    cove.start()
    async with asyncio.timeout(4 * PATIENCE), client(cove, "counter", "legacy") as mcp:
        first = text(await mcp.call_tool("up", {})).split()
        assert await asyncio.to_thread(cove.stop) == 0
        cove.options = []
        await asyncio.to_thread(cove.start)
        assert text(await mcp.call_tool("up", {})).split() == ["2", first[1]]


async def test_half_a_deploy_is_nobodys(doomed: Installation) -> None:
    """Killed while a version is being built, started and looked at."""
    cove = doomed
    cove.deploy("keyed", {"server.py": KEYED}, WEB)
    for seconds in (0.05, 0.4, 0.8, 1.2):
        deploying = asyncio.create_task(
            asyncio.to_thread(cove, "deploy", cove.folder / "sources/keyed", code=None)
        )
        await asyncio.sleep(seconds)
        await asyncio.to_thread(kill, cove)
        await deploying
        await asyncio.to_thread(cove.start)
        keyed = cove.describe("keyed")
        assert {version["state"] for version in keyed["versions"]} <= {"ready", "failed"}
        assert keyed["state"] == "ready"
        async with httpx2.AsyncClient(timeout=PATIENCE) as http:
            assert (await http.get(f"{cove.url}/fn/keyed/")).status_code == 200


async def test_another_tier_leaves_nothing_of_the_last(doomed: Installation) -> None:
    cove = doomed
    cove.deploy("counter", {"server.py": COUNTER})
    async with asyncio.timeout(4 * PATIENCE), client(cove, "counter", "legacy") as mcp:
        await mcp.call_tool("up", {})
        (instance,) = cove.instances("counter")
        await asyncio.to_thread(kill, cove)
        other = "auto" if cove.driver == "process" else "process"
        cove.driver, was = other, cove.driver
        await asyncio.to_thread(cove.start)
        assert not alive(instance["pid"])
        assert cove.stop() == 0
        cove.driver = was
        await asyncio.to_thread(cove.start)
