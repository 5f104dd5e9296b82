"""The state machines of the nouns that have one. A wrong move is an error with a name."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar


class InstanceState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


class VersionState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"


class SessionState(StrEnum):
    RUNNING = "running"
    ENDED = "ended"


_MOVES: Mapping[StrEnum, frozenset[StrEnum]] = {
    InstanceState.STARTING: frozenset({InstanceState.READY, InstanceState.STOPPED}),
    InstanceState.READY: frozenset({InstanceState.DRAINING, InstanceState.STOPPED}),
    InstanceState.DRAINING: frozenset({InstanceState.STOPPED}),
    InstanceState.STOPPED: frozenset(),
    VersionState.STARTING: frozenset({VersionState.READY, VersionState.FAILED}),
    VersionState.READY: frozenset(),
    VersionState.FAILED: frozenset(),
    SessionState.RUNNING: frozenset({SessionState.ENDED}),
    SessionState.ENDED: frozenset(),
}


class IllegalMoveError(Exception):
    """A state machine was asked for a move that its table does not have."""

    def __init__(self, noun: str, old: StrEnum, new: StrEnum) -> None:
        super().__init__(f"{noun} cannot go from {old} to {new}")
        self.old = old
        self.new = new


S = TypeVar("S", bound=StrEnum)


def move(noun: str, old: S, new: S) -> S:
    """`new`, if the table allows it from `old`; `IllegalMoveError` otherwise."""
    if new not in _MOVES[old]:
        raise IllegalMoveError(noun, old, new)
    return new
