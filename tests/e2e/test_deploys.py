"""A deploy goes live when it is ready, and one that fails changes nothing."""

from __future__ import annotations

import asyncio
import subprocess
import time

import pytest

from e2e.clients import client, text
from e2e.installation import COVE, PATIENCE, Installation, until, until_async
from e2e.servers import EVERY, HAND

HASTY = 'command = "python server.py"\n[limits]\nstartup = "1s"\n'
FAILURES = {
    "raises": ({"server.py": EVERY + '\nraise RuntimeError("no barometer")\n'}, "", "no barometer"),
    "syntax": ({"server.py": "def f(:\n"}, 'entry = "server:mcp"\n', "invalid syntax"),
    "exits": (
        {"server.py": "import sys\nprint('out of ink', flush=True)\nsys.exit(3)\n"},
        HASTY,
        "out of ink",
    ),
    "mute": (
        {"server.py": "import time\nprint('busy', flush=True)\ntime.sleep(60)\n"},
        HASTY,
        "no port",
    ),
    "no-mcp": (
        {
            "server.py": "import os\nfrom http.server import *\n"
            "HTTPServer(('127.0.0.1', int(os.environ['PORT'])), SimpleHTTPRequestHandler)"
            ".serve_forever()\n"
        },
        'command = "python server.py"\n',
        "speaks no MCP",
    ),
    "key": ({"server.py": EVERY}, "[scale]\nmaxx = 3\n", "scale.max"),
    "later": ({"server.py": EVERY}, '[egress]\nallow = "all"\n', "egress"),
    "range": ({"server.py": EVERY}, "[limits]\ncpu = 0.01\n", "limits.cpu"),
    "package": (
        {"server.py": EVERY, "requirements.txt": "mcp\nno-such-package-of-ours-at-all==1\n"},
        "",
        "no-such-package-of-ours-at-all",
    ),
}


@pytest.mark.parametrize("kind", FAILURES)
async def test_a_deploy_that_fails_says_why_and_leaves_the_old_version_serving(
    cove: Installation, kind: str
) -> None:
    if "steady" not in cove("list").out:
        cove.deploy("steady", {"server.py": EVERY}, '[scale]\nidle = "1s"\n')
    files, toml, reason = FAILURES[kind]
    before = cove.describe("steady")["version"]
    failed = await asyncio.to_thread(cove.deploy, "steady", files, toml, 1)
    assert reason in failed.out + failed.err
    if kind in ("key", "later", "range"):
        line = 3 if kind != "later" else 2
        assert f"cove.toml:{line}" in failed.err or f"line {line}" in failed.err, failed.err
    described = cove.describe("steady")
    assert described["version"] == before
    async with asyncio.timeout(PATIENCE), client(cove, "steady", "modern") as mcp:
        assert text(await mcp.call_tool("echo", {"text": "still here"})) == "still here"
    assert [i for i in cove.instances("steady") if i["version"] != before] == []


async def test_a_running_request_finishes_on_the_version_it_began_on(cove: Installation) -> None:
    old, new = (EVERY.replace('return "done"', f'return "{word}"') for word in ("old", "new"))
    toml = '[scale]\nidle = "1s"\n'
    await asyncio.to_thread(cove.deploy, "moves", {"server.py": old}, toml)
    async with asyncio.timeout(2 * PATIENCE):
        async with client(cove, "moves", "modern") as mcp:
            slow = asyncio.create_task(mcp.call_tool("silent", {"seconds": 12.0}))
            await until_async(
                lambda: any(i["requests"] for i in cove.instances("moves")), "it runs"
            )
            deploying = asyncio.create_task(
                asyncio.to_thread(cove.deploy, "moves", {"server.py": new}, toml)
            )
            answers = set()
            while not deploying.done():
                answers.add(text(await mcp.call_tool("silent", {"seconds": 0.01})))
            await deploying
            assert answers <= {"old", "new"}  # and none of them failed
            assert text(await mcp.call_tool("silent", {"seconds": 0.01})) == "new"
            assert not slow.done()
            assert text(await slow) == "old"
    until(lambda: {i["version"] for i in cove.instances("moves")} <= {2}, "the old one has left")


async def test_a_first_deploy_that_fails_serves_nothing_and_can_be_mended(
    cove: Installation,
) -> None:
    files = {"server.py": "print('never', flush=True)\n"}
    toml = 'command = "python server.py"\n'
    failed = await asyncio.to_thread(cove.deploy, "mended", files, toml, 1)
    assert "never" in failed.err + failed.out
    assert cove.describe("mended")["state"] == "failed"
    assert cove.instances("mended") == []
    await asyncio.to_thread(cove.deploy, "mended", {"server.py": HAND}, toml)
    assert cove.describe("mended")["version"] == 2
    cove("rm", "mended", "--yes")
    assert cove("describe", "mended", code=None).code != 0


def test_watch_deploys_what_is_saved(cove: Installation) -> None:
    cove.deploy("watched", {"server.py": HAND}, 'command = "python server.py"\n')
    folder = cove.folder / "sources" / "watched"
    watching = subprocess.Popen(
        [*COVE, "deploy", str(folder), "--watch"],
        env=cove.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    try:
        until(lambda: cove.describe("watched")["version"] == 2, "the watch's first deploy")
        time.sleep(0.2)
        (folder / "server.py").write_text(HAND + "\n# saved\n")
        until(lambda: cove.describe("watched")["version"] == 3, "the saved file is live")
    finally:
        watching.terminate()
        watching.wait(10)
