"""Streams stay open for their clients while instances stop, start and are replaced behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from mcp.client.subscriptions import ToolsListChanged

from e2e.clients import client, text
from e2e.installation import PATIENCE, Installation
from e2e.servers import EVERY, HAND

TOML = 'command = "python server.py"\ntransport = "http"\n[scale]\nidle = "1s"\n'
STREAM = {"accept": "text/event-stream"}
CHANGED = "notifications/tools/list_changed"


class Hand:
    """A client of the hand-written server, by plain HTTP."""

    def __init__(self, cove: Installation, name: str, http: httpx2.AsyncClient) -> None:
        self.url = cove.mcp(name)
        self.http = http

    async def call(self, tool: str) -> str:
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool}}
        answer = await self.http.post(self.url, json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["result"]["content"][0]["text"])

    async def until_streams(self, number: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while await self.call("streams") != str(number):
                await asyncio.sleep(0.05)


class Lines:
    """What a held stream brings, read in the background to its end."""

    def __init__(self, response: httpx2.Response) -> None:
        self.seen: list[str] = []
        self.all: list[str] = []
        self.more = asyncio.Event()
        self.task = asyncio.create_task(self._read(response))

    async def _read(self, response: httpx2.Response) -> None:
        async for line in response.aiter_lines():
            self.seen.append(line)
            self.all.append(line)
            self.more.set()

    async def until(self, part: str) -> None:
        """Wait for a line with `part`, and forget all lines so far."""
        async with asyncio.timeout(PATIENCE):
            while not any(part in line for line in self.seen):
                self.more.clear()
                await self.more.wait()
        self.seen.clear()

    async def end(self) -> None:
        """Wait for the stream's proper end."""
        async with asyncio.timeout(PATIENCE):
            await self.task


@asynccontextmanager
async def hand(cove: Installation, name: str) -> AsyncIterator[Hand]:
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        yield Hand(cove, name, http)


@asynccontextmanager
async def get(call: Hand, **headers: str) -> AsyncIterator[Lines]:
    async with call.http.stream("GET", call.url, headers={**STREAM, **headers}) as response:
        assert response.status_code == 200
        lines = Lines(response)
        try:
            yield lines
        finally:
            lines.task.cancel()


async def at_zero(cove: Installation, name: str) -> None:
    await asyncio.to_thread(cove.at_zero, name)


async def test_a_get_stream_outlives_instances_versions_and_ends_with_the_function(
    cove: Installation,
) -> None:
    deploy = lambda: cove.deploy("held", {"server.py": HAND}, TOML)  # noqa: E731
    await asyncio.to_thread(deploy)
    await at_zero(cove, "held")
    async with hand(cove, "held") as call, get(call, **{"last-event-id": "7"}) as lines:
        await lines.until(": keep-alive")
        assert cove.instances("held") == []

        await call.until_streams(1)  # the first of these calls started an instance
        await lines.until('"id":"7"')  # Last-Event-ID went upstream
        await call.call("notify")
        await lines.until(CHANGED)

        await at_zero(cove, "held")
        await lines.until(": keep-alive")
        assert not lines.task.done()

        first = await call.call("pid")
        await call.until_streams(1)
        await asyncio.to_thread(deploy)
        await call.until_streams(1)
        assert await call.call("pid") != first or cove.describe("held")["version"] == 2
        lines.seen.clear()
        await call.call("notify")
        await lines.until(CHANGED)

        await asyncio.to_thread(cove, "rm", "held", "--yes")
        await lines.end()


async def test_a_client_that_leaves_closes_its_upstream_at_once(cove: Installation) -> None:
    await asyncio.to_thread(cove.deploy, "left", {"server.py": HAND}, TOML)
    async with hand(cove, "left") as call:
        async with get(call), get(call):
            await call.until_streams(2)
        async with asyncio.timeout(2):
            await call.until_streams(0)


async def test_what_upstream_refuses_is_passed_on(cove: Installation) -> None:
    toml = 'command = "python server.py"\nenv = { REFUSE = "405" }\n[scale]\nidle = "1s"\n'
    await asyncio.to_thread(cove.deploy, "refuses", {"server.py": HAND}, toml)
    async with hand(cove, "refuses") as call:
        await call.call("pid")
        refused = await call.http.get(call.url, headers=STREAM)
        assert refused.status_code == 405
        assert refused.json() == {"refused": True}
        assert refused.headers["www-authenticate"] == "Bearer realm=hand"
        # With no instance to ask the stream is held; one that then refuses does not end it.
        await at_zero(cove, "refuses")
        async with get(call) as lines:
            await call.call("pid")
            await at_zero(cove, "refuses")
            assert not lines.task.done()


async def test_lifetime_ends_a_held_stream_properly(cove: Installation) -> None:
    toml = TOML + '[session]\nlifetime = "2s"\n'
    await asyncio.to_thread(cove.deploy, "brief", {"server.py": HAND}, toml)
    async with hand(cove, "brief") as call, get(call) as lines:
        await lines.end()


async def test_a_listen_stream_is_acknowledged_at_zero_and_held(cove: Installation) -> None:
    deploy = lambda: cove.deploy("listen", {"server.py": EVERY}, '[scale]\nidle = "1s"\n')  # noqa: E731
    await asyncio.to_thread(deploy)
    async with asyncio.timeout(3 * PATIENCE), client(cove, "listen", "modern") as mcp:
        await at_zero(cove, "listen")
        async with mcp.listen(tools_list_changed=True) as events:
            assert cove.instances("listen") == []

            async def told() -> Any:
                return await anext(aiter(events))

            event = asyncio.create_task(told())
            while not event.done():  # the first call starts the instance, a later one is heard
                assert text(await mcp.call_tool("change")) == "told"
                await asyncio.wait([event], timeout=0.1)
            assert event.result() == ToolsListChanged()

            await at_zero(cove, "listen")
            event = asyncio.create_task(told())
            while not event.done():
                await mcp.call_tool("change")
                await asyncio.wait([event], timeout=0.1)

            event = asyncio.create_task(told())
            await asyncio.to_thread(deploy)
            assert await event == ToolsListChanged()  # a new version may have other tools

            await asyncio.to_thread(cove, "rm", "listen", "--yes")
            async for _ in events:
                pass  # to the graceful end: a lost subscription would raise


async def test_a_held_listen_stream_is_acknowledged_once(shared: Installation) -> None:
    await at_zero(shared, "every")
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"notifications": {"toolsListChanged": True}, "_meta": meta}
    body = {"jsonrpc": "2.0", "id": "me", "method": "subscriptions/listen", "params": params}
    headers = {
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": "2026-07-28",
        "mcp-method": "subscriptions/listen",
    }
    async with (
        httpx2.AsyncClient(headers=headers, timeout=PATIENCE) as http,
        http.stream("POST", shared.mcp("every"), json=body) as stream,
        client(shared, "every", "modern") as mcp,
    ):
        lines = Lines(stream)
        for _ in range(2):
            while not any(CHANGED in line for line in lines.seen):
                await mcp.call_tool("change")
                await asyncio.sleep(0.1)
            lines.seen.clear()
            await at_zero(shared, "every")
        lines.task.cancel()
        acknowledged = [line for line in lines.all if "acknowledged" in line]
        assert len(acknowledged) == 1
        assert '"subscriptionId":"me"' in acknowledged[0].replace("io.modelcontextprotocol/", "")


async def test_a_listen_request_that_is_none_is_refused_at_zero(shared: Installation) -> None:
    url = shared.mcp("every")
    headers = {
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": "2026-07-28",
        "mcp-method": "subscriptions/listen",
    }
    shared.at_zero("every")
    async with httpx2.AsyncClient(headers=headers, timeout=PATIENCE) as http:
        other = {"jsonrpc": "2.0", "id": 5, "method": "tools/list"}
        refused = await http.post(url, json=other)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, -32020)
        assert (await http.post(url, content=b"[")).json()["error"]["code"] == -32700
        listen = {"jsonrpc": "2.0", "id": 5, "method": "subscriptions/listen", "params": {}}
        newer = await http.post(url, json=listen, headers={"mcp-protocol-version": "2031-01-01"})
        assert newer.json()["error"]["code"] == -32022
        legacy = await http.post(shared.mcp("every-sse"), json=listen)
        assert legacy.status_code == 400
    assert shared.instances("every") == []


@pytest.mark.slow
async def test_a_held_stream_gets_comments_at_an_even_pace(cove: Installation) -> None:
    await asyncio.to_thread(cove.deploy, "paced", {"server.py": HAND}, TOML)
    await at_zero(cove, "paced")
    async with hand(cove, "paced") as call, get(call) as lines:
        await lines.until(": keep-alive")
        async with asyncio.timeout(17):
            await lines.until(": keep-alive")
        assert cove.instances("paced") == []
