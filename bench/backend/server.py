"""An MCP server that costs as little as Python can: what is measured around it is the rest.

Answers every `tools/call` with the same 200 bytes or so, `initialize` with a fresh
`Mcp-Session-Id`, and the rest of what a client may ask on connecting with something true.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
from typing import Any, cast

import httptools
import uvloop

TEXT = "Mostly sunny, 21 degrees, wind from the north-west at 14 kilometres an hour. " * 2
RESULT = {"content": [{"type": "text", "text": TEXT[:120]}], "isError": False}
INFO = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {"listChanged": False}},
    "serverInfo": {"name": "bench", "version": "1"},
}
TOOL = {"name": "forecast", "inputSchema": {"type": "object"}}


def reply(status: str, body: bytes, extra: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n{extra}\r\n"
    ).encode() + body


def rpc(ident: Any, **rest: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": ident, **rest}, separators=(",", ":")).encode()


CALLED = reply("200 OK", rpc(1, result=RESULT))


def answer(method: bytes, body: bytes) -> bytes:
    """The whole response to a request, headers included."""
    if b'"tools/call"' in body:
        return CALLED
    if method in (b"GET", b"DELETE"):
        return reply("405 Method Not Allowed", b"{}", "allow: POST\r\n")
    try:
        message = json.loads(body)
    except ValueError:
        return reply("400 Bad Request", rpc(None, error={"code": -32700, "message": "not JSON"}))
    if "id" not in message:
        return reply("202 Accepted", b"")
    match message.get("method"):
        case "initialize":
            session = f"mcp-session-id: {secrets.token_hex(16)}\r\n"
            return reply("200 OK", rpc(message["id"], result=INFO), session)
        case "tools/list":
            return reply("200 OK", rpc(message["id"], result={"tools": [TOOL]}))
        case "ping":
            return reply("200 OK", rpc(message["id"], result={}))
    error = {"code": -32601, "message": "no such method"}
    return reply("200 OK", rpc(message["id"], error=error))


class Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not asyncio's by inheritance
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.transport.write(answer(self.parser.get_method(), self.body))
        self.body = b""


async def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(os.environ.get("PORT", "9000"))))
    server = await asyncio.get_running_loop().create_server(Connection, sock=listener)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
