"""Servers of every make: deployed as they are, and called."""

from __future__ import annotations

import asyncio

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from e2e.clients import WAYS, client, text
from e2e.installation import PATIENCE, Installation
from e2e.servers import LOW, ODD, PROGRAM, TUTORIAL, WEB

SCALE = '[scale]\nidle = "1s"\n'


@pytest.fixture(scope="module")
def tutorial(cove: Installation) -> Installation:
    """The tutorials' file, verbatim, with the requirement that they state."""
    files = {"server.py": TUTORIAL, "requirements.txt": "mcp\n"}
    said = cove.deploy("tutorial", files, SCALE)
    assert "mcp<2" in said.out + said.err
    return cove


@pytest.mark.parametrize("way", WAYS)
async def test_the_tutorials_file_serves_verbatim(tutorial: Installation, way: str) -> None:
    async with asyncio.timeout(PATIENCE), client(tutorial, "tutorial", way) as mcp:
        assert text(await mcp.call_tool("alerts", {"state": "CA"})) == "none in CA"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("guarded", [False, True])
async def test_the_tutorials_sse_program_serves_verbatim(
    tutorial: Installation, way: str, guarded: bool
) -> None:
    name = "guarded" if guarded else "unguarded"
    guard = 'if __name__ == "__main__":\n    ' if guarded else ""
    if way == WAYS[0]:
        source = f'{TUTORIAL}\n{guard}mcp.run(transport="sse")\n'
        files = {"server.py": source, "requirements.txt": "mcp\n"}
        tutorial.deploy(name, files, f'entry = "server.py"\n{SCALE}')
        assert tutorial.describe(name)["facts"]["transport"] == "sse"
    async with asyncio.timeout(PATIENCE), client(tutorial, name, way) as mcp:
        assert [tool.name for tool in (await mcp.list_tools()).tools] == ["alerts"]
        assert text(await mcp.call_tool("alerts", {"state": "CA"})) == "none in CA"


async def test_a_low_level_server_serves(cove: Installation) -> None:
    cove.deploy("low", {"server.py": LOW}, SCALE)
    for way in WAYS:
        async with asyncio.timeout(PATIENCE), client(cove, "low", way) as mcp:
            assert text(await mcp.call_tool("low")) == "low down"


@pytest.mark.parametrize("mode", ["stateless", "json", "plain"])
async def test_a_program_on_streamable_http_serves(cove: Installation, mode: str) -> None:
    toml = f'entry = "server.py"\nenv = {{ MODE = "{mode}" }}\n{SCALE}'
    cove.deploy(mode, {"server.py": PROGRAM}, toml)
    assert cove.describe(mode)["facts"]["stateful"] is (mode != "stateless")
    for way in WAYS:
        async with asyncio.timeout(PATIENCE), client(cove, mode, way) as mcp:
            assert text(await mcp.call_tool("mode")) == mode


ENDPOINTS = {
    "absolute": ("http://localhost:{port}/deep/{id}/post?x=1&sid={id}", "/deep/{id}/post?x=1&sid="),
    "relative": ("messages?sessionId={id}", "/v1/messages?sessionId="),
    "inpath": ("/s/{id}", "/s/"),
}


@pytest.mark.parametrize("kind", ENDPOINTS)
async def test_endpoint_events_of_any_form_are_learnt(cove: Installation, kind: str) -> None:
    endpoint, path = ENDPOINTS[kind]
    toml = (
        'command = "python server.py"\ntransport = "sse"\npath = "/v1/events"\n'
        f'env = {{ ENDPOINT = "{endpoint}", EVENTS = "/v1/events" }}\n{SCALE}'
    )
    cove.deploy(f"odd-{kind}", {"server.py": ODD}, toml)
    for way in ("sse", "legacy"):
        async with asyncio.timeout(PATIENCE), client(cove, f"odd-{kind}", way) as mcp:
            asked = text(await mcp.call_tool("path"))
            assert asked.startswith(path.partition("{id}")[0]), asked
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        for host in ({}, {"host": f"odd-{kind}.localhost:{cove.port}"}):
            url = cove.sse(f"odd-{kind}") if not host else f"{cove.url}/sse"
            async with http.stream("GET", url, headers=host) as stream:
                lines = [line async for line in take(stream, 2)]
            prefix = f"/fn/odd-{kind}" if not host else ""
            assert lines[0] == "event: endpoint"
            assert lines[1].startswith(f"data: {prefix}/messages/?session_id=")


async def take(stream: httpx2.Response, count: int):  # type: ignore[no-untyped-def]
    lines = stream.aiter_lines()
    for _ in range(count):
        yield await anext(lines)


async def test_a_web_app_serves_http_and_websockets(cove: Installation) -> None:
    toml = f'kind = "web"\n{SCALE}[session]\naffinity = "cookie:seat"\n'
    cove.deploy(
        "web", {"app.py": WEB, "requirements.txt": "starlette\nuvicorn\nwebsockets\n"}, toml
    )
    cove.at_zero("web")
    base = f"{cove.url}/fn/web"
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        assert (await http.get(f"{base}/")).text == "GET /fn/web/ /fn/web/"
        hosted = await http.get(f"{cove.url}/", headers={"host": f"web.localhost:{cove.port}"})
        assert hosted.text == "GET / /"
        data = bytes(range(256)) * 4096
        assert (await http.post(f"{base}/echo", content=data)).content == data
    async with connect(f"ws{base[4:]}/chat", subprotocols=["talk"]) as socket:  # type: ignore[list-item]
        assert socket.subprotocol == "talk"
        await socket.send("hello")
        assert await socket.recv() == "HELLO"
        await socket.send("x" * 300_000)
        assert await socket.recv() == "X" * 300_000
        await socket.send("bye")
        assert await socket.recv() == "BYE"
        with pytest.raises(ConnectionClosedError) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "so long")
