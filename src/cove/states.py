"""The state machines of the nouns that have one. A wrong move is an error with a name."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from enum import StrEnum
from typing import TypeVar, cast


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


_INSTANCE = {
    InstanceState.STARTING: {InstanceState.READY, InstanceState.STOPPED},
    InstanceState.READY: {InstanceState.DRAINING, InstanceState.STOPPED},
    InstanceState.DRAINING: {InstanceState.STOPPED},
    InstanceState.STOPPED: set[InstanceState](),
}
_VERSION = {
    VersionState.STARTING: {VersionState.READY, VersionState.FAILED},
    VersionState.READY: set[VersionState](),
    VersionState.FAILED: set[VersionState](),
}
_SESSION = {
    SessionState.RUNNING: {SessionState.ENDED},
    SessionState.ENDED: set[SessionState](),
}

# A table for each noun: states of two nouns that read alike are equal as strings.
MOVES: Mapping[type[StrEnum], Mapping[StrEnum, AbstractSet[StrEnum]]] = {
    InstanceState: cast(Mapping[StrEnum, AbstractSet[StrEnum]], _INSTANCE),
    VersionState: cast(Mapping[StrEnum, AbstractSet[StrEnum]], _VERSION),
    SessionState: cast(Mapping[StrEnum, AbstractSet[StrEnum]], _SESSION),
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
    if new not in MOVES[type(old)][old]:
        raise IllegalMoveError(noun, old, new)
    return new
