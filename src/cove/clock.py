"""Time as a value: decisions take it as an argument, only edges read it."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> float:
    """Seconds on a clock that never goes back. For durations and deadlines."""
    return time.monotonic()


def wall() -> float:
    """Seconds since the epoch. For records and people."""
    return time.time()


def iso(seconds: float) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return (
        datetime.fromtimestamp(seconds, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )
