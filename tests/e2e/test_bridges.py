"""A server of one transport serves the clients of the other, both directions of messages."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest
from mcp_types import ElicitResult

from e2e.clients import client, text
from e2e.installation import PATIENCE, Installation
from e2e.servers import EVERY, ODD

LEGACY = [("every-sse", "legacy"), ("every", "sse"), ("every-sse", "sse"), ("every", "legacy")]
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "raw", "version": "1"},
    },
}
ACCEPT = {"accept": "application/json, text/event-stream"}


@pytest.mark.parametrize(("name", "way"), LEGACY)
async def test_calls_run_side_by_side_and_report_progress(
    shared: Installation, name: str, way: str
) -> None:
    seen: list[float] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        seen.append(done)

    async with asyncio.timeout(PATIENCE), client(shared, name, way) as mcp:
        slow = asyncio.create_task(
            mcp.call_tool("slow", {"seconds": 1.0}, progress_callback=progress)
        )
        echoes = [mcp.call_tool("echo", {"text": f"word {n}"}) for n in range(10)]
        results = await asyncio.gather(*echoes)
        assert [text(result) for result in results] == [f"word {n}" for n in range(10)]
        assert not slow.done()
        assert text(await slow) == "done"
    assert seen == [1.0, 2.0]


@pytest.mark.parametrize(("name", "way"), LEGACY)
async def test_the_servers_question_reaches_the_person_and_the_answer_the_server(
    shared: Installation, name: str, way: str
) -> None:
    async def person(context: Any, params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"name": params.message})

    async with (
        asyncio.timeout(PATIENCE),
        client(shared, name, way, elicitation_callback=person) as mcp,
    ):
        answers = await asyncio.gather(*(mcp.call_tool("ask") for _ in range(3)))
        assert [text(answer) for answer in answers] == ["accept Who are you?"] * 3


@pytest.mark.parametrize(("name", "way"), LEGACY)
async def test_what_the_server_says_by_itself_arrives(
    shared: Installation, name: str, way: str
) -> None:
    heard = asyncio.Event()

    async def listen(message: Any) -> None:
        if "list_changed" in repr(getattr(message, "method", message)):
            heard.set()

    async with asyncio.timeout(PATIENCE), client(shared, name, way, message_handler=listen) as mcp:
        assert text(await mcp.call_tool("change")) == "told"
        await heard.wait()


async def test_a_modern_client_falls_back_where_the_server_speaks_sse_only(
    shared: Installation,
) -> None:
    async with asyncio.timeout(PATIENCE), client(shared, "every-sse", "modern") as mcp:
        assert mcp.protocol_version == "2025-11-25"
        assert text(await mcp.call_tool("echo", {"text": "hi"})) == "hi"


async def test_a_bridged_session_is_one_at_the_server_from_initialize_to_delete(
    shared: Installation,
) -> None:
    url = shared.mcp("every-sse")
    async with httpx2.AsyncClient(headers=ACCEPT, timeout=PATIENCE) as http:
        opened = await http.post(url, json=INITIALIZE)
        assert opened.status_code == 200
        session = {"mcp-session-id": opened.headers["mcp-session-id"]}
        ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        assert (await http.post(url, json=ready, headers=session)).status_code == 202
        listing = {"jsonrpc": "2.0", "id": "a", "method": "tools/list"}
        tools = await http.post(url, json=listing, headers=session)
        assert '"id":"a"' in tools.text
        assert tools.headers["content-type"].startswith("text/event-stream")
        stranger = await http.post(url, json=listing, headers={**session, "authorization": "x"})
        assert stranger.status_code == 404
        async with http.stream("GET", url, headers=session) as stream:
            assert stream.status_code == 200
            assert (await http.get(url, headers=session)).status_code == 409
            assert (await http.delete(url, headers=session)).status_code == 200
            assert [line async for line in stream.aiter_lines() if not line.startswith(":")] in (
                [],
                [""],
            )
        assert (await http.post(url, json=listing, headers=session)).status_code == 404
        assert (await http.get(url, headers=session)).status_code == 404
        assert (await http.post(url, json=listing)).status_code == 400
        assert (await http.post(url, content=b"{")).status_code == 400
    shared.at_zero("every-sse")


async def test_a_session_of_one_request_at_a_time_can_still_answer_the_server(
    shared: Installation,
) -> None:
    """The client's answer is no request: it finds its way where a request holds the only room."""

    async def person(context: Any, params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"name": "Ann"})

    for name in ("every-sse", "every"):
        sse = 'transport = "sse"\n' if name.endswith("sse") else ""
        toml = f'{sse}[scale]\nidle = "1s"\nconcurrency = 1\n'
        shared.deploy("narrow", {"server.py": EVERY}, toml)
        for way in ("sse", "legacy") if sse else ("sse",):
            async with (
                asyncio.timeout(PATIENCE),
                client(shared, "narrow", way, elicitation_callback=person) as mcp,
            ):
                assert text(await mcp.call_tool("ask")) == "accept Ann", (name, way)


@pytest.mark.parametrize("name", ["every", "every-sse"])
@pytest.mark.parametrize("path", ["mcp", "sse"])
async def test_a_client_that_posts_then_gets_arrives_at_either_url(
    shared: Installation, name: str, path: str
) -> None:
    """The probe of 2025-03-26: POST initialize; at 4xx, GET and wait for an endpoint event."""
    url = f"{shared.url}/fn/{name}/{path}"
    async with httpx2.AsyncClient(headers=ACCEPT, timeout=PATIENCE) as http:
        posted = await http.post(url, json=INITIALIZE)
        if posted.status_code == 200:
            assert '"serverInfo"' in posted.text
            session = {"mcp-session-id": posted.headers["mcp-session-id"]}
            assert (await http.delete(url, headers=session)).status_code == 200
            return
        assert 400 <= posted.status_code < 500
        async with http.stream("GET", url) as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == "event: endpoint"
            endpoint = (await anext(lines)).removeprefix("data: ")
            answer = await http.post(f"{shared.url}{endpoint}", json=INITIALIZE)
            assert answer.status_code == 202
            async for line in lines:
                if line.startswith("data:"):
                    assert '"serverInfo"' in line
                    break


async def test_a_session_that_is_deleted_is_closed_at_the_server_at_once(
    cove: Installation,
) -> None:
    toml = (
        'command = "python server.py"\ntransport = "sse"\n'
        'env = { ENDPOINT = "/post/{id}" }\n[scale]\nidle = "1s"\n'
    )
    await asyncio.to_thread(cove.deploy, "closes", {"server.py": ODD}, toml)
    await asyncio.to_thread(cove.at_zero, "closes")
    url = cove.mcp("closes")
    async with httpx2.AsyncClient(headers=ACCEPT, timeout=PATIENCE) as http:
        opened = [await http.post(url, json=INITIALIZE) for _ in range(2)]
        first, second = ({"mcp-session-id": o.headers["mcp-session-id"]} for o in opened)
        count = {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": "open"}}

        async def streams() -> str:
            answer = await http.post(url, json=count, headers=second)
            assert answer.status_code == 200
            return json.loads(answer.text.split("data: ")[-1])["result"]["content"][0]["text"]

        assert await streams() == "2"
        assert (await http.delete(url, headers=first)).status_code == 200
        async with asyncio.timeout(5):
            while await streams() != "1":
                await asyncio.sleep(0.05)
        assert (await http.delete(url, headers=second)).status_code == 200
