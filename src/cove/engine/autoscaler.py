"""How many instances a version should have: one pure decision of demand, limits and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cove.model import Scale


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of a version now.

    `requests` in flight and waiting; `waiting` those that no instance has taken; `sessions`
    open, being opened and waiting to be; `ready` and `starting` count instances; `idle` are
    the ids and idle times (seconds) of those without requests and sessions, longest first.
    """

    requests: int
    waiting: int
    sessions: int
    ready: int
    starting: int
    idle: Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Decision:
    """Start so many; stop these."""

    start: int = 0
    stop: tuple[str, ...] = ()


def decide(demand: Demand, scale: Scale, per_instance: int, *, live: bool = True) -> Decision:
    """Starts and stops that bring a version to its demand.

    Wanted is the larger of what the requests need at `scale.target` of an instance's
    concurrency and what the sessions need at `per_instance`, within min and max. A version
    that is not live any more keeps no minimum. Only idle instances stop, after `scale.idle`.
    """
    by_requests = math.ceil(demand.requests / max(1.0, scale.concurrency * scale.target))
    by_sessions = math.ceil(demand.sessions / per_instance)
    wanted = max(by_requests, by_sessions, scale.min if live else 0)
    have = demand.ready + demand.starting
    if demand.waiting and not demand.starting:
        wanted = max(wanted, have + 1)  # the load is spread so that no instance takes it
    start = max(0, min(wanted, scale.max) - have)
    spare = have + start - wanted
    patience = scale.idle if live else 0.0
    stop = [ident for ident, idle in demand.idle if idle >= patience][: max(0, spare)]
    return Decision(start, tuple(stop))
