"""`cove logs`: what a function prints and is asked."""

from __future__ import annotations

import click

from cove.cli.options import Options, command
from cove.cli.output import tell
from cove.cli.record import Parts, Record, moment, print_records, short, shown

LAST = 200
STYLES = {"stderr": "red", "access": "dim", "cove": "yellow"}


@command(name="logs")
@click.argument("name")
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--instance", metavar="ID", help="Only this instance's, or its last part.")
@click.option("--session", metavar="ID", help="Only this session's.")
@click.option("--request", metavar="ID", help="Only this request's, also in a text.")
@click.option("--since", metavar="WHEN", default="", help="A duration before now, or a time.")
@click.option("--tail", metavar="N", type=click.IntRange(min=0), help=f"The last N lines [{LAST}].")
@click.option("--stream", type=click.Choice(["stdout", "stderr", "access", "cove"]))
def logs(
    options: Options, name: str, follow: bool, since: str, tail: int | None, **only: str | None
) -> None:
    """Show what a function printed, and which requests it was sent."""
    if tail is None and not since:
        tail = LAST
    given = {option: value for option, value in only.items() if value}
    records = options.client().logs(name, since=since, tail=tail, follow=follow, **given)
    count = print_records(records, _parts, options)
    if not options.json and not count and not follow:
        tell("there are no such lines")


def _parts(record: Record) -> Parts:
    stream = str(record.get("stream", ""))
    yield f"{moment(record.get('time'))} ", "dim"
    if "version" in record:
        yield f"v{shown(str(record['version']))} ", "cyan"
    if "instance" in record:
        yield f"{shown(short(record['instance']))} ", "dim"
    yield f"{shown(stream):6} ", "dim"
    yield shown(str(record.get("text", ""))), STYLES.get(stream, "")
    for name in ("session", "request"):
        if name in record:
            yield f"  {name}={shown(str(record[name]))}", "dim"
