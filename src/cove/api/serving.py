"""Serves the API on a unix socket of this process: to the gateway it is one more upstream."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

_BACKLOG = 128
_KEEP_ALIVE = 75
_GRACE = 2


@asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[str]:
    """The path of the socket, for as long as the block lasts."""
    # A socket's path has a bound of 108 bytes, which a data folder's need not keep.
    with (
        tempfile.TemporaryDirectory(prefix="cove-api-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
    ):
        path = str(Path(folder) / "api.sock")
        listener.bind(path)
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


class _Quiet(uvicorn.Server):
    """uvicorn without its signal handlers: Cove's own decide when it ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
