"""The official Python client (mcp 2.x) in its three ways to connect."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from mcp import Client
from mcp.client.sse import sse_client
from mcp_types import CallToolResult, TextContent

from e2e.installation import Installation

WAYS = ("modern", "legacy", "sse")


def client(
    cove: Installation, name: str, way: str, **options: Any
) -> AbstractAsyncContextManager[Client]:
    """A client of a function: auto-negotiating, legacy by Streamable HTTP, or HTTP+SSE."""
    if way == "sse":
        return Client(sse_client(cove.sse(name)), mode="legacy", **options)
    mode = "auto" if way == "modern" else "legacy"
    return Client(cove.mcp(name), mode=mode, **options)


def text(result: CallToolResult) -> str:
    """The text of a tool's result that is no error."""
    assert not result.is_error, result
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text
