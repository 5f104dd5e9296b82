"""Setbacks: what follows when a version's instances do not start, or do not stay up."""

from __future__ import annotations

from cove.engine.instance import Instance
from cove.engine.pool import Pool
from cove.errors import CoveError

RETRY_FIRST, RETRY_MOST = 0.5, 10.0
_FAILING_AFTER = 5  # instances in a row that came to nothing before they had a caller
_FAILING_PAUSE = 60.0


def set_back(pool: Pool, instance: Instance, reason: str, *, first: float, now: float) -> bool:
    """The next start that nobody waits for comes later each time, and at last seldom.

    `first` is the pause, in seconds, after a first setback. Whether the pool is failing with this.
    """
    pause = min(RETRY_MOST, RETRY_FIRST * 2 ** (pool.setbacks - 1)) if pool.setbacks else first
    pool.setbacks = min(pool.setbacks + 1, 10)
    # One that had callers is not what keeps the next from serving: they may have ended it.
    claimed = instance.served or instance.inflight or instance.slots
    pool.stillborn = 0 if claimed else pool.stillborn + 1
    if pool.stillborn >= _FAILING_AFTER:
        pause = _FAILING_PAUSE
        pool.failing = _failing(pool, instance, reason)
    pool.retry_at = now + pause
    return pool.stillborn == _FAILING_AFTER


def start_error(pool: Pool, instance: Instance, code: str) -> CoveError:
    """Why an instance did not start, with its last lines."""
    version, cause = pool.version, instance.failure
    if cause is not None:
        return CoveError(code, cause.message, hint=cause.hint, lines=cause.lines)
    how = f": {instance.exit}" if instance.exit is not None else ""
    return CoveError(
        code,
        f"{version.function}:{version.number} did not start{how}",
        hint="the program's own last lines say why; mend it and deploy again",
        lines=instance.tail(),
    )


def _failing(pool: Pool, instance: Instance, reason: str) -> CoveError:
    version = pool.version
    return CoveError(
        "failing",
        f"{version.function}:{version.number} is failing: {pool.stillborn} starts in a row have "
        f"come to nothing, last: {reason}",
        hint=f"`cove logs {version.function}` says more; mend it and deploy again, or "
        f"`cove rollback {version.function}`; it is tried again once a minute",
        lines=instance.tail(),
    )
