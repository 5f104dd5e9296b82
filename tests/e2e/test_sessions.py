"""Sessions stay on their instances, belong to their callers, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import httpx2
import pytest

from e2e.clients import client, text
from e2e.installation import PATIENCE, Installation, until
from e2e.servers import EVERY, WEB
from e2e.test_bridges import ACCEPT, INITIALIZE

TOOL = {"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": {"name": "count"}}


@pytest.fixture(scope="module")
def alone(cove: Installation) -> Installation:
    """A function whose sessions each have an instance to themselves."""
    toml = '[scale]\nidle = "1s"\nmax = 3\n[session]\nper_instance = 1\nidle = "8s"\n'
    cove.deploy("alone", {"server.py": EVERY}, toml)
    return cove


async def test_each_session_counts_on_its_own_instance(alone: Installation) -> None:
    async with (
        asyncio.timeout(2 * PATIENCE),
        client(alone, "alone", "legacy") as a,
        client(alone, "alone", "legacy") as b,
        client(alone, "alone", "sse") as c,
    ):
        for turn in range(1, 4):
            for mcp in (a, b, c):
                assert text(await mcp.call_tool("count")) == str(turn)
        pids = {text(await mcp.call_tool("pid")) for mcp in (a, b, c)}
        instances = alone.instances("alone")
        assert len(instances) == 3
        assert [instance["sessions"] for instance in instances] == [1, 1, 1]
        assert len(pids) in (1, 3)  # in containers each has pids of its own
        assert alone.describe("alone")["sessions"] == 3
        listed = alone("session", "list", "alone", "--json").json
        assert len(listed) == 3
    alone.at_zero("alone")
    assert alone.describe("alone")["sessions"] == 0


async def test_a_killed_instance_is_a_404_and_the_client_begins_again(alone: Installation) -> None:
    alone.at_zero("alone")
    url = alone.mcp("alone")
    async with httpx2.AsyncClient(headers=ACCEPT, timeout=PATIENCE) as http:
        opened = await http.post(url, json=INITIALIZE)
        session = {"mcp-session-id": opened.headers["mcp-session-id"]}
        assert (await http.post(url, json=TOOL, headers=session)).status_code == 200
        (instance,) = alone.instances("alone")
        async with http.stream("GET", url, headers=session) as stream:
            os.kill(instance["pid"], signal.SIGKILL)
            async with asyncio.timeout(PATIENCE):
                assert [line async for line in stream.aiter_lines() if line.strip()] == []
        gone = await http.post(url, json=TOOL, headers=session)
        assert gone.status_code == 404
        assert gone.json()["error"]["message"].startswith("Session not found")
        again = await http.post(url, json=INITIALIZE)
        assert again.status_code == 200
        session = {"mcp-session-id": again.headers["mcp-session-id"]}
        assert (await http.delete(url, headers=session)).status_code == 200


async def test_clients_that_never_say_goodbye_leave_nothing(alone: Installation) -> None:
    url = alone.mcp("alone")
    async with httpx2.AsyncClient(headers=ACCEPT, timeout=PATIENCE) as http:
        opened = [await http.post(url, json=INITIALIZE) for _ in range(2)]
    assert {answer.status_code for answer in opened} == {200}
    assert alone.describe("alone")["sessions"] == 2
    alone.at_zero("alone")
    assert alone.describe("alone")["sessions"] == 0


async def test_a_session_is_its_openers_alone(alone: Installation) -> None:
    url = alone.mcp("alone")
    async with httpx2.AsyncClient(headers=ACCEPT, timeout=PATIENCE) as http:
        opened = await http.post(url, json=INITIALIZE, headers={"authorization": "Bearer ann"})
        session = {"mcp-session-id": opened.headers["mcp-session-id"]}
        bob = {**session, "authorization": "Bearer bob"}
        for method in ("POST", "GET", "DELETE"):
            body = TOOL if method == "POST" else None
            assert (await http.request(method, url, json=body, headers=bob)).status_code == 404
        ann = {**session, "authorization": "Bearer ann"}
        assert (await http.post(url, json=TOOL, headers=ann)).status_code == 200
        forged = {"mcp-session-id": session["mcp-session-id"][:-2] + "AA"}
        assert (await http.post(url, json=TOOL, headers=forged)).status_code == 404
        assert (await http.delete(url, headers=ann)).status_code == 200


@pytest.mark.parametrize("transport", ["http", "sse"])
async def test_an_sse_session_idles_out_but_never_before_its_answers(
    cove: Installation, transport: str
) -> None:
    name = f"idles-{transport}"
    toml = f'transport = "{transport}"\n[scale]\nidle = "1s"\n[session]\nidle = "1s"\n'
    cove.deploy(name, {"server.py": EVERY}, toml)
    async with httpx2.AsyncClient(headers=ACCEPT, timeout=PATIENCE) as http:
        async with http.stream("GET", cove.sse(name)) as stream:
            lines = stream.aiter_lines()
            endpoint = cove.url + [await anext(lines) for _ in range(2)][1].removeprefix("data: ")
            posted = await http.post(endpoint, json=INITIALIZE)
            assert posted.status_code == 202
            stranger = await http.post(endpoint, json=TOOL, headers={"authorization": "Bearer b"})
            assert stranger.status_code == 404
            ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
            assert (await http.post(endpoint, json=ready)).status_code == 202
            slow = {**TOOL, "params": {"name": "silent", "arguments": {"seconds": 2.5}}}
            begun = time.monotonic()
            assert (await http.post(endpoint, json=slow)).status_code == 202
            answered = 0.0
            async with asyncio.timeout(PATIENCE):
                async for line in lines:  # to the stream's own, proper end
                    if '"id":9' in line.replace(" ", ""):
                        assert "done" in line
                        answered = time.monotonic()
            assert answered - begun >= 2.4
            assert 0.5 <= time.monotonic() - answered < 5
        assert (await http.post(endpoint, json=TOOL)).status_code == 404
    cove.at_zero(name)


async def test_an_sse_session_ends_when_its_client_leaves(shared: Installation) -> None:
    for name in ("every", "every-sse"):
        async with client(shared, name, "sse") as mcp:
            await mcp.list_tools()
            (session,) = shared("session", "list", name, "--json").json
            assert session["function"] == name
            assert session["instance"] == shared.instances(name)[0]["id"]
        until(lambda n=name: shared.describe(n)["sessions"] == 0, "no session", 2)
        shared.at_zero(name)


async def test_keys_that_callers_bring_find_their_instance(cove: Installation) -> None:
    files = {"app.py": WEB, "requirements.txt": "starlette\nuvicorn\n"}
    for affinity, first, later in (
        ("header:X-Seat", {}, {}),
        ("cookie:seat", {}, {}),
        ("principal", {"authorization": "Bearer a"}, {"authorization": "Bearer b"}),
    ):
        name = affinity.split(":")[0]
        toml = (
            f'kind = "web"\n[scale]\nidle = "1s"\n[session]\naffinity = "{affinity}"\n'
            'per_instance = 1\nidle = "2s"\n'
        )
        cove.deploy(name, files, toml)
        url = f"{cove.url}/fn/{name}/visit"
        async with (
            httpx2.AsyncClient(timeout=PATIENCE, headers=first) as a,
            httpx2.AsyncClient(timeout=PATIENCE, headers=later) as b,
        ):
            for http in (a, b):
                for turn in ("1", "2"):
                    visit = await http.get(url)
                    assert visit.text.split()[1] == turn, (name, visit.text)
                    if "x-seat" in visit.headers:
                        http.headers["x-seat"] = visit.headers["x-seat"]
        assert len(cove.instances(name)) == 2
        assert cove.describe(name)["sessions"] == 2
        cove.at_zero(name)
