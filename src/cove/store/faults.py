"""The refusals that every store shares, so that callers read the same words from each."""

from __future__ import annotations

from cove.errors import CoveError
from cove.states import VersionState


def unknown_function(name: str) -> CoveError:
    return CoveError(
        "not_found",
        f"there is no function {name!r}",
        hint="`cove list` shows what is deployed",
    )


def unknown_version(function: str, number: int) -> CoveError:
    return CoveError(
        "not_found",
        f"there is no version {number} of {function!r}",
        hint=f"`cove versions {function}` shows them",
    )


def unknown_secret(name: str) -> CoveError:
    return CoveError(
        "not_found",
        f"there is no secret {name}",
        hint="`cove secret list` shows those that are set",
    )


def taken(function: str, number: int) -> CoveError:
    return CoveError(
        "conflict",
        f"version {number} of {function!r} exists, and versions never change",
        hint="ask for number 0, the next one",
    )


def moved(function: str, number: int, state: VersionState) -> CoveError:
    return CoveError(
        "conflict",
        f"version {number} of {function!r} is no longer {state}",
        hint="read it again and decide anew",
    )


def broken(what: str, reason: str) -> CoveError:
    if "full" in reason:
        return CoveError(
            "overloaded",
            "the disk that Cove keeps its data on is full",
            hint="free space on the server's machine, then try again; what is deployed goes on "
            "serving meanwhile",
        )
    return CoveError(
        "internal",
        f"the records cannot be {what}: {reason}",
        hint="is the data folder there, writable, and on a local disk that works?",
    )
