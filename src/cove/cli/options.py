"""What every command takes, before or after its name, and how every command fails."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from cove.cli.output import print_error
from cove.errors import CoveError
from cove.sdk.client import CoveClient
from cove.sdk.locate import Location, locate

GIVEN = "cove.options"
FAILED, INTERRUPTED = 1, 130


@dataclass(frozen=True, slots=True)
class Options:
    """The shared options as given; None where they were not."""

    url: str | None
    data: str | None
    json: bool

    def location(self) -> Location:
        return locate(self.url, self.data)

    def client(self) -> CoveClient:
        return CoveClient.at(self.location())


def shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that the group and all commands have."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON, also for errors."),
        click.option("--data", metavar="DIR", help="The server's data folder [COVE_DATA]."),
        click.option("--url", metavar="URL", help="The server [COVE_URL]."),
    ):
        function = option(function)
    return function


def remember(ctx: click.Context, url: str | None, data: str | None, as_json: bool) -> Options:
    """What was given so far, on the group or the command; the later one counts."""
    given = ctx.meta.setdefault(GIVEN, {"url": None, "data": None, "json": False})
    given["url"] = url or given["url"]
    given["data"] = data or given["data"]
    given["json"] = as_json or given["json"]
    return Options(**given)


def command(**settings: Any) -> Callable[[Callable[..., int | None]], click.Command]:
    """A click command whose function takes `Options` first and returns an exit code or None.

    A `CoveError` becomes `error:` and `hint:` on stderr, or `{"error": …}` on stdout with
    `--json`, and exit code 1.
    """

    def decorate(function: Callable[..., int | None]) -> click.Command:
        def run(
            ctx: click.Context, url: str | None, data: str | None, as_json: bool, **params: Any
        ) -> None:
            options = remember(ctx, url, data, as_json)
            try:
                code = function(options, **params)
            except CoveError as error:
                print_error(explained(error, options, params.get("name")), options.json)
                code = FAILED
            except KeyboardInterrupt:
                code = INTERRUPTED
            sys.exit(code or 0)

        functools.update_wrapper(run, function)
        made: click.Command = click.command(**settings)(shared(click.pass_context(run)))
        return made

    return decorate


def explained(error: CoveError, options: Options, name: str | None) -> CoveError:
    """The error with the hint that only this side can give."""
    if error.code == "unauthorized" and (missing := options.location().missing):
        hint = f"{missing}; set COVE_KEY, or name the server's data folder with --data"
        return CoveError(error.code, error.message, hint=hint)
    if error.code == "not_found" and name:
        try:
            names = [str(function["name"]) for function in options.client().functions()]
        except CoveError:
            return error
        if near := difflib.get_close_matches(name, names, n=3, cutoff=0.5):
            hint = f"did you mean {' or '.join(near)}?"
            return CoveError(error.code, error.message, hint=hint, lines=error.lines)
    return error
