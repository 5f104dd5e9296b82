"""The official MCP client, opened on a function. Imported only where a tool is asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx2  # the HTTP client that mcp's transport takes; it comes with mcp
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp_types import Tool

from cove.cli.connect import mcp_url
from cove.cli.options import Options
from cove.errors import CoveError

T = TypeVar("T")
TIMEOUT = httpx2.Timeout(30.0, read=300.0)
PAGES = 100


def with_tools(options: Options, name: str, use: Callable[[Client], Awaitable[T]]) -> T:
    """What `use` makes of a client that is connected to the function."""
    url = mcp_url(options.client().describe(name))
    key = options.location().key
    logging.getLogger("mcp").setLevel(logging.ERROR)  # its warnings are for its developers

    async def run() -> T:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=TIMEOUT) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            return await use(client)

    try:
        return asyncio.run(run())
    except BaseException as fault:
        raise _translated(name, url, fault) from fault


async def tools_of(client: Client) -> list[Tool]:
    """All tools, page after page."""
    found: list[Tool] = []
    cursor: str | None = None
    for _ in range(PAGES):
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        cursor = page.next_cursor
        if not cursor:
            break
    return found


def _translated(name: str, url: str, fault: BaseException) -> BaseException:
    """Task groups wrap what happened; the first of it that a person can act on is meant."""
    while isinstance(fault, BaseExceptionGroup):
        fault = fault.exceptions[0]
    match fault:
        case MCPError():
            return CoveError("bad_gateway", f"{name} answered {fault.code}: {fault.message}")
        case httpx2.HTTPStatusError():
            return CoveError("bad_gateway", f"{url} answered {fault.response.status_code}")
        case httpx2.HTTPError() | OSError():
            return CoveError(
                "unreachable",
                f"{url} does not answer: {fault or type(fault).__name__}",
                hint=f"`cove describe {name}` shows its state",
            )
    return fault
