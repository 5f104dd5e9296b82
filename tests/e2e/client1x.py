"""A client of mcp 1.x, run in that SDK's own environment: URL and transport in, a result out."""

import asyncio
import sys

from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamablehttp_client


async def main(url: str, way: str) -> None:
    opened = sse_client(url) if way == "sse" else streamablehttp_client(url)
    async with opened as streams, ClientSession(*streams[:2]) as session:
        await session.initialize()
        print(sorted(tool.name for tool in (await session.list_tools()).tools))
        result = await session.call_tool("compare", {"a": "Bergen", "b": "Sydney"})
        print(result.content[0].text)


asyncio.run(main(*sys.argv[1:]))
