"""`cove call`: use one tool of an MCP function."""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING

import click

from cove.cli.arguments import admits, arguments
from cove.cli.options import FAILED, Options, command
from cove.cli.output import print_json, say, tell
from cove.cli.tools import usage
from cove.errors import CoveError
from cove.sdk.client import Json

if TYPE_CHECKING:
    from mcp import Client
    from mcp_types import CallToolResult, ContentBlock, Tool


@command(name="call")
@click.argument("name")
@click.argument("tool")
@click.argument("words", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--args", "whole", metavar="JSON", help="All arguments as one JSON object.")
def call(
    options: Options, name: str, tool: str, words: tuple[str, ...], whole: str | None
) -> int | None:
    """Call a tool and print what it answers.

    A value is JSON where the tool's schema wants something else than text; KEY=@FILE reads
    it from a file. Exits 1 if the tool answers with an error.
    """
    from cove.cli.mcp_client import tools_of, with_tools

    async def use(client: Client) -> CallToolResult:
        found = _named(tool, await tools_of(client), name)
        given = arguments(words, whole, found.input_schema)
        check(tool, given, found.input_schema)
        return await client.call_tool(tool, given)

    result = with_tools(options, name, use)
    if options.json:
        print_json(result.model_dump(mode="json", by_alias=True, exclude_none=True))
    else:
        for block in result.content:
            (tell if result.is_error else say)(_shown(block))
        if not result.content and result.structured_content is not None:
            print_json(result.structured_content)
    return FAILED if result.is_error else None


def _named(name: str, tools: list[Tool], function: str) -> Tool:
    for tool in tools:
        if tool.name == name:
            return tool
    near = difflib.get_close_matches(name, [tool.name for tool in tools], n=3, cutoff=0.4)
    raise CoveError(
        "bad_request",
        f"{function} has no tool {name!r}",
        hint=f"did you mean {' or '.join(near)}?"
        if near
        else f"`cove tools {function}` lists them",
    )


def check(tool: str, given: Json, schema: Json) -> None:
    """`bad_request` for arguments that the tool's schema has no room for.

    What the schema leaves open goes to the tool; a misspelt name among it is said on stderr, since
    most tools pass over what they do not know.
    """
    known = schema.get("properties", {})
    strange = [key for key in given if key not in known]
    takes = f"{tool} takes {usage(schema) or 'no arguments'}"
    if missing := [key for key in schema.get("required", ()) if key not in given]:
        near = [pair for key in missing for pair in _near(key, strange)]
        raise CoveError(
            "bad_request",
            f"{tool} needs {', '.join(missing)}",
            hint=f"did you mean {' and '.join(near)}? {takes}" if near else takes,
        )
    if strange and schema.get("additionalProperties") is False:
        raise CoveError("bad_request", f"{tool} does not know {', '.join(strange)}", hint=takes)
    for key in strange:
        if match := difflib.get_close_matches(key, known, n=1):
            tell(f"note: {tool} says nothing of {key}; did you mean {match[0]}?")
    for key, value in given.items():
        if not admits(known.get(key, True), value, schema):
            raise CoveError(
                "bad_request",
                f"{tool} does not take {key} = {json.dumps(value, ensure_ascii=False)}",
                hint=f"its schema says {json.dumps(known[key], ensure_ascii=False)}",
            )


def _near(wanted: str, strange: list[str]) -> list[str]:
    return [
        f"{wanted} for {key}" for key in difflib.get_close_matches(wanted, strange, n=1, cutoff=0.5)
    ]


def _shown(block: ContentBlock) -> str:
    match block.type:
        case "text":
            return block.text
        case "image" | "audio":
            return f"[{block.mime_type}, {len(block.data) * 3 // 4} bytes; --json has it]"
        case "resource_link":
            return f"[{block.uri}]"
        case "resource":
            return str(getattr(block.resource, "text", f"[{block.resource.uri}]"))
