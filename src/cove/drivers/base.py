"""The contract of a driver: how an instance is made, reached, watched and ended.

tests/contracts/test_drivers.py runs one suite over every implementation.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from cove.model import Interpreter, Isolation, Limits

APP = "{app}"
DEPS = "{deps}"
SERVE = "{serve}"


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start, said without naming how.

    `argv` and `env` values may hold `{app}`, `{deps}` and `{serve}`. The program is told its
    port in `$PORT`; where instances share a network (`process`) the driver picks another.
    `code` and `deps` are host folders given read-only. `output` is a descriptor that the
    program's stdout and stderr are joined to; the caller keeps and closes it.
    """

    id: str
    function: str
    version: int
    argv: tuple[str, ...]
    env: Mapping[str, str]
    port: int
    code: str
    deps: str | None
    interpreter: Interpreter | None
    limits: Limits
    output: int


@dataclass(frozen=True, slots=True)
class Exit:
    """How an instance ended. `code` is None where a signal ended it or nobody can tell."""

    code: int | None = None
    signal: int | None = None
    oom: bool = False

    def __str__(self) -> str:
        if self.oom:
            return "killed: out of memory"
        if self.signal is not None:
            return f"killed by signal {self.signal}"
        return f"exit code {self.code}" if self.code is not None else "exited"


@dataclass(frozen=True, slots=True)
class Usage:
    """What an instance has used: CPU seconds since start, memory bytes now."""

    cpu: float
    memory: int


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `cove doctor`: what was looked at, whether it is well, and what a lack costs."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


class Running(Protocol):
    """An instance that was started, until its exit."""

    pid: int
    """The host's id of its first process."""

    exited: asyncio.Future[Exit]
    """Done once, when the first process has ended and everything of it is gone."""

    async def connect(self) -> socket.socket:
        """A connected, non-blocking TCP socket to the instance's port.

        If the port it was told is closed and the program listens on exactly one other,
        that one is meant. `ConnectionRefusedError` while nothing listens or after exit.
        """

    async def stop(self, grace: float) -> Exit:
        """SIGTERM, then SIGKILL after `grace` seconds to whatever is left. Idempotent."""

    def throttle(self) -> None:
        """Apply the CPU limit: starting is not throttled, serving is. Idempotent."""

    def usage(self) -> Usage:
        """What the instance has used; zeros after exit."""

    def ports(self) -> list[int]:
        """TCP ports on which the instance's own processes listen, ascending."""


class Driver(Protocol):
    """Makes instances of one isolation tier."""

    name: str
    isolation: Isolation

    async def start(self, launch: Launch) -> Running:
        """Start one instance; returns once its first process runs, not once it serves.

        `CoveError("start_failed")` with the reason where it cannot. Nothing is left behind
        by a start that fails or is cancelled.
        """

    async def close(self) -> None:
        """Stop what still runs and remove what the driver made on this machine."""
