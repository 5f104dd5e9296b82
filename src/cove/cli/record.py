"""How records of logs and events look: a line each, to people and to programs."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import click

from cove.cli.options import Options

Record = dict[str, Any]
Parts = Iterable[tuple[str, str]]
"""Texts of a line and how a terminal that can shows them, as rich calls it."""

# Escape sequences, and what turns the direction of writing: a terminal must not obey them, and
# who reads a log wants to see that they were there. Tabs stay.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def shown(text: str) -> str:
    """The text on one line, with what a terminal would obey written out."""
    return _CONTROL.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def moment(at: object, now: datetime | None = None) -> str:
    """An RFC 3339 time as the clock here shows it, with the date where that is not today's."""
    try:
        local = datetime.fromisoformat(str(at)).astimezone()
    except (ValueError, OverflowError):
        return shown(str(at))
    today = (now or datetime.now()).date() == local.date()
    return local.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S") + f".{local:%f}"[:4]


def short(instance: object) -> str:
    """The part of an instance's id that tells it from others of its version."""
    return str(instance).rpartition("-")[2]


def print_records(
    records: Iterable[Record], parts: Callable[[Record], Parts], options: Options
) -> int:
    """Each as it comes, until Ctrl-C: JSON on a line, or what `parts` makes of it. How many."""
    show = _printer(parts, as_json=options.json)
    count = 0
    with contextlib.suppress(KeyboardInterrupt):  # how one who follows says: enough
        for record in records:
            count += 1
            show(record)
        return count
    return max(count, 1)


def _printer(parts: Callable[[Record], Parts], *, as_json: bool) -> Callable[[Record], None]:
    if as_json:
        return _print_json
    if not sys.stdout.isatty():
        return lambda record: click.echo("".join(text for text, _ in parts(record)))
    from rich.console import Console
    from rich.text import Text

    console = Console()
    return lambda record: console.print(Text.assemble(*parts(record)), soft_wrap=True)


def _print_json(record: Record) -> None:
    # What is a control character in JSON's eyes is escaped already; these are in a terminal's.
    text = json.dumps(record, ensure_ascii=False)
    click.echo(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text))
