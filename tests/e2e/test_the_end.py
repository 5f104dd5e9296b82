"""SIGTERM: what runs is finished, what is held is ended, and nothing stays."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from e2e.clients import client, text
from e2e.conftest import installed, left_behind
from e2e.installation import PATIENCE, Installation, until_async
from e2e.servers import EVERY, HAND


@pytest.fixture(params=["auto", "process"])
def ending(request: pytest.FixtureRequest) -> Iterator[Installation]:
    """An installation whose test ends it itself."""
    yield from installed(request.param)


async def test_running_calls_are_answered_and_nothing_is_left(ending: Installation) -> None:
    ending.deploy("every", {"server.py": EVERY}, "[scale]\nmin = 1\n")
    ending.deploy("every-sse", {"server.py": EVERY}, 'transport = "sse"\n[scale]\nmin = 1\n')
    ending.deploy("hand", {"server.py": HAND}, 'command = "python server.py"\n')
    pids = [i["pid"] for name in ("every", "every-sse", "hand") for i in ending.instances(name)]
    assert pids
    async with (
        asyncio.timeout(2 * PATIENCE),
        httpx2.AsyncClient(timeout=PATIENCE) as http,
        client(ending, "every", "modern") as modern,
        client(ending, "every", "sse") as bridged,
        client(ending, "every-sse", "sse") as native,
        client(ending, "every-sse", "legacy") as other,
    ):
        clients = (modern, bridged, native, other)
        for mcp in clients:
            await mcp.list_tools()  # what the client needs to read the answer
        calls = [  # those whose answers come on streams that outlive them are the last to end
            asyncio.create_task(mcp.call_tool("silent", {"seconds": seconds}))
            for mcp, seconds in zip(clients, (2.0, 4.0, 4.0, 2.0), strict=True)
        ]
        held = asyncio.create_task(http.get(ending.mcp("hand"), headers={"accept": "*/*"}))
        for name in ("every", "every-sse"):
            await until_async(
                lambda name=name: sum(i["requests"] for i in ending.instances(name)) == 2,
                "both calls run",
            )
        stopped = asyncio.create_task(asyncio.to_thread(ending.stop))
        assert [text(await call) for call in calls] == ["done"] * 4
        assert (await held).status_code == 200  # the stream had a proper end
        assert await stopped == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert left_behind(ending.data) == []
    ending.start()
    assert ending.describe("every")["version"] == 1  # and what was deployed is there again
    async with client(ending, "every", "legacy") as mcp:
        assert text(await mcp.call_tool("echo", {"text": "again"})) == "again"
