"""`cove list`: what is deployed."""

from __future__ import annotations

from cove.cli.options import Options, command
from cove.cli.output import print_json, print_table


@command(name="list")
def listing(options: Options) -> None:
    """List functions."""
    functions = options.client().functions()
    if options.json:
        print_json(functions)
        return
    print_table(
        ["NAME", "KIND", "VERSION", "STATE", "INSTANCES", "SESSIONS", "ISOLATION", "URL"],
        [
            (
                function["name"],
                function["kind"],
                function["version"],
                function.get("state", "-"),
                function["instances"],
                function["sessions"],
                function["isolation"],
                next(iter(function["urls"].values()), "-"),
            )
            for function in functions
        ],
        empty="nothing is deployed; `cove deploy PATH` changes that",
    )
