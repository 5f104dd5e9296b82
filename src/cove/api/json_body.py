"""A request's JSON body, bounded. No error repeats any of it: it may hold a secret."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

from cove.errors import CoveError


async def json_object(request: Request, limit: int, wanted: str) -> dict[str, Any]:
    """The body as a JSON object; empty where there is no body.

    `wanted` is an example of a right one, for the hint. `bad_request` for anything else,
    `too_large` beyond `limit` bytes, before reading where the length is announced.
    """
    text = await _bounded(request, limit)
    if not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        # Not chained: the decoders' own errors carry the text that they failed on.
        raise CoveError("bad_request", "the body is not JSON", hint=f"send {wanted}") from None
    if not isinstance(found, dict):
        raise CoveError("bad_request", "the body is no JSON object", hint=f"send {wanted}")
    return found


async def _bounded(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    text = bytearray()
    try:
        async for chunk in request.stream():
            text += chunk
            if len(text) > limit:
                raise _too_large(limit)
    except ClientDisconnect:
        raise CoveError("bad_request", "the client left before its body was whole") from None
    return bytes(text)


def _too_large(limit: int) -> CoveError:
    return CoveError(
        "too_large",
        f"the body is larger than {limit} bytes",
        hint="nothing that is asked for here needs as much",
    )
