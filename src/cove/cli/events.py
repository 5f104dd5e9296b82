"""`cove events`: starts, stops and crashes, with their reasons."""

from __future__ import annotations

import click

from cove.cli.logs import LAST
from cove.cli.options import Options, command
from cove.cli.output import tell
from cove.cli.record import Parts, Record, moment, print_records, short, shown

BAD = ("crashed", "oom", "failed", "failing", "lost")


@command(name="events")
@click.argument("name", required=False)
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--since", metavar="WHEN", default="", help="A duration before now, or a time.")
@click.option(
    "--tail", metavar="N", type=click.IntRange(min=0), help=f"The last N events [{LAST}]."
)
def events(options: Options, name: str | None, follow: bool, since: str, tail: int | None) -> None:
    """Show what happened, to all functions or to one, also to one that was removed."""
    if tail is None and not since:
        tail = LAST
    records = options.client().events(name, since=since, tail=tail, follow=follow)
    count = print_records(records, _parts, options)
    if not options.json and not count and not follow:
        tell("there are no such events")


def _parts(record: Record) -> Parts:
    kind = str(record.get("kind", ""))
    yield f"{moment(record.get('time'))} ", "dim"
    yield f"{shown(kind):21} ", "red" if kind.endswith(BAD) else ""
    if "function" in record:
        yield f"{shown(str(record['function']))} ", "bold"
    if "version" in record:
        yield f"v{shown(str(record['version']))} ", "cyan"
    if "instance" in record:
        yield f"{shown(short(record['instance']))} ", "dim"
    yield shown(str(record.get("reason", ""))), ""
