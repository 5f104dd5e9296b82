"""`cove`: the commands by name. Each is imported when it is asked for, so that all start fast."""

from __future__ import annotations

import importlib
import os
import sys

import click

from cove import __version__
from cove.cli.options import remember, shared

COMMANDS = {
    "up": "cove.cli.up:up",
    "deploy": "cove.cli.deploy:deploy",
    "list": "cove.cli.listing:listing",
    "describe": "cove.cli.describe:describe",
    "tools": "cove.cli.tools:tools",
    "call": "cove.cli.call:call",
    "connect": "cove.cli.connect:connect",
    "logs": "cove.cli.logs:logs",
    "events": "cove.cli.events:events",
    "session": "cove.cli.session:session",
    "versions": "cove.cli.versions:versions",
    "rollback": "cove.cli.rollback:rollback",
    "secret": "cove.cli.secret:secret",
    "rm": "cove.cli.rm:rm",
    "doctor": "cove.cli.doctor:doctor",
}


class Commands(click.Group):
    """The group whose commands are names of modules until one is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 not understood. With --json an error is "
    '{"error": {code, message, hint}} on stdout.',
)
@shared
@click.version_option(__version__, prog_name="cove")
@click.pass_context
def cove(ctx: click.Context, url: str | None, data: str | None, as_json: bool) -> None:
    """Turn an MCP server or a web app into a URL that runs only while somebody uses it."""
    remember(ctx, url, data, as_json)


def main() -> None:
    """The program `cove`."""
    for stream in (sys.stdout, sys.stderr):
        # Records may hold what no terminal encoding has; printing it must not be what fails.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        cove(prog_name="cove")
    except BrokenPipeError:
        # `cove list | head`: the reader has enough. Python must not complain on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
