"""`cove rm`: forget a function."""

from __future__ import annotations

import sys

import click

from cove.cli.options import FAILED, Options, command
from cove.cli.output import print_json, say, tell


@command(name="rm")
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def rm(options: Options, name: str, yes: bool) -> int | None:
    """Remove a function, its versions and its sessions."""
    client = options.client()
    if not yes and not options.json and sys.stdin.isatty():
        running = client.describe(name)["sessions"]
        if not click.confirm(f"Remove {name} and end its {running} sessions?", err=True):
            tell("nothing was removed")
            return FAILED
    client.remove(name)
    if options.json:
        print_json({"removed": name})
    else:
        say(f"removed {name}")
    return None
