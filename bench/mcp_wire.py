"""The least of an MCP client, over one keep-alive connection: what is timed is the server."""

from __future__ import annotations

import http.client
import json
from typing import Any

ACCEPT = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
VERSION = "2025-06-18"


class Client:
    """Legacy Streamable HTTP: initialize, initialized, calls, DELETE."""

    def __init__(self, port: int, path: str) -> None:
        self.path = path
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.headers = dict(ACCEPT)

    def initialize(self) -> None:
        info = {"name": "bench", "version": "1"}
        params = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": info}
        response = self._post({"id": 1, "method": "initialize", "params": params})
        if session := response.headers.get("Mcp-Session-Id"):
            self.headers["Mcp-Session-Id"] = session
        self.headers["MCP-Protocol-Version"] = VERSION
        self._post({"method": "notifications/initialized"})

    def call(self, tool: str, arguments: dict[str, Any]) -> str:
        """A tool's result as the server wrote it; an error if it says so itself."""
        params = {"name": tool, "arguments": arguments}
        body: bytes = self._post({"id": 2, "method": "tools/call", "params": params}).body  # type: ignore[attr-defined]
        if b'"result"' not in body or b'"isError":true' in body.replace(b" ", b""):
            raise RuntimeError(f"{tool}: {body!r}")
        return body.decode()

    def close(self) -> None:
        """End the session as a tidy client does."""
        if "Mcp-Session-Id" in self.headers:
            self.connection.request("DELETE", self.path, headers=self.headers)
            self.connection.getresponse().read()
        self.connection.close()

    def _post(self, message: dict[str, Any]) -> http.client.HTTPResponse:
        body = json.dumps({"jsonrpc": "2.0", **message})
        self.connection.request("POST", self.path, body, self.headers)
        response = self.connection.getresponse()
        response.body = response.read()  # type: ignore[attr-defined]
        if response.status not in (200, 202):
            raise RuntimeError(f"{message}: {response.status} {response.body!r}")  # type: ignore[attr-defined]
        return response
