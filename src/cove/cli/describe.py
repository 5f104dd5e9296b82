"""`cove describe`: one function, whole."""

from __future__ import annotations

import click

from cove.cli.options import Options, command
from cove.cli.output import ago, print_json, print_pairs, print_table, say
from cove.model import MIB
from cove.sdk.client import Json

BYTES = ("memory", "body")


@command(name="describe")
@click.argument("name")
def describe(options: Options, name: str) -> None:
    """Show a function: where it answers, how it is isolated, what runs."""
    function = options.client().describe(name)
    if options.json:
        print_json(function)
        return
    print_pairs(_pairs(function))
    if instances := function["instances"]:
        say()
        print_table(
            ["INSTANCE", "STATE", "PID", "STARTED", "BY", "SESSIONS", "REQUESTS", "VERSION"],
            [
                (
                    instance["id"],
                    instance["state"],
                    instance["pid"],
                    ago(instance["started_at"]),
                    instance["started_by"],
                    instance["sessions"],
                    instance.get("requests", "-"),
                    instance.get("version", "-"),
                )
                for instance in instances
            ],
            empty="",
        )


def _pairs(function: Json) -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = [
        (key, function[key]) for key in ("name", "kind", "version", "state") if key in function
    ]
    if failing := function.get("failing"):
        pairs.append(("failing", failing["message"]))
        pairs += [("", line) for line in failing.get("lines", ())[-5:]]
        pairs.append(("hint", failing.get("hint", "")))
    pairs += [(f"url {kind}", url) for kind, url in function["urls"].items()]
    pairs.append(("isolation", f"{function['isolation']} ({function['driver']})"))
    pairs += [("auth", function["auth"])] if "auth" in function else []
    for group in ("facts", "limits", "scale", "session"):
        if values := function.get(group):
            pairs.append(
                (group, ", ".join(f"{key} {_size(key, value)}" for key, value in values.items()))
            )
    pairs += [("note", note) for note in function.get("notes", ())]
    pairs.append(("instances", len(function["instances"])))
    pairs.append(("sessions", function["sessions"]))
    for version in function.get("versions", ()):
        if error := version.get("error"):
            pairs.append((f"version {version['number']}", f"{version['state']}: {error}"))
    return pairs


def _size(key: str, value: object) -> object:
    return f"{value / MIB:g}MiB" if key in BYTES and isinstance(value, int) else value
