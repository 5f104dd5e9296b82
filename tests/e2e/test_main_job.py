"""One file becomes a URL: every official client, from no instance to a tool's result."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from e2e.clients import WAYS, client, text
from e2e.conftest import REPOSITORY, SHARED
from e2e.installation import Installation

PYTHON_1X = REPOSITORY / ".env1x/bin/python"
TYPESCRIPT = REPOSITORY / "tests/ts"


@pytest.fixture(scope="module")
def weather_sse(shared: Installation) -> Installation:
    """With the weather function once more, on HTTP+SSE."""
    source, toml = SHARED["weather"]
    shared.deploy("weather-sse", {"server.py": source}, f'transport = "sse"\n{toml}')
    return shared


@pytest.mark.parametrize("way", WAYS)
async def test_python_client_starts_the_function_from_nothing(
    shared: Installation, way: str
) -> None:
    shared.at_zero("weather")
    async with client(shared, "weather", way) as mcp:
        assert shared.instances("weather") != []
        tools = await mcp.list_tools()
        assert {tool.name for tool in tools.tools} == {"forecast", "compare"}
        assert "Bergen" in text(await mcp.call_tool("compare", {"a": "Bergen", "b": "Sydney"}))
        modern = mcp.protocol_version == "2026-07-28"
        assert modern is (way == "modern")
    shared.at_zero("weather")


@pytest.mark.skipif(not PYTHON_1X.exists(), reason="`make setup` has made no .env1x")
@pytest.mark.parametrize("way", ["http", "sse"])
@pytest.mark.parametrize("name", ["weather", "weather-sse"])
def test_the_client_of_mcp_1_starts_the_function_from_nothing(
    weather_sse: Installation, name: str, way: str
) -> None:
    weather_sse.at_zero(name)
    url = weather_sse.mcp(name) if way == "http" else weather_sse.sse(name)
    ran = subprocess.run(
        [PYTHON_1X, Path(__file__).with_name("client1x.py"), url, way],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stdout.splitlines()[0] == "['compare', 'forecast']", ran.stderr
    assert "Bergen" in ran.stdout.splitlines()[1]


@pytest.mark.skipif(
    shutil.which("node") is None or not (TYPESCRIPT / "node_modules").exists(),
    reason="the TypeScript SDK is not installed",
)
@pytest.mark.parametrize(
    ("sdk", "way"), [("v1", "http"), ("v1", "sse"), ("v2", "http"), ("v2", "modern"), ("v2", "sse")]
)
@pytest.mark.parametrize("name", ["weather", "weather-sse"])
def test_typescript_clients_start_the_function_from_nothing(
    weather_sse: Installation, name: str, sdk: str, way: str
) -> None:
    weather_sse.at_zero(name)
    url = weather_sse.sse(name) if way == "sse" else weather_sse.mcp(name)
    ran = subprocess.run(
        ["node", TYPESCRIPT / "client.mjs", sdk, way, url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stdout.splitlines()[:1] == ["compare forecast"], ran.stderr
    assert "Bergen" in ran.stdout.splitlines()[1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl_sees_the_events_as_they_happen(shared: Installation) -> None:
    shared.at_zero("weather")
    stream = subprocess.Popen(
        ["curl", "-sN", shared.sse("weather")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert stream.stdout is not None
        assert stream.stdout.readline() == "event: endpoint\n"
        endpoint = stream.stdout.readline().removeprefix("data: ").strip()
        assert endpoint.startswith("/fn/weather/messages/?")
        assert stream.stdout.readline() == "\n"
        body = json.dumps(
            {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "initialize",
                "params": {
                    "protocolVersion": "2024-11-05",
                    "capabilities": {},
                    "clientInfo": {"name": "curl", "version": "1"},
                },
            }
        )
        options = ["-s", "-d", body, "-H", "content-type: application/json"]
        said = subprocess.run(
            ["curl", *options, f"{shared.url}{endpoint}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        assert said.stdout == "Accepted"
        assert stream.stdout.readline() == "event: message\n"
        assert '"serverInfo"' in stream.stdout.readline()
    finally:
        stream.terminate()
        stream.wait(5)
        stream.stdout.close()
    shared.at_zero("weather")
