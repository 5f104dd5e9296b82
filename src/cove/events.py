"""What happens to functions and instances, for people and programs that were not looking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

EventKind = Literal[
    "instance.started",
    "instance.stopped",
    "instance.crashed",
    "instance.oom",
    "instance.adopted",
    "instance.start_failed",
    "version.live",
    "version.failed",
    "version.failing",
    "function.removed",
    "cove.started",
    "cove.stopping",
    "events.lost",
]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, at `at` seconds since the epoch, and why."""

    at: float
    kind: EventKind
    function: str = ""
    version: int = 0
    instance: str = ""
    reason: str = ""


OnEvent = Callable[[Event], None]
