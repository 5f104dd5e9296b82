"""A deploy's archive, from the wire to a temporary file, bounded."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

from starlette.requests import Request

from cove.errors import CoveError

LIMIT = 256 * 1024**2
GZIP = b"\x1f\x8b"
WRITE = 1024**2


async def receive(request: Request, folder: Path | None, limit: int) -> Path:
    """The request's body as a file in `folder`, which the caller removes.

    `too_large` beyond `limit` bytes, before reading where the length is announced;
    `bad_source` if it is no gzip. `ClientDisconnect` if the client leaves. After an error no
    file is left.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    descriptor, name = tempfile.mkstemp(prefix="upload-", suffix=".tar.gz", dir=folder)
    path = Path(name)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            total, waiting = 0, bytearray()
            async for chunk in request.stream():
                total += len(chunk)
                if total > limit:
                    raise _too_large(limit)
                waiting += chunk
                if len(waiting) >= WRITE:
                    await asyncio.to_thread(file.write, waiting)
                    waiting = bytearray()
            await asyncio.to_thread(file.write, waiting)
        _check_kind(path)
    except BaseException:
        discard(path)
        raise
    return path


def discard(archive: Path) -> None:
    """Remove what `receive` left. Idempotent."""
    archive.unlink(missing_ok=True)


def _check_kind(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(2) != GZIP:
            raise CoveError(
                "bad_source",
                "the body is no tar.gz archive",
                hint="`cove deploy PATH` packs one; by hand: tar czf - -C FOLDER .",
            )


def _too_large(limit: int) -> CoveError:
    return CoveError(
        "too_large",
        f"the archive is larger than {limit // 1024**2} MiB",
        hint="leave data and build results out with a .coveignore file",
    )
