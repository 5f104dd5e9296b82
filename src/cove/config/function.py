"""cove.toml: which keys there are, and what no key can say alone."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any, cast

from cove.config.checks import (
    DAY,
    RUNTIME_LATER,
    URL_PATH,
    Check,
    affinity,
    duration,
    entry,
    env,
    number,
    one_of,
    secrets,
    size,
    text,
)
from cove.config.lines import Path
from cove.config.names import check_name, slug
from cove.config.table import Table
from cove.errors import CoveError
from cove.model import GIB, MIB, Affinity, FunctionSpec, Kind, Limits, Scale, SessionPolicy

FUNCTION_KEYS: Mapping[Path, Check] = {
    ("name",): text(re.compile(r".+"), "a string"),
    ("kind",): one_of("mcp", "web", later=("event", "agent", "sandbox")),
    ("runtime",): text(
        re.compile(r"python3\.\d{1,2}|command"), '"python3.x" or "command"', RUNTIME_LATER
    ),
    ("entry",): entry,
    ("command",): text(re.compile(r"[^\0]*[^\s\0][^\0]*"), "a command line"),
    ("transport",): one_of("http", "sse", later=("stdio",)),
    ("port",): number(1024, 65535, whole=True),
    ("path",): text(URL_PATH, 'a path that begins with "/"'),
    ("isolation",): one_of("container", "process", later=("gvisor", "microvm")),
    ("env",): env,
    ("secrets",): secrets,
    ("limits", "cpu"): number(0.1, 64, whole=False),
    ("limits", "memory"): size(64 * MIB, 1024 * GIB),
    ("limits", "pids"): number(8, 32768, whole=True),
    ("limits", "timeout"): duration(0.1, DAY),
    ("limits", "startup"): duration(0.1, 3600),
    ("limits", "body"): size(1, GIB),
    ("scale", "min"): number(0, 1000, whole=True),
    ("scale", "max"): number(1, 1000, whole=True),
    ("scale", "concurrency"): number(1, 10000, whole=True),
    ("scale", "target"): number(0.1, 1, whole=False),
    ("scale", "idle"): duration(0.1, 7 * DAY),
    ("scale", "queue"): number(0, 100000, whole=True),
    ("session", "affinity"): affinity,
    ("session", "per_instance"): number(1, 10000, whole=True),
    ("session", "idle"): duration(0.1, 30 * DAY),
    ("session", "lifetime"): duration(0.1, 30 * DAY),
    ("auth", "require"): one_of("none", "key", later=("jwt", "oauth")),
}

FUNCTION_NOT_BUILT: frozenset[Path] = frozenset(
    {
        ("preload",),
        ("limits", "disk"),
        ("scale", "spare"),
        ("scale", "zygote_idle"),
        ("session", "freeze_after"),
        ("session", "archive_after"),
        ("session", "keep"),
        ("session", "snapshot_every"),
        ("session", "exclude"),
        ("session", "mounts"),
        ("hooks",),
        ("egress",),
        ("ingress",),
        ("upstream",),
        ("mcp",),
        ("rate",),
        ("trigger",),
    }
)


def parse_function(
    text: str,
    *,
    fallback_name: str,
    override_name: str | None = None,
    filename: str = "cove.toml",
    default_kind: Kind = "mcp",
) -> FunctionSpec:
    """A cove.toml as a FunctionSpec; an empty text is all defaults.

    The name is `override_name`, else the one written, else the slug of `fallback_name`.
    `default_kind` stands where no kind is written. Errors: `bad_config` with the dotted key and
    its line, `not_built` for what the design has and this version has not, `bad_name`.
    """
    table = Table(text, filename)
    got = table.read(FUNCTION_KEYS, FUNCTION_NOT_BUILT)
    kind = cast(Kind, got.get(("kind",), default_kind))
    _check_together(table, got, kind)
    name = override_name or got.get(("name",)) or slug(fallback_name)
    if not name:
        raise CoveError(
            "bad_name",
            f"no name can be made of {fallback_name!r}",
            hint="give one: cove deploy --name NAME",
        )
    session = _section(got, "session")
    session.setdefault("affinity", Affinity("mcp" if kind == "mcp" else "none"))
    top = {path[0]: value for path, value in got.items() if len(path) == 1}
    top.update(name=check_name(name), kind=kind)
    return FunctionSpec(
        **top,
        limits=Limits(**_section(got, "limits")),
        scale=Scale(**_section(got, "scale")),
        session=SessionPolicy(**session),
        auth=got.get(("auth", "require")),
    )


def writes_kind(text: str) -> bool:
    """Whether a cove.toml that parses says its kind, rather than leave it to the source."""
    return "kind" in tomllib.loads(text)


def _check_together(table: Table, got: Mapping[Path, Any], kind: Kind) -> None:
    """What no key can say alone."""
    if ("entry",) in got and ("command",) in got:
        raise table.bad(("command",), "excludes entry: a function has one of them", "remove one")
    runtime = got.get(("runtime",))
    if runtime == "command" and ("command",) not in got:
        raise table.bad(("runtime",), "'command' needs a command", 'write command = "…"')
    if kind == "web":
        for key in ("transport", "path"):
            if (key,) in got:
                raise table.bad((key,), "is for kind 'mcp' only", "remove it")
        if got.get(("session", "affinity")) == Affinity("mcp"):
            raise table.bad(
                ("session", "affinity"), "'mcp' is for kind 'mcp' only", 'write "none" or another'
            )
    if clash := [name for name in got.get(("secrets",), ()) if name in got.get(("env",), {})]:
        raise table.bad(
            ("secrets",), f"has {clash[0]}, and so has env", "remove it from one of them"
        )
    low, high = got.get(("scale", "min"), Scale().min), got.get(("scale", "max"), Scale().max)
    if low > high:
        raise table.bad(
            ("scale", "min") if ("scale", "min") in got else ("scale", "max"),
            f"is out of order: min is {low}, max is {high}",
            "min must not be above max",
        )


def _section(got: Mapping[Path, Any], name: str) -> dict[str, Any]:
    return {path[1]: value for path, value in got.items() if len(path) == 2 and path[0] == name}
