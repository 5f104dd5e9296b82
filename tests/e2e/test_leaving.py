"""Clients that leave at any moment leave no slot, claim, session or instance behind."""

from __future__ import annotations

import asyncio
import random

import httpx2
import pytest

from e2e.installation import PATIENCE, Installation
from e2e.servers import EVERY
from e2e.test_bridges import ACCEPT, INITIALIZE

CLIENTS = 40


async def visit(http: httpx2.AsyncClient, method: str, url: str, stay: float) -> None:
    """Open whatever this is, speak if there is an endpoint, and go after `stay` seconds."""
    body = INITIALIZE if method == "POST" else None
    try:
        async with asyncio.timeout(stay), http.stream(method, url, json=body) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data: /"):
                    endpoint = str(httpx2.URL(url).join(line.removeprefix("data: ")))
                    await http.post(endpoint, json=INITIALIZE)
    except (TimeoutError, httpx2.HTTPError):
        pass


@pytest.mark.parametrize("transport", ["http", "sse"])
@pytest.mark.parametrize(("method", "path"), [("GET", "sse"), ("POST", "mcp")])
async def test_clients_that_leave_at_any_moment_leave_nothing(
    cove: Installation, transport: str, method: str, path: str
) -> None:
    name = f"leaving-{transport}"
    if name not in cove("list").out:
        toml = (
            f'transport = "{transport}"\n[scale]\nidle = "1s"\nmax = 2\n'
            '[session]\nper_instance = 50\nidle = "2s"\n'
        )
        await asyncio.to_thread(cove.deploy, name, {"server.py": EVERY}, toml)
    await asyncio.to_thread(cove.at_zero, name)
    # Some leave during the cold start, some during their first words, some later.
    chance = random.Random(CLIENTS)
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(headers=ACCEPT, timeout=PATIENCE, limits=limits) as http:
        url = f"{cove.url}/fn/{name}/{path}"
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(visit(http, method, url, chance.uniform(0.01, 2.5)))
    await asyncio.to_thread(cove.at_zero, name)
    assert cove.describe(name)["sessions"] == 0
    assert not cove.says("task failed")
    assert not cove.says("Traceback")
