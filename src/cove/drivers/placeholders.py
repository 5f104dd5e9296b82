"""`{app}`, `{deps}`, `{serve}` and `{port}` in a launch, replaced; `{{app}` is a literal
`{app}`, and other braces are let be."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cove.drivers.base import Launch
from cove.errors import CoveError
from cove.model import PLACE


def filled(
    launch: Launch, *, app: str, deps: str | None, serve: str | None, port: int
) -> tuple[list[str], dict[str, str]]:
    """The launch's argv and env for a driver's own places.

    `CoveError("start_failed")` where one is named that this launch does not have.
    """
    places = {"app": app, "deps": deps, "serve": serve, "port": str(port)}
    argv = [_fill(arg, places) for arg in launch.argv]
    if not argv:
        raise CoveError("start_failed", f"{launch.id} has no command to run")
    return argv, {name: _fill(value, places) for name, value in launch.env.items()}


def _fill(text: str, places: Mapping[str, str | None]) -> str:
    def put(match: re.Match[str]) -> str:
        if len(match[1]) > 1:
            return match[0][1:]
        value = places[match[2]]
        if value is None:
            raise CoveError(
                "start_failed",
                f"{text!r} names {match[0]}, which this function does not have",
                hint="declare dependencies, or write a command that does not need them",
            )
        return value

    return PLACE.sub(put, text)
