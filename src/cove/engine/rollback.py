"""Rollback: which version a function goes back to, and whether that one can run again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cove.errors import CoveError
from cove.model import Version
from cove.states import VersionState


def choose(
    name: str, versions: Mapping[int, Version], live: int | None, number: int | None
) -> Version:
    """The version of that number, or without one the newest below the live one that is ready.

    `conflict` for one that there is not or that never worked, and where there is none to go
    back to.
    """
    if number is None:
        below = [n for n in versions if live is None or n < live]
        ready = [n for n in below if versions[n].state is VersionState.READY]
        if not ready:
            where = f"below {live}, the live one," if live is not None else "yet"
            raise CoveError(
                "conflict",
                f"{name} has no version {where} that works",
                hint=f"`cove versions {name}` shows them all; `cove deploy` makes another",
            )
        return versions[max(ready)]
    if number not in versions:
        raise CoveError(
            "conflict",
            f"there is no version {number} of {name}",
            hint=f"`cove versions {name}` shows them",
        )
    version = versions[number]
    if version.state is not VersionState.READY:
        why = f": {version.error}" if version.error else ""
        raise CoveError(
            "conflict",
            f"version {number} of {name} is {version.state} and cannot go live{why}",
            hint=f"`cove versions {name}` shows which are ready",
        )
    return version


def check_disk(version: Version) -> None:
    """`conflict` if something is gone that the version was made of. Blocks."""
    plan = version.plan
    python = plan.interpreter.executable if plan.interpreter is not None else None
    for part, path in (("code", plan.code), ("dependencies", plan.deps), ("Python", python)):
        if path is not None and not Path(path).exists():
            raise CoveError(
                "conflict",
                f"version {version.number} of {version.function} cannot run again: its {part} "
                "is no longer on this machine",
                hint="deploy that source again; it becomes a new version",
            )
