"""The contract of a record store. tests/contracts/test_stores.py runs over every implementation.

A store is durable when a call returns. State changes are compare-and-set. What the disk refuses
is a `CoveError`, `overloaded` where it is full and else `internal`, and has changed nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cove.model import Facts, Function, Key, SealedSecret, SessionRecord, Version
from cove.states import VersionState


class Store(Protocol):
    """Functions, versions, aliases, keys, sessions, functions' secrets and Cove's own."""

    async def functions(self) -> Sequence[Function]:
        """All functions, by name."""

    async def versions(self, function: str | None = None) -> Sequence[Version]:
        """All versions, or one function's, ascending."""

    async def add_version(self, version: Version) -> Version:
        """Keep a new version and its function if new. `number` 0 asks for the next one."""

    async def set_version(
        self, version: Version, state: VersionState, *, facts: Facts | None = None, error: str = ""
    ) -> Version:
        """Move a version from the state it carries. `CoveError("conflict")` if it has moved."""

    async def go_live(self, version: Version, facts: Facts) -> Version:
        """Move a version to `ready` and point `live` at it, in one step. Errors as `set_version`.

        One step, as a version that is ready and was never live would be nobody's doing.
        """

    async def set_live(self, function: str, number: int) -> None:
        """Point the `live` alias. `CoveError("not_found")` for an unknown version."""

    async def remove_function(self, name: str) -> None:
        """Remove a function with its versions, aliases and sessions. `not_found` if unknown."""

    async def keys(self) -> Sequence[Key]:
        """All keys."""

    async def add_key(self, key: Key) -> None:
        """Keep a key."""

    async def replace_keys(self, key: Key) -> None:
        """Keep a key and remove every other of its subject, in one transaction."""

    async def sessions(self, function: str | None = None) -> Sequence[SessionRecord]:
        """Sessions that run, newest first."""

    async def put_sessions(self, records: Sequence[SessionRecord]) -> None:
        """Keep or replace sessions by id, in one transaction; ended ones are removed."""

    async def sealed_secrets(self) -> Sequence[SealedSecret]:
        """All secrets that functions may name, by name."""

    async def put_sealed_secret(self, secret: SealedSecret) -> None:
        """Keep a secret, or replace the one of its name."""

    async def remove_sealed_secret(self, name: str) -> None:
        """Remove a secret. `not_found` if unknown."""

    async def secret(self, name: str, fresh: bytes) -> bytes:
        """The install's secret of that name; `fresh` is kept and returned if there is none."""

    async def close(self) -> None:
        """Release the store."""
