"""`cove connect`: what desktop clients want in their configuration."""

from __future__ import annotations

import json

import click

from cove.cli.options import Options, command
from cove.errors import CoveError
from cove.sdk.client import Json


@command(name="connect")
@click.argument("name")
def connect(options: Options, name: str) -> None:
    """Print the JSON that MCP clients take to connect to a function.

    Where the function requires a key, the project key is in it.
    """
    function = options.client().describe(name)
    entry: Json = {"type": "http", "url": mcp_url(function)}
    if function.get("auth") == "key" and (key := options.location().key):
        entry["headers"] = {"Authorization": f"Bearer {key}"}
    click.echo(json.dumps({"mcpServers": {function["name"]: entry}}, indent=2))


def mcp_url(function: Json) -> str:
    """Where the function speaks MCP. `bad_request` if it does not."""
    if "mcp" in function["urls"]:
        return str(function["urls"]["mcp"])
    raise CoveError(
        "bad_request",
        f"{function['name']} is a {function['kind']} function and has no tools",
        hint=f"it answers at {next(iter(function['urls'].values()), 'no URL')}",
    )
