"""The command line against the real server, and keys at its doors."""

from __future__ import annotations

import json
import os
import stat

import httpx2

from e2e.installation import PATIENCE, Installation
from e2e.servers import EVERY

WHO = """
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

mcp = MCPServer("who")


@mcp.tool()
def who(ctx: Context) -> str:
    return dict(ctx.headers or {}).get("authorization", "no authorization")
"""


def test_every_command_answers_people_and_programs(shared: Installation) -> None:
    listed = shared("list", "--json").json
    assert {"weather", "every"} <= {function["name"] for function in listed}
    assert "weather" in shared("list").out

    described = shared("describe", "weather", "--json").json
    wanted = ["name", "kind", "version", "urls", "isolation", "driver", "instances", "sessions"]
    assert described.keys() >= set(wanted)
    assert described["urls"]["mcp"] == shared.mcp("weather")
    assert shared.mcp("weather") in shared("describe", "weather").out

    tools = shared("tools", "weather", "--json").json
    assert {tool["name"] for tool in tools} == {"forecast", "compare"}
    assert "forecast" in shared("tools", "weather").out

    called = shared("call", "weather", "forecast", "city=Bergen", "day=2026-07-15", "--json").json
    assert "Bergen" in json.dumps(called)
    assert "Bergen" in shared("call", "weather", "forecast", "city=Bergen").out
    assert "Nowhere" in shared("call", "weather", "forecast", "city=Nowhere", code=1).err

    (instance,) = shared("describe", "weather", "--json").json["instances"]
    assert instance.keys() >= {"id", "state", "pid", "started_at", "started_by", "sessions"}
    assert os.path.exists(f"/proc/{instance['pid']}")

    connect = shared("connect", "weather").out
    assert shared.mcp("weather") in json.dumps(json.loads(connect))
    assert shared("session", "list", "--json").json == shared("session", "list", "--json").json
    assert shared("session", "list", "weather").code == 0
    assert isinstance(shared("doctor", "--json").json, (list, dict))
    assert shared("doctor", code=None).out

    shared.deploy("gone", {"server.py": EVERY})
    assert shared("rm", "gone", "--yes").code == 0
    missing = shared("describe", "gone", code=1)
    assert "there is no function gone" in missing.err
    unknown = shared("call", "wether", "forecast", code=1)
    assert "wether" in unknown.err


async def test_the_control_api_needs_the_key_and_keeps_only_its_hash(cove: Installation) -> None:
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        url = f"{cove.url}/v1/functions"
        assert (await http.get(url)).status_code == 401
        wrong = await http.get(url, headers={"authorization": "Bearer cove_wrong"})
        assert wrong.status_code == 401
        assert "error" in wrong.json()
        right = await http.get(url, headers={"authorization": f"Bearer {cove.key}"})
        assert right.status_code == 200
    mode = stat.S_IMODE((cove.data / "key").stat().st_mode)
    assert mode == 0o600
    records = b"".join(path.read_bytes() for path in cove.data.glob("cove.db*"))
    assert cove.key.encode() not in records


async def test_a_function_behind_a_key_is_shut_without_and_open_with_it(
    cove: Installation,
) -> None:
    toml = '[scale]\nidle = "1s"\n[auth]\nrequire = "key"\n'
    cove.deploy("locked", {"server.py": WHO}, toml)
    cove.at_zero("locked")
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        for path in ("mcp", "sse", "elsewhere"):
            refused = await http.post(f"{cove.url}/fn/locked/{path}", json={})
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Bearer")
        assert (await http.get(cove.sse("locked"))).status_code == 401
    assert cove.instances("locked") == []
    assert "no authorization" in cove("call", "locked", "who").out  # the key is Cove's own
    assert cove("connect", "locked").out.count("Bearer") == 1


async def test_what_is_not_there_is_said_with_a_way_on(shared: Installation) -> None:
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        lost = await http.get(f"{shared.url}/fn/weathr/mcp")
        assert lost.status_code == 404
        assert "weather" in lost.text
        assert lost.headers["x-request-id"]
        assert (await http.get(f"{shared.url}/healthz")).status_code == 200
        assert (await http.get(f"{shared.url}/readyz")).status_code == 200
        metrics = (await http.get(f"{shared.url}/metrics")).text
        assert "cove_instances" in metrics
        rebound = await http.get(f"{shared.url}/fn/weather/mcp", headers={"host": "evil.example"})
        assert rebound.status_code == 421
        foreign = await http.post(
            shared.mcp("weather"), json={}, headers={"origin": "https://evil.example"}
        )
        assert foreign.status_code == 403
