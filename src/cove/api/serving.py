"""Serves the API on a unix socket of this process: to the gateway it is one more upstream."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

_BACKLOG = 128
_LONGEST = 103  # where the system's bound is least
_KEEP_ALIVE = 75
_GRACE = 2


@asynccontextmanager
async def serving(app: Starlette, place: Path) -> AsyncIterator[str]:
    """The path of the socket, for as long as the block lasts. It lies at `place`."""
    with (
        _short(place) as path,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
    ):
        _remove(path)  # an earlier process's
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(_BACKLOG)
        server = _Quiet(
            uvicorn.Config(
                app,
                lifespan="on",
                log_config=None,
                access_log=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=_GRACE,
            )
        )
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield path
        finally:
            await app.state.deploys.close()
            server.should_exit = True
            await task
            _remove(path)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


@contextmanager
def _short(place: Path) -> Iterator[str]:
    """A name for `place` within the 107 bytes that a socket's may have."""
    if len(os.fsencode(place)) <= _LONGEST:
        yield str(place)
        return
    folder = os.open(place.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{place.name}"
    finally:
        os.close(folder)


class _Quiet(uvicorn.Server):
    """uvicorn without its signal handlers: Cove's own decide when it ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
