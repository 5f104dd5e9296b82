"""`cove session`: callers' threads of work."""

from __future__ import annotations

import click

from cove.cli.options import Options, command, remember, shared
from cove.cli.output import ago, print_json, print_table


@click.group(name="session")
@shared
@click.pass_context
def session(ctx: click.Context, url: str | None, data: str | None, as_json: bool) -> None:
    """Look at sessions."""
    remember(ctx, url, data, as_json)


@session.add_command
@command(name="list")
@click.argument("name", required=False)
def listing(options: Options, name: str | None) -> None:
    """List running sessions, of all functions or of one."""
    sessions = options.client().sessions(name)
    if options.json:
        print_json(sessions)
        return
    print_table(
        ["SESSION", "FUNCTION", "VERSION", "PRINCIPAL", "AFFINITY", "INSTANCE", "BEGAN", "LAST"],
        [
            (
                found["id"],
                found["function"],
                found["version"],
                found["principal"],
                found["affinity"],
                found["instance"],
                ago(found["created_at"]),
                ago(found["last_at"]),
            )
            for found in sessions
        ],
        empty="no session is running",
    )
