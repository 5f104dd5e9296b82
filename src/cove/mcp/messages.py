"""JSON-RPC messages, as far as a gateway has to look into them (JSON-RPC 2.0 §4-5)."""

from __future__ import annotations

import json
from typing import Any

RequestId = str | int


def parse(body: bytes) -> list[dict[str, Any]]:
    """The messages of a body: one, or a batch. `ValueError` where it is not JSON-RPC."""
    try:
        value = json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, dict) for item in items):
        raise ValueError("not a JSON-RPC message")
    return items


def request_id(message: dict[str, Any]) -> RequestId | None:
    """The id of a request that wants an answer, else None."""
    ident = message.get("id")
    return ident if "method" in message and isinstance(ident, str | int) else None


def answer_id(message: dict[str, Any]) -> RequestId | None:
    """The id that a response answers, else None."""
    ident = message.get("id")
    answers = "result" in message or "error" in message
    return ident if answers and isinstance(ident, str | int) else None


def cancelled_id(message: dict[str, Any]) -> RequestId | None:
    """The id of the request that a `notifications/cancelled` takes back, else None."""
    params = message.get("params")
    if message.get("method") != "notifications/cancelled" or not isinstance(params, dict):
        return None
    ident = params.get("requestId")
    return ident if isinstance(ident, str | int) else None


def progress_token(message: dict[str, Any]) -> RequestId | None:
    """What a request's progress is to be reported under, or what a report of it is under."""
    params = message.get("params")
    if not isinstance(params, dict):
        return None
    if message.get("method") != "notifications/progress":
        params = params.get("_meta")
    token = params.get("progressToken") if isinstance(params, dict) else None
    return token if isinstance(token, str | int) else None


def asks(body: bytes) -> bool:
    """Whether a body holds a request, or what nobody can tell from one."""
    try:
        return any(request_id(message) is not None for message in parse(body))
    except ValueError:
        return True


def request_ids(body: bytes) -> list[RequestId]:
    """The ids of the requests in a body, in order; none where it is not JSON-RPC."""
    try:
        return [ident for message in parse(body) if (ident := request_id(message)) is not None]
    except ValueError:
        return []


def is_initialize(body: bytes) -> bool:
    """Whether a body is the `initialize` request that opens a legacy session."""
    if b'"initialize"' not in body:
        return False
    try:
        return any(message.get("method") == "initialize" for message in parse(body))
    except ValueError:
        return False


def error(code: int, message: str, ident: RequestId | None = None, data: Any = None) -> bytes:
    """An error response as bytes; `ident` None where the request's id is unknown."""
    body: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        body["data"] = data
    return dump({"jsonrpc": "2.0", "id": ident, "error": body})


def dump(message: dict[str, Any]) -> bytes:
    """Compact JSON, one line."""
    try:
        return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair: JSON can escape it, UTF-8 cannot say it
        return json.dumps(message, separators=(",", ":")).encode()
