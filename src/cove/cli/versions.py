"""`cove versions`: what was deployed under a name."""

from __future__ import annotations

import click

from cove.cli.options import Options, command
from cove.cli.output import ago, print_json, print_table


@command(name="versions")
@click.argument("name")
def versions(options: Options, name: str) -> None:
    """List a function's versions, newest first, and which is live."""
    found = options.client().versions(name)
    if options.json:
        print_json(found)
        return
    print_table(
        ["VERSION", "STATE", "LIVE", "DEPLOYED", "ERROR"],
        [
            (
                each["number"],
                each["state"],
                "live" if each["live"] else "-",
                ago(each["created_at"]),
                each["error"] or "-",
            )
            for each in found
        ],
        empty=f"{name} has no versions",
    )
