"""A program run for a while in a process group of its own, of which nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None

# Layers are read by other ids than Cove's, whatever its umask is (uvloop takes no `umask`).
_READABLE = ("/bin/sh", "-c", 'umask 022; exec "$@"', "sh")


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended: `code` is negative where a signal ended it."""

    code: int
    out: str
    err: str


async def run(argv: Sequence[str], env: Mapping[str, str], timeout: float) -> Finished:
    """Run `argv` in `/` to its end. `TimeoutError` after `timeout` seconds.

    Nothing of its group outlives the call, however that ends.
    """
    process = await asyncio.create_subprocess_exec(
        *_READABLE,
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
        # uv reads uv.toml and pyproject.toml of the folder it runs in and of those above: not the
        # deployer's, and not one that anybody may leave in /tmp.
        cwd="/",
        start_new_session=True,
        preexec_fn=_end_with_cove,
    )
    try:
        async with asyncio.timeout(timeout):
            out, err = await process.communicate()
    finally:
        await _end(process)
    return Finished(
        process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")
    )


def _end_with_cove() -> None:
    """In the new process: a build is nobody's once the Cove that waits for it is gone."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of the group: uv's children outlive it where it is killed alone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
