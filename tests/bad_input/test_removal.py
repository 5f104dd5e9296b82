"""A function that is removed while its callers are there: they are told, and wait for nothing."""

from __future__ import annotations

import asyncio
import contextlib

import httpx2

from bad_input.standing import Standing, footprint
from chaos.programs import COUNTER
from e2e.installation import PATIENCE, Installation, until_async
from e2e.test_bridges import ACCEPT, INITIALIZE

TOML = 'command = "python server.py"\n[scale]\nmin = 1\n'
COUNT = {"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": {"name": "count"}}
SLOW = {
    "jsonrpc": "2.0",
    "id": 10,
    "method": "tools/call",
    "params": {"name": "count", "arguments": {"seconds": 60}},
}


async def test_a_removed_functions_sessions_streams_and_requests_end_and_nothing_is_left(
    contained: Standing,
) -> None:
    cove = contained.cove
    before, kept = footprint(cove), layers(cove)
    await asyncio.to_thread(cove.deploy, "doomed", {"server.py": COUNTER}, TOML)
    url = cove.mcp("doomed")
    async with (
        asyncio.timeout(3 * PATIENCE),
        httpx2.AsyncClient(headers=ACCEPT, timeout=PATIENCE) as http,
    ):
        opened = await http.post(url, json=INITIALIZE)
        session = {"mcp-session-id": opened.headers["mcp-session-id"]}
        assert (await http.post(url, json=COUNT, headers=session)).status_code == 200
        async with (
            http.stream("GET", url, headers=session) as listening,
            http.stream("GET", cove.sse("doomed")) as events,
        ):
            assert (listening.status_code, events.status_code) == (200, 200)
            slow = asyncio.create_task(http.post(url, json=SLOW, headers=session))
            await until_async(
                lambda: any(i["requests"] for i in cove.instances("doomed")), "it is under way"
            )
            removing = asyncio.create_task(asyncio.to_thread(cove, "rm", "doomed", "--yes"))
            for stream in (listening, events):
                async for _ in stream.aiter_bytes():
                    pass  # to its proper end, which a broken connection would not be
            with contextlib.suppress(httpx2.HTTPError):  # what has begun cannot be unsaid
                answer = await slow
                assert answer.status_code in (200, 404, 502)
            assert "removed doomed" in (await removing).out
        for asked in (
            http.post(url, json=COUNT, headers=session),
            http.get(url, headers=session),
            http.delete(url, headers=session),
            http.post(url, json=INITIALIZE),
            http.get(cove.sse("doomed")),
        ):
            gone = await asked
            assert gone.status_code == 404
            assert "doomed" in gone.text
    gone_too = contained.cove("describe", "doomed", "--json", code=1).json["error"]
    assert gone_too["code"] == "not_found"
    assert contained.cove("session", "list", "--json").json == []
    await until_async(lambda: footprint(cove) == before, "nothing is left")
    assert layers(cove) == kept


def layers(cove: Installation) -> set[str]:
    return {path.name for path in (cove.data / "layers").iterdir()}
