"""GET /v1/functions/{name}/logs and /v1/events: what was kept, and what comes, line by line.

The answer is NDJSON, one record a line (`cove.logs.records`). With `follow=1` it goes on with
what comes, with an empty line now and then while nothing does, until the client leaves, the
function is removed or the server stops. Where reading fails midway, the last line is `{"error"}`.

    since     an RFC 3339 time, or a duration before now, like 10m
    tail      only the last so many of those that match
    follow    1 or 0
    instance, session, request, stream     of a function's log: only its records
    function                               of events: only that function's, also a removed one's
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import datetime

import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from cove import clock
from cove.api.control import Control
from cove.api.replies import body, unexpected
from cove.config.checks import DAY, BadValueError, duration
from cove.errors import CoveError
from cove.logs.records import STREAMS, Record, Wanted

log = structlog.get_logger(__name__)

Records = AsyncGenerator[list[Record], None]

_BEFORE = duration(0, 3650 * DAY)
_LATEST = 253_402_300_799.0  # the year 9999's end
_COUNT = re.compile(r"[0-9]{1,9}")


class LogStreams:
    """Answers that are read from the logs."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def logs(self, request: Request) -> Response:
        given = request.query_params
        wanted = Wanted(
            since=_since(given.get("since", ""), clock.wall()),
            stream=_stream(given.get("stream", "")),
            instance=given.get("instance", ""),
            session=given.get("session", ""),
            request=given.get("request", ""),
        )
        name, tail, follow = request.path_params["name"], _tail(request), _follow(request)
        return _answer(request, self._control.logs(name, wanted, tail=tail, follow=follow))

    async def events(self, request: Request) -> Response:
        given = request.query_params
        wanted = Wanted(
            since=_since(given.get("since", ""), clock.wall()),
            function=given.get("function", ""),
        )
        tail, follow = _tail(request), _follow(request)
        return _answer(request, self._control.events(wanted, tail=tail, follow=follow))


def _answer(request: Request, records: Records) -> Response:
    return StreamingResponse(
        _lines(records, request.state.request_id),
        media_type="application/x-ndjson",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _lines(records: Records, request_id: str) -> AsyncIterator[bytes]:
    async with aclosing(records):
        try:
            async for some in records:
                yield b"".join(json.dumps(record).encode() + b"\n" for record in some) or b"\n"
        except Exception:
            log.exception("logs could not be read", request_id=request_id)
            yield json.dumps(body(unexpected(request_id))).encode() + b"\n"


def _since(text: str, now: float) -> float | None:
    """Seconds since the epoch."""
    if not text:
        return None
    try:
        return now - float(_BEFORE(text))
    except BadValueError:
        pass
    try:
        # A plus in a query that nobody encoded arrives as a space.
        at = datetime.fromisoformat(text.replace(" ", "+"))
        if at.tzinfo is not None:
            return min(max(at.timestamp(), 0.0), _LATEST)
    except (ValueError, OverflowError):
        pass
    raise CoveError(
        "bad_request",
        f"since={text} is no time and no duration",
        hint="it looks like 10m, 2h, 7d, or like 2026-01-15T12:00:00Z with its time zone",
    )


def _tail(request: Request) -> int | None:
    text = request.query_params.get("tail", "")
    if not text:
        return None
    if not _COUNT.fullmatch(text):
        raise CoveError("bad_request", f"tail={text} is no count", hint="it looks like tail=200")
    return int(text)


def _follow(request: Request) -> bool:
    text = request.query_params.get("follow", "0")
    if text not in ("0", "1"):
        raise CoveError("bad_request", f"follow={text} is neither 1 nor 0", hint="use follow=1")
    return text == "1" and request.method != "HEAD"  # whose answer would never end


def _stream(text: str) -> str:
    if text and text not in STREAMS:
        raise CoveError(
            "bad_request",
            f"stream={text} is none of a function's",
            hint=f"use one of {', '.join(STREAMS)}",
        )
    return text
