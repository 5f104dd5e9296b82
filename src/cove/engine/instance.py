"""An instance: one isolated process tree serving a version."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from cove.clock import now
from cove.drivers.base import Exit, Running
from cove.engine.output import Output
from cove.errors import CoveError
from cove.model import Version
from cove.states import InstanceState, move

_AFTERWARDS = 0.05  # seconds in which a request's last lines are read


class Instance:
    """State and load of one instance. `slots` counts sessions, those being opened included.

    `failure` says why it did not start, `exit` how it ended. `session` is the id of the one
    session that it belongs to, if it belongs to one; `serving` the request, and its session, that
    it alone was given last.
    """

    __slots__ = (
        "exit",
        "failure",
        "id",
        "idle_since",
        "inflight",
        "on_stopping",
        "output",
        "ready_at",
        "running",
        "served",
        "serving",
        "session",
        "slots",
        "started_at",
        "started_by",
        "state",
        "throttled",
    )

    def __init__(self, ident: str, *, started_at: float, started_by: str) -> None:
        self.id = ident
        self.state = InstanceState.STARTING
        self.started_at = started_at
        self.started_by = started_by
        self.inflight = 0
        self.slots = 0
        self.idle_since = 0.0
        self.ready_at = 0.0
        self.served = False
        self.throttled = False
        self.running: Running | None = None
        self.exit: Exit | None = None
        self.failure: CoveError | None = None
        self.output: Output | None = None
        self.serving: tuple[bytes, str] | None = None
        self.session = ""
        self.on_stopping: set[Callable[[], None]] = set()

    def move(self, new: InstanceState) -> None:
        """Change state, telling whoever holds streams through it before it stops serving."""
        self.state = move(f"instance {self.id}", self.state, new)
        if new in (InstanceState.DRAINING, InstanceState.STOPPED):
            listeners, self.on_stopping = self.on_stopping, set()
            for listener in listeners:
                listener()

    def serves(self) -> tuple[str, str]:
        """The session and the request that what it prints now belongs to, where that is one."""
        request, session = self.serving or (b"", "")
        if not self.inflight and now() - self.idle_since > _AFTERWARDS:
            request, session = b"", ""
        return session or self.session, request.decode()

    def tail(self) -> list[str]:
        """The last lines that it has printed."""
        return self.output.tail() if self.output is not None else []

    @property
    def pid(self) -> int | None:
        return self.running.pid if self.running is not None else None

    def __repr__(self) -> str:
        return (
            f"<Instance {self.id} {self.state} [{self.inflight} requests, {self.slots} sessions]>"
        )


def new_id(version: Version) -> str:
    """An instance's id: readable, unique, fit for a cgroup's and a container's name."""
    return f"{named(version.function)}-{version.number}-{secrets.token_hex(4)}"


def named(function: str) -> str:
    """As much of a function's name as its instances' ids begin with."""
    return function[:40]
