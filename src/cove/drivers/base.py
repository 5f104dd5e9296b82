"""The contract of a driver: how an instance is made, reached, watched and ended.

tests/contracts/test_drivers.py runs one suite over every implementation.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cove.model import MIB, Interpreter, Isolation, Limits

APP = "{app}"
DEPS = "{deps}"
SERVE = "{serve}"


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start, said without naming how.

    `argv` and `env` values may hold `{app}`, `{deps}` and `{serve}`. The program is told its
    port in `$PORT`; where instances share a network (`process`) the driver picks another.
    `code` and `deps` are host folders given read-only. `stdout` and `stderr` are descriptors for
    the program to write to; the caller keeps and closes them. `secrets` are files to show in
    /run/secrets, by name, where the tier has a file system of its own; never kept on a disk.
    """

    id: str
    function: str
    version: int
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    port: int
    code: str
    deps: str | None
    interpreter: Interpreter | None
    limits: Limits
    stdout: int
    stderr: int
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Exit:
    """How an instance ended. `code` is None where a signal ended it or nobody can tell.

    `oom`: the kernel killed in it for want of memory, of which it had `memory` bytes.
    """

    code: int | None = None
    signal: int | None = None
    oom: bool = False
    memory: int | None = None

    def __str__(self) -> str:
        if self.oom:
            limit = f", over its {self.memory / MIB:g} MiB" if self.memory else ""
            return f"killed: out of memory{limit}"
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

    id: str
    function: str
    version: int
    """What it was launched as."""

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

    async def adopt(self) -> Sequence[Running]:
        """The instances that an earlier Cove started with this driver's state, and that run whole.

        Called once, before the first start. What that Cove left half made or dead is removed
        first: processes, mounts, groups, folders; but only what is provably its own. An adopted
        instance is in every way as one that was started here, though nobody's child.
        """

    async def close(self, *, keep: bool = False) -> None:
        """Stop what still runs and remove what the driver made on this machine.

        `keep`: let go of what runs instead, whole, for a later driver's `adopt`. What an earlier
        Cove has left, and nobody has adopted yet, stays as it is either way.
        """
