"""The API's outermost layer: request ids, keys, and the promise that every reply is JSON.

Plain ASGI and not Starlette's `BaseHTTPMiddleware`: that one takes a streamed reply apart.
The client's address is never looked at: behind the gateway it is a unix socket's.
"""

from __future__ import annotations

import re
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cove.api.control import Control
from cove.api.replies import Reply, refusal, unexpected
from cove.errors import CoveError

log = structlog.get_logger(__name__)

GUARDED = "/v1"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Edge:
    """ASGI middleware around the whole API."""

    def __init__(self, app: ASGIApp, control: Control) -> None:
        self._app = app
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get("x-request-id", ""))
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def marked(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            refused = self._refuse(scope["path"], headers)
            await (refused or self._app)(scope, receive, marked)
        except Exception:
            log.exception("request failed", request_id=request_id, path=scope["path"])
            if started:
                raise
            await refusal(unexpected(request_id))(scope, receive, marked)

    def _refuse(self, path: str, headers: Headers) -> Reply | None:
        """The 401 for a `/v1` request without a valid key (RFC 6750 section 3)."""
        if path != GUARDED and not path.startswith(GUARDED + "/"):
            return None
        token = bearer(headers.get("authorization", ""))
        if token and self._control.authenticate(token) is not None:
            return None
        what = "the key is not valid here" if token else "this needs a project key"
        return refusal(
            CoveError(
                "unauthorized",
                what,
                hint="send `Authorization: Bearer KEY`; the server keeps one in DATA/key",
            ),
            {"WWW-Authenticate": 'Bearer realm="cove"' + ', error="invalid_token"' * bool(token)},
        )


def bearer(authorization: str) -> str:
    """The token of a `Bearer` authorization header, else an empty string."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _request_id(given: str) -> str:
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
