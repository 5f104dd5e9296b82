"""`cove rollback`: let a version that worked serve again."""

from __future__ import annotations

import click

from cove.cli.options import Options, command
from cove.cli.output import print_json, say, tell


@command(name="rollback")
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1), required=False)
def rollback(options: Options, name: str, version: int | None) -> None:
    """Go back to a version; without one, to the newest before the live one that works."""
    done = options.client().rollback(name, version)
    if options.json:
        print_json(done)
        return
    now, was = done["version"], done["was"]
    if not done["changed"]:
        say(f"{name}:{now} is live already")
        return
    say(f"{name}:{now} is live" + (f", {name}:{was} no longer" if was is not None else ""))
    tell("sessions stay on the instances that they have")
