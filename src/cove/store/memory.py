"""Records in dictionaries: the trivial, real store. Everything is gone with the object.

No method awaits anything, so each is one step to every other task: that is its transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cove.model import Facts, Function, Key, SealedSecret, SessionRecord, Version
from cove.states import SessionState, VersionState, move
from cove.store import faults


class MemoryStore:
    """`cove.store.base.Store` for tests and for throwing away."""

    def __init__(self) -> None:
        self._functions: dict[str, Function] = {}
        self._versions: dict[tuple[str, int], Version] = {}
        self._keys: dict[str, Key] = {}
        self._sessions: dict[str, SessionRecord] = {}
        self._sealed: dict[str, SealedSecret] = {}
        self._secrets: dict[str, bytes] = {}

    async def functions(self) -> Sequence[Function]:
        return [self._functions[name] for name in sorted(self._functions)]

    async def versions(self, function: str | None = None) -> Sequence[Version]:
        return [
            self._versions[at]
            for at in sorted(self._versions)
            if function is None or at[0] == function
        ]

    async def add_version(self, version: Version) -> Version:
        name = version.function
        if version.number == 0:
            numbers = (number for function, number in self._versions if function == name)
            version = replace(version, number=max(numbers, default=0) + 1)
        if (name, version.number) in self._versions:
            raise faults.taken(name, version.number)
        self._functions.setdefault(name, Function(name, version.created_at))
        self._versions[name, version.number] = version
        return version

    async def set_version(
        self, version: Version, state: VersionState, *, facts: Facts | None = None, error: str = ""
    ) -> Version:
        moved = replace(
            version,
            state=move(f"version {version.number}", version.state, state),
            facts=facts or version.facts,
            error=error,
        )
        kept = self._versions.get((version.function, version.number))
        if kept is None:
            raise faults.unknown_version(version.function, version.number)
        if kept.state is not version.state:
            raise faults.moved(version.function, version.number, version.state)
        self._versions[version.function, version.number] = moved
        return moved

    async def go_live(self, version: Version, facts: Facts) -> Version:
        ready = await self.set_version(version, VersionState.READY, facts=facts)
        await self.set_live(version.function, version.number)
        return ready

    async def set_live(self, function: str, number: int) -> None:
        if (function, number) not in self._versions:
            raise faults.unknown_version(function, number)
        self._functions[function] = replace(self._functions[function], live=number)

    async def remove_function(self, name: str) -> None:
        if self._functions.pop(name, None) is None:
            raise faults.unknown_function(name)
        self._versions = {at: kept for at, kept in self._versions.items() if at[0] != name}
        self._sessions = {at: kept for at, kept in self._sessions.items() if kept.function != name}

    async def keys(self) -> Sequence[Key]:
        return sorted(self._keys.values(), key=lambda key: (key.created_at, key.id))

    async def add_key(self, key: Key) -> None:
        self._keys[key.id] = key

    async def replace_keys(self, key: Key) -> None:
        others = {at: kept for at, kept in self._keys.items() if kept.subject != key.subject}
        self._keys = {**others, key.id: key}

    async def sessions(self, function: str | None = None) -> Sequence[SessionRecord]:
        return sorted(
            (kept for kept in self._sessions.values() if function in (None, kept.function)),
            key=lambda kept: (-kept.created_at, kept.id),
        )

    async def put_sessions(self, records: Sequence[SessionRecord]) -> None:
        for record in records:
            self._sessions.pop(record.id, None)
            if record.state is not SessionState.ENDED and record.function in self._functions:
                self._sessions[record.id] = record

    async def sealed_secrets(self) -> Sequence[SealedSecret]:
        return [self._sealed[name] for name in sorted(self._sealed)]

    async def put_sealed_secret(self, secret: SealedSecret) -> None:
        self._sealed[secret.name] = secret

    async def remove_sealed_secret(self, name: str) -> None:
        if self._sealed.pop(name, None) is None:
            raise faults.unknown_secret(name)

    async def secret(self, name: str, fresh: bytes) -> bytes:
        return self._secrets.setdefault(name, fresh)

    async def close(self) -> None:
        """Nothing is held."""
