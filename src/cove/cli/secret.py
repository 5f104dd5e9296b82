"""`cove secret`: values that functions name. They go in, and never come out."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cove.cli.options import FAILED, Options, command, remember, shared
from cove.cli.output import ago, print_json, print_table, say, tell
from cove.config import (
    LARGEST_VALUE,
    check_secret_name,
    check_secret_value,
    secret_too_large,
)
from cove.errors import CoveError


@click.group(name="secret")
@shared
@click.pass_context
def secret(ctx: click.Context, url: str | None, data: str | None, as_json: bool) -> None:
    """Keep values that functions name in cove.toml."""
    remember(ctx, url, data, as_json)


@secret.add_command
@command(name="set")
@click.argument("secret", metavar="NAME")
@click.argument("more", nargs=-1, metavar="")
@click.option("--file", type=click.Path(path_type=Path), help="Read the value from a file.")
def set_(options: Options, secret: str, more: tuple[str, ...], file: Path | None) -> None:
    """Set a secret, or set it anew: asked for on a terminal, else read from standard input.

    One newline at the end is not part of the value.
    """
    name = _name(secret, more)
    value = check_secret_value(_value(name, file))
    kept = options.client().set_secret(name, value)
    if options.json:
        print_json(kept)
        return
    say(f"set {name}")
    if kept["functions"]:
        tell(f"instances of {', '.join(kept['functions'])} have it that start from now on")


@secret.add_command
@command(name="list")
def listing(options: Options) -> None:
    """List the secrets that are set, without their values."""
    found = options.client().secrets()
    if options.json:
        print_json(found)
        return
    print_table(
        ["NAME", "SET", "FUNCTIONS"],
        [
            (each["name"], ago(each["updated_at"]), ", ".join(each["functions"]) or "-")
            for each in found
        ],
        empty="no secret is set; `cove secret set NAME` sets one",
    )


@secret.add_command
@command(name="rm")
@click.argument("secret", metavar="NAME")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def rm(options: Options, secret: str, yes: bool) -> int | None:
    """Remove a secret that no function names."""
    name = check_secret_name(secret)
    client = options.client()
    asks = not yes and not options.json and sys.stdin.isatty()
    if asks and not click.confirm(f"Remove {name} and its value for good?", err=True):
        tell("nothing was removed")
        return FAILED
    client.remove_secret(name)
    if options.json:
        print_json({"removed": name})
    else:
        say(f"removed {name}")
    return None


def _name(given: str, more: tuple[str, ...]) -> str:
    name, equals, _ = given.partition("=")
    if more or equals:
        raise CoveError(
            "bad_request",
            "a value does not belong on the command line: shells and lists of processes keep it",
            hint="`cove secret set NAME` asks for it; or `cove secret set NAME --file FILE`, or a "
            "pipe. If that was the real value, it is known by now: replace it where it came from",
        )
    return check_secret_name(name)


def _value(name: str, file: Path | None) -> str:
    if file is None and sys.stdin.isatty():
        return str(click.prompt(f"Value of {name}", hide_input=True, err=True))
    try:
        if file is None:
            found = sys.stdin.buffer.read(LARGEST_VALUE + 2)
        else:
            with file.open("rb") as opened:
                found = opened.read(LARGEST_VALUE + 2)
        found = found.removesuffix(b"\n")
        if len(found) > LARGEST_VALUE:
            raise secret_too_large()  # not read to its end: what it means is not to be asked
        return found.decode()
    except OSError as fault:
        raise CoveError(
            "bad_request", f"{file or 'standard input'} cannot be read: {fault.strerror}"
        ) from fault
    except UnicodeDecodeError:
        # Not chained: it carries what it could not read.
        raise CoveError(
            "bad_request", "the value is not UTF-8 text", hint="base64 makes text of anything"
        ) from None
