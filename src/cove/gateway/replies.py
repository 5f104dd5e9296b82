"""Cove's own answers on the wire, in the protocol the caller speaks."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from cove.errors import CoveError
from cove.mcp import messages, sse

REASONS: dict[int, bytes] = {status.value: status.phrase.encode() for status in HTTPStatus}


def status_line(status: int) -> bytes:
    return b"HTTP/1.1 %d %s\r\n" % (status, REASONS.get(status, b"Unknown"))


def simple_reply(
    status: int,
    body: bytes,
    *,
    keep_alive: bool = True,
    content_type: bytes = b"text/plain; charset=utf-8",
    extra: bytes = b"",
) -> bytes:
    """A whole reply as bytes. `extra` holds more header lines, without the last line end."""
    head = status_line(status) + b"Content-Type: " + content_type
    head += b"\r\nContent-Length: %d\r\n" % len(body)
    if extra:
        head += extra + b"\r\n"
    if not keep_alive:
        head += b"Connection: close\r\n"
    return head + b"\r\n" + body


def rpc_error(error: CoveError, request_id: bytes, ident: messages.RequestId | None) -> bytes:
    """An error as the JSON-RPC response to a request; `ident` None where that is unknown."""
    text = f"{error.message} ({error.hint})" if error.hint else error.message
    return messages.error(error.rpc, text, ident, _detail(error, request_id))


def rpc_event(error: CoveError, request_id: bytes, ident: messages.RequestId) -> bytes:
    """The same as an event, for a stream that owes the response."""
    return sse.encode(rpc_error(error, request_id, ident))


def _detail(error: CoveError, request_id: bytes) -> dict[str, Any]:
    return {**error.to_json(), "request_id": request_id.decode()}


def error_reply(
    error: CoveError,
    request_id: bytes,
    *,
    rpc: bool,
    ident: messages.RequestId | None = None,
    keep_alive: bool = True,
    extra: bytes = b"",
) -> bytes:
    """An error: a JSON-RPC body on MCP routes, for the request `ident`; plain JSON elsewhere."""
    if rpc:
        body = rpc_error(error, request_id, ident)
    else:
        said = {"error": _detail(error, request_id)}
        body = json.dumps(said, ensure_ascii=False).encode()
    lines = [b"X-Request-Id: " + request_id]
    if error.retry:
        lines.append(b"Retry-After: 1")
    if error.status == 401:
        lines.append(b'WWW-Authenticate: Bearer realm="cove"')
    if error.status == 405:
        lines.append(b"Allow: GET, POST, DELETE")
    if extra:
        lines.append(extra)
    return simple_reply(
        error.status,
        body,
        keep_alive=keep_alive,
        content_type=b"application/json",
        extra=b"\r\n".join(lines),
    )
