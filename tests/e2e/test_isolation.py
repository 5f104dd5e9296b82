"""What a tool sees of the machine, in a container and as a plain process."""

from __future__ import annotations

import asyncio
import json
import time

import httpx2
import pytest
from mcp import MCPError

from e2e.clients import client, text
from e2e.installation import PATIENCE, Installation, until_async
from e2e.servers import HAND as SMALL

LOOK = """
import json, os, pathlib, socket
from mcp.server import MCPServer

mcp = MCPServer("look")


def writes(folder):
    try:
        path = pathlib.Path(folder) / "probe"
        path.write_text("x")
        path.unlink()
        return True
    except OSError:
        return False


@mcp.tool()
def look(secret: str, home: str) -> str:
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=2).close()
        reached = True
    except OSError as error:
        reached = error.errno
    return json.dumps({
        "uid": os.getuid(), "gid": os.getgid(), "cwd": os.getcwd(), "groups": os.getgroups(),
        "interfaces": [name for _, name in socket.if_nameindex()], "reached": reached,
        "app": writes(os.getcwd()), "home": writes(os.environ["HOME"]), "tmp": writes("/tmp"),
        "usr": writes("/usr"), "secret": os.path.exists(secret),
        "homes": sorted(os.listdir(home)) if os.path.isdir(home) else [],
        "processes": sum(name.isdigit() for name in os.listdir("/proc")),
        "caps": [line.split()[1] for line in open("/proc/self/status")
                 if line.startswith("CapEff")],
        "no_new_privs": [line.split()[1] for line in open("/proc/self/status")
                         if line.startswith("NoNewPrivs")],
        "seccomp": [line.split()[1] for line in open("/proc/self/status")
                    if line.startswith("Seccomp:")],
    })


@mcp.tool()
def eat(mebibytes: int) -> str:
    return str(len(b"x" * (mebibytes * 1024 * 1024)))
"""


async def look(cove: Installation, name: str) -> dict[str, object]:
    async with client(cove, name, "modern") as mcp:
        asked = {"secret": str(cove.data / "key"), "home": "/root"}
        return dict(json.loads(text(await mcp.call_tool("look", asked))))


async def test_a_tool_in_a_container_sees_its_own_and_no_more(contained: Installation) -> None:
    contained.deploy("look", {"server.py": LOOK}, '[scale]\nidle = "1s"\n')
    assert contained.describe("look")["isolation"] == "container"
    seen = await look(contained, "look")
    assert seen["uid"] != 0
    assert seen["gid"] != 0
    assert seen["cwd"] == "/app"
    assert seen["interfaces"] == ["lo"]
    assert seen["reached"] is not True
    assert (seen["app"], seen["usr"]) == (False, False)
    assert (seen["home"], seen["tmp"]) == (True, True)
    assert seen["secret"] is False
    # of a home folder at most the running Python's own prefix
    assert set(seen["homes"]) <= {".pyenv", ".local"}  # type: ignore[call-overload]
    assert int(str(seen["processes"])) < 10
    assert seen["caps"] == ["0000000000000000"]
    assert seen["no_new_privs"] == ["1"]
    assert seen["seccomp"] == ["2"]
    outside = contained.instances("look")[0]["pid"]
    with open(f"/proc/{outside}/status") as status:
        uids = [line.split()[1] for line in status if line.startswith("Uid")]
    assert uids != ["0"]


async def test_the_smallest_container_starts_unthrottled_and_answers(
    contained: Installation,
) -> None:
    toml = '[limits]\nmemory = "64MiB"\ncpu = 0.1\nstartup = "10s"\n[scale]\nidle = "1s"\n'
    contained.deploy("small", {"server.py": SMALL}, f'command = "python server.py"\n{toml}')
    contained.at_zero("small")
    begun = time.monotonic()
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "pid"}}
        answer = await http.post(contained.mcp("small"), json=body)
    assert answer.json()["result"]["content"][0]["text"] == "1"
    assert time.monotonic() - begun < 5


async def test_memory_is_bounded_and_the_death_is_survived(contained: Installation) -> None:
    toml = '[limits]\nmemory = "160MiB"\n[scale]\nidle = "1s"\n'
    contained.deploy("hungry", {"server.py": LOOK}, toml)
    async with asyncio.timeout(PATIENCE), client(contained, "hungry", "modern") as mcp:
        await mcp.list_tools()
        with pytest.raises(MCPError, match="did not answer"):
            await mcp.call_tool("eat", {"mebibytes": 400})
        await until_async(lambda: contained.says("out of memory"), "the log says why")
        assert text(await mcp.call_tool("eat", {"mebibytes": 1})) == "1048576"


def test_a_function_cannot_choose_to_run_outside_a_container(contained: Installation) -> None:
    toml = 'isolation = "process"\n'
    demanded = contained.deploy("rootly", {"server.py": LOOK}, toml, code=1)
    assert "demands isolation" in demanded.err
    assert "--driver process" in demanded.err
    assert not contained.says("isolation", "process (")


async def test_a_plain_process_says_that_it_isolates_nothing(plain: Installation) -> None:
    said = plain.deploy("look", {"server.py": LOOK}, '[scale]\nidle = "1s"\n')
    assert "isolates nothing" in said.out + said.err
    assert plain.says("isolate")
    assert plain.describe("look")["isolation"] == "process"
    plain.at_zero("look")
    for way in ("modern", "legacy", "sse"):
        async with client(plain, "look", way) as mcp:
            assert "uid" in text(await mcp.call_tool("look", {"secret": "/x", "home": "/root"}))
    plain.at_zero("look")
    demanded = plain.deploy("demands", {"server.py": LOOK}, 'isolation = "container"\n', code=1)
    assert "demands isolation" in demanded.err
