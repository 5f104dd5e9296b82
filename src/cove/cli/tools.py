"""`cove tools`: what an MCP function offers."""

from __future__ import annotations

import click

from cove.cli.options import Options, command
from cove.cli.output import print_json, print_table
from cove.sdk.client import Json


@command(name="tools")
@click.argument("name")
def tools(options: Options, name: str) -> None:
    """List the tools of an MCP function."""
    from cove.cli.mcp_client import tools_of, with_tools

    found = with_tools(options, name, tools_of)
    if options.json:
        print_json([t.model_dump(mode="json", by_alias=True, exclude_none=True) for t in found])
        return
    print_table(
        ["TOOL", "ARGUMENTS", "DESCRIPTION"],
        [(t.name, usage(t.input_schema), _first_line(t.description)) for t in found],
        empty=f"{name} has no tools",
    )


def usage(schema: Json) -> str:
    """A tool's arguments as a line of usage: `city [day]`."""
    required = schema.get("required", [])
    names = schema.get("properties", {})
    return " ".join(name if name in required else f"[{name}]" for name in names)


def _first_line(description: str | None) -> str:
    return (description or "").strip().partition("\n")[0]
