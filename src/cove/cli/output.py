"""How the CLI prints: tables for people, aligned text for pipes, JSON for programs."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from datetime import datetime

import click

from cove.errors import CoveError

# What servers, tools and callers send may hold escape sequences; a terminal must not obey them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: object) -> str:
    """The text without what a terminal would obey. Tabs and line ends stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text))


def say(text: str = "") -> None:
    """A line to stdout."""
    click.echo(plain(text))


def tell(text: str) -> None:
    """A line to stderr: what goes on, beside what was asked for."""
    click.echo(plain(text), err=True)


def print_json(value: object, *, line: bool = False) -> None:
    """JSON to stdout, indented for people; `line` keeps it on one line for NDJSON."""
    indent = 2 if sys.stdout.isatty() and not line else None
    click.echo(json.dumps(value, ensure_ascii=False, indent=indent))


def print_error(error: CoveError, as_json: bool, *, line: bool = False) -> None:
    """`{"error": …}` on stdout, where a program reads; else the error on stderr."""
    if as_json:
        print_json({"error": error.to_json()}, line=line)
        return
    tell(f"error: {error.message}")
    for text in error.lines:
        tell(f"  | {text}")
    if error.hint:
        tell(f"hint: {error.hint}")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """Rows below capital headings. `empty` goes to stderr where there is none."""
    cells = [[plain(cell).replace("\n", " ") for cell in row] for row in rows]
    if not cells:
        tell(empty)
    elif sys.stdout.isatty():
        _rich_table(columns, cells)
    else:
        lines = [list(columns), *cells]
        widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
        for line in lines:
            click.echo("  ".join(map(str.ljust, line, widths)).rstrip())


def print_pairs(pairs: Sequence[tuple[str, object]]) -> None:
    """`name  value` lines, aligned."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        say(f"{name.ljust(width)}  {value}")


def ago(moment: object, now: float | None = None) -> str:
    """How long ago an RFC 3339 time was, in the largest unit that fits."""
    try:
        then = datetime.fromisoformat(str(moment)).timestamp()
    except ValueError:
        return "-"
    past = max(0, int((time.time() if now is None else now) - then))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if past >= size:
            return f"{past // size}{unit} ago"
    return f"{past}s ago"


def _rich_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    Console().print(table)
