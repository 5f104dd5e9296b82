"""POST /v1/functions: an archive in, a stream of what happens out.

The answer is NDJSON, one object a line: `{"event": "progress", "text"}` as things happen,
then one of `{"event": "deployed", "function"}` and `{"event": "error", "error"}`. An empty
line is sent while nothing happens, so that no proxy in between takes silence for death.

A client that leaves while its archive is on the way has deployed nothing. Once it arrived,
the deploy belongs to the server: it goes on to its own end, ready or failed, whoever
listens, and `GET /v1/functions/{name}` tells which.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from cove.api import upload
from cove.api.control import Control
from cove.api.disk import full
from cove.api.replies import body, unexpected
from cove.errors import CoveError

log = structlog.get_logger(__name__)

Event = dict[str, Any]
SILENCE = 10.0
LAST = ("deployed", "error")


class Deploys:
    """The deploys under way. `uploads` is where archives wait, `silence` is in seconds."""

    def __init__(
        self, control: Control, uploads: Path | None, *, limit: int, silence: float = SILENCE
    ) -> None:
        self._control = control
        self._uploads = uploads
        self._limit = limit
        self._silence = silence
        self._running: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Deploys [{len(self._running)} running]>"

    async def post(self, request: Request) -> Response:
        name = request.query_params.get("name") or None
        fallback = request.query_params.get("fallback") or "function"
        try:
            archive = await upload.receive(request, self._uploads, self._limit)
        except ClientDisconnect:
            return Response(status_code=499)
        except OSError as fault:
            if (known := full(fault)) is None:
                raise
            raise known from fault
        events: asyncio.Queue[Event] = asyncio.Queue()
        work = self._deploy(archive, name, fallback, events, request.state.request_id)
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return StreamingResponse(
            self._lines(events),
            media_type="application/x-ndjson",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def close(self) -> None:
        """Cancel what runs and wait for it: the server is going away."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _deploy(
        self,
        archive: Path,
        name: str | None,
        fallback: str,
        events: asyncio.Queue[Event],
        request_id: str,
    ) -> None:
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def progress(text: str) -> None:
            tell({"event": "progress", "text": text})

        try:
            deployed = await self._control.deploy(
                archive, name=name, fallback=fallback, progress=progress
            )
            tell({"event": "deployed", "function": self._control.describe(deployed)})
        except CoveError as error:
            tell({"event": "error", **body(error)})
        except asyncio.CancelledError:
            stopping = CoveError(
                "draining", "the server stopped during the deploy", hint="deploy again"
            )
            tell({"event": "error", **body(stopping)})
            raise
        except Exception as fault:
            if (known := full(fault)) is None:
                log.exception("deploy failed", request_id=request_id)
            tell({"event": "error", **body(known or unexpected(request_id))})
        finally:
            upload.discard(archive)

    async def _lines(self, events: asyncio.Queue[Event]) -> AsyncIterator[bytes]:
        while True:
            try:
                event = await asyncio.wait_for(events.get(), self._silence)
            except TimeoutError:
                yield b"\n"
                continue
            yield json.dumps(event).encode() + b"\n"
            if event["event"] in LAST:
                return
