"""Errors as the API says them: `{"error": {code, message, hint, retry}}`, whatever went wrong."""

from __future__ import annotations

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from cove.errors import CoveError

ROUTES = "GET /v1/functions lists functions; the routes are in cove/api/app.py"


class Reply(JSONResponse):
    """JSON in ASCII: what strangers sent as a key may be text that UTF-8 does not have."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def body(error: CoveError) -> dict[str, Any]:
    return {"error": error.to_json()}


def refusal(error: CoveError, headers: dict[str, str] | None = None) -> Reply:
    return Reply(body(error), error.status, headers)


def unexpected(request_id: str) -> CoveError:
    """What a caller learns of a defect: the id under which the log has the rest."""
    return CoveError(
        "internal",
        f"Cove failed at this request, {request_id}",
        hint="the server's log has the reason under that id; please report it",
    )


async def known(request: Request, fault: Exception) -> Reply:
    """Starlette's handler for `CoveError`."""
    assert isinstance(fault, CoveError)
    return refusal(fault)


async def unrouted(request: Request, fault: Exception) -> Reply:
    """Starlette's handler for what its router refuses: no such route, or not that method."""
    assert isinstance(fault, HTTPException)
    headers = dict(fault.headers or {})
    asked = f"{request.method} {request.url.path}"
    if fault.status_code == 405:
        allowed = headers.get("Allow", "")
        return refusal(
            CoveError("method_not_allowed", f"{asked} is not possible", hint=f"use {allowed}"),
            headers,
        )
    if fault.status_code == 404:
        return refusal(CoveError("not_found", f"there is no route {asked}", hint=ROUTES), headers)
    return refusal(CoveError("bad_request", f"{asked}: {fault.detail}"), headers)
