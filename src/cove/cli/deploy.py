"""`cove deploy`: a file or folder becomes a URL."""

from __future__ import annotations

from pathlib import Path

import click

from cove.cli.options import FAILED, Options, command, explained
from cove.cli.output import print_error, print_json, say, tell
from cove.cli.watch import changes
from cove.errors import CoveError
from cove.sdk.archive import expected_name
from cove.sdk.client import CoveClient, Json


@command(name="deploy")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", "wanted", metavar="NAME", help="What to call it [cove.toml, else PATH].")
@click.option("--watch", is_flag=True, help="Deploy again whenever PATH changes.")
def deploy(options: Options, path: Path, wanted: str | None, watch: bool) -> int | None:
    """Deploy a Python file, or a folder, and print where it answers.

    Of a folder, .gitignore-like patterns in .coveignore leave things out; .git, virtual
    environments, node_modules, caches and .env files are never sent.
    """
    client = options.client()
    name = wanted or expected_name(path)
    if not watch:
        return None if _tried(client, options, path, wanted, name) else FAILED
    with changes(path) as changed:
        while True:
            # cove.toml may say another from now on
            name = _tried(client, options, path, wanted, name, line=True) or name
            if not options.json:
                tell(f"watching {path}")
            if not changed():
                raise CoveError("internal", f"{path} can no longer be watched")


def _tried(
    client: CoveClient,
    options: Options,
    path: Path,
    wanted: str | None,
    name: str,
    *,
    line: bool = False,
) -> str:
    """Deploy, and print what came of it; the function's name, empty where it failed."""
    try:
        function = _once(client, options, path, wanted)
    except CoveError as error:
        print_error(explained(error, options, None), options.json, line=line)
        _say_what_serves(client, name, options)
        return ""
    _print(function, options, line=line)
    return str(function["name"])


def _once(client: CoveClient, options: Options, path: Path, wanted: str | None) -> Json:
    return client.deploy(path, wanted, None if options.json else lambda text: tell(f"  {text}"))


def _print(function: Json, options: Options, *, line: bool = False) -> None:
    if options.json:
        print_json(function, line=line)
        return
    tier = f"{function['isolation']} ({function['driver']})"
    say(f"{function['name']} version {function['version']}, {function['kind']}, {tier}")
    for kind, url in function["urls"].items():
        say(f"  {kind.ljust(5)} {url}")
    for note in function.get("notes", ()):
        tell(f"note: {note}")


def _say_what_serves(client: CoveClient, name: str, options: Options) -> None:
    if options.json:
        return
    try:
        serving = client.describe(name)
    except CoveError:
        return
    if serving.get("state") == "ready":
        tell(f"version {serving['version']} of {serving['name']} keeps serving")
