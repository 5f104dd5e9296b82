"""An OCI runtime's command line: run a bundle detached, delete a container."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from cove.errors import CoveError

PATIENCE = 30.0  # seconds for one call of a runtime, which takes milliseconds
LAST_LINES = 20


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime on this machine: crun or runc, where it lies, and what it calls itself."""

    name: str
    path: str
    version: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.version}".rstrip()

    async def run(
        self, container: str, *, root: Path, bundle: Path, stdout: int, stderr: int
    ) -> int:
        """Start a bundle's container; the host's id of its first process.

        The container inherits `stdout` and `stderr`: the runtime's own words go to a log in the
        bundle.
        `CoveError("start_failed")` with them; the container must then be deleted all the same.
        """
        log, pid_file = bundle / "runtime.log", bundle / "pid"
        process = await asyncio.create_subprocess_exec(
            self.path,
            *("--root", str(root), "--log", str(log), "--log-format", "json"),
            *("run", "--detach", "--pid-file", str(pid_file), "--bundle", str(bundle), container),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=_environment(),
        )
        if await _ended(process) == 0:
            return int(pid_file.read_text())
        lines = _log_lines(log)
        raise CoveError(
            "start_failed",
            f"{self.name} could not start {container}: {lines[-1] if lines else 'no reason given'}",
            hint="cove doctor shows what this machine's container runtime can do",
            lines=lines,
        )

    async def delete(self, container: str, *, root: Path) -> None:
        """Kill and forget a container; no error if there is none."""
        process = await asyncio.create_subprocess_exec(
            *(self.path, "--root", str(root), "delete", "--force", container),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=_environment(),
        )
        await _ended(process)


def _environment() -> dict[str, str]:
    """What a runtime needs of Cove's environment: where to look for programs, no more."""
    return {"PATH": os.environ.get("PATH", os.defpath)}


async def _ended(process: asyncio.subprocess.Process) -> int:
    try:
        return await asyncio.wait_for(process.wait(), PATIENCE)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return await process.wait()


def _log_lines(log: Path) -> list[str]:
    """The messages in a runtime's JSON log, oldest first."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        for line in log.read_text(errors="replace").splitlines():
            try:
                lines.append(str(json.loads(line)["msg"]))
            except (ValueError, KeyError, TypeError):
                lines.append(line)
    return lines[-LAST_LINES:]
