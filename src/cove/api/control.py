"""What the control API drives: the engine, as one protocol. The composition root fits them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Protocol

from cove.logs.records import Record, Wanted


class Control(Protocol):
    """Functions and what they run, as JSON-ready dictionaries. Times are RFC 3339 in UTC.

    Methods that name a function raise `CoveError("not_found")` where there is none.
    """

    async def deploy(
        self, archive: Path, *, name: str | None, fallback: str, progress: Callable[[str], None]
    ) -> str:
        """Make a version from a tar.gz and point `live` at it once it serves.

        `name` is what the caller insists on; else the archive's cove.toml has it; else
        `fallback` is it. `progress` takes one line at a time. The archive is the caller's, and
        stays until this returns. Returns the function's name; `CoveError` where it fails, and
        then what served before still does.
        """

    def functions(self) -> list[dict[str, Any]]:
        """Summaries by name: name, kind, version, state, urls, isolation, driver, and the counts
        of instances and sessions."""

    def describe(self, name: str) -> dict[str, Any]:
        """One function: name, kind, version, state, urls, auth (`key` or `none`), isolation,
        driver, notes, facts, limits, instances[{id, state, pid, started_at, started_by, sessions,
        requests, version}], sessions (a count), versions[{number, state, created_at, error}]."""

    def sessions(self, name: str | None) -> list[dict[str, Any]]:
        """Running sessions, newest first: id, function, version, principal, affinity, key,
        instance, created_at, last_at."""

    def logs(
        self, name: str, wanted: Wanted, *, tail: int | None, follow: bool
    ) -> AsyncGenerator[list[Record], None]:
        """A function's records that are wanted, oldest first; only the last `tail`. `follow`:
        then those that come, and an empty list now and then while none do."""

    def events(
        self, wanted: Wanted, *, tail: int | None, follow: bool
    ) -> AsyncGenerator[list[Record], None]:
        """What happened, likewise. Also to functions that are no more."""

    async def remove(self, name: str) -> None:
        """End a function's instances and forget it."""

    def versions(self, name: str) -> list[dict[str, Any]]:
        """A function's versions, newest first: number, state, live, created_at, error."""

    async def rollback(self, name: str, number: int | None) -> dict[str, Any]:
        """Let that version go live again, or the newest below the live one that works: function,
        version, was (the number that was live, or null), changed."""

    def secrets(self) -> list[dict[str, Any]]:
        """Secrets by name, without values: name, created_at, updated_at, and the functions whose
        live version names it."""

    async def set_secret(self, name: str, value: str) -> dict[str, Any]:
        """Keep a value; the secret as `secrets` has it."""

    async def remove_secret(self, name: str) -> None:
        """Forget a secret. `conflict` while a live version names it."""

    def doctor(self) -> list[dict[str, Any]]:
        """What this machine can do: name, ok, detail, hint."""

    def authenticate(self, token: str) -> str | None:
        """The subject of a valid project key, else None."""
