"""The import rule of ARCHITECTURE.md, enforced on what the files say, not on what runs.

Every import counts, also one inside a function: a layer that is reached late is still reached.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "cove"

BASE = {"errors", "model", "states", "config", "clock", "paths", "metrics", "events"}
CONTRACTS = {"drivers.base", "store.base"}
PARTS = {"sandbox", "runtimes", "logs"}
MIDDLE = {"engine", "mcp"}
EDGES = {"gateway", "api"}

# Which parts a part may name besides itself. Parts are the longest match of a module's path.
ALLOWED: Mapping[str, set[str]] = {
    **dict.fromkeys(BASE, BASE),
    **dict.fromkeys(CONTRACTS, BASE),
    **dict.fromkeys(PARTS, BASE),
    "drivers": BASE | {"sandbox", "drivers.base"},
    "store": BASE | {"store.base"},
    **dict.fromkeys(MIDDLE, BASE | CONTRACTS | PARTS),
    **dict.fromkeys(EDGES, BASE | CONTRACTS | PARTS | MIDDLE),
    "server": BASE | CONTRACTS | PARTS | MIDDLE | EDGES | {"drivers", "store"},
    "sdk": BASE,
    "cli": BASE | {"sdk"},  # `cove up` becomes `python -m cove.server`: it need not import it
}

# The SDK costs 0.6 s and 64 MiB (DESIGN 4.1): only the client side may have it.
SDK_USERS = {"cli"}

# Programs that run inside instances, on the function's own packages. They are files to Cove,
# mounted and never imported; so they may name the SDK, and nothing of Cove.
GUESTS = {"runtimes.serve"}

VAGUE = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"}
LONGEST = 500


def part_of(module: str) -> str | None:
    """The part of Cove that `module` (without `cove.`) belongs to; None if no rule knows it."""
    names = module.split(".")
    for end in range(len(names), 0, -1):
        if (part := ".".join(names[:end])) in ALLOWED:
            return part
    return None


def imports(module: str, source: str, *, package: bool = False) -> Iterator[str]:
    """Absolute names of everything `source`, the text of `module`, imports or might."""
    home = module if package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = home.split(".")[: len(home.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith(("import_module", "__import__"))
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def complaints(sources: Mapping[str, str], packages: Set[str] = frozenset()) -> list[str]:
    """What breaks the rule in these modules (`cove.x.y` -> text), a sentence each."""
    found = []
    for module, source in sorted(sources.items()):
        inner = module.removeprefix("cove").removeprefix(".")
        if not inner or (module in packages and not source.strip()):
            continue
        if part_of(inner) is None:
            found.append(f"{module} belongs to no layer: name its package in ALLOWED")
            continue
        for name in imports(module, source, package=module in packages):
            if wrong := complaint(inner, name):
                found.append(f"{module} {wrong}")
    return found


def complaint(inner: str, name: str) -> str | None:
    """What is wrong with `inner` (without `cove.`) importing `name`, if anything."""
    part = part_of(inner)
    assert part is not None
    if is_or_in(name, "mcp"):
        allowed = part in SDK_USERS or inner in GUESTS
        return None if allowed else f"imports the MCP SDK ({name})"
    if not is_or_in(name, "cove") or name == "cove":
        return None
    if inner in GUESTS:
        return f"runs inside instances, where there is no {name}"
    if any(is_or_in(name, f"cove.{guest}") for guest in GUESTS):
        return f"imports {name}, which runs inside instances only"
    other = part_of(name.removeprefix("cove."))
    if other is None:
        # `from cove import __version__` and the like belong to everybody
        return f"imports {name}, which no layer knows" if name.count(".") > 1 else None
    return None if may(part, other) else f"({part}) may not import {name} ({other})"


def is_or_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def may(part: str, other: str) -> bool:
    return part == other or other in ALLOWED[part]


def package_sources() -> tuple[dict[str, str], set[str]]:
    sources, packages = {}, set()
    for path in sorted(SRC.rglob("*.py")):
        names = ["cove", *path.relative_to(SRC).with_suffix("").parts]
        if names[-1] == "__init__":
            names.pop()
            packages.add(".".join(names))
        sources[".".join(names)] = path.read_text()
    return sources, packages


def test_imports_point_down() -> None:
    sources, packages = package_sources()
    assert len(sources) > 10, "the source moved: this test looks at nothing"
    assert complaints(sources, packages) == []


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_a_file_is_one_noun_with_a_name(path: Path) -> None:
    words = set(path.stem.split("_"))
    assert not words & VAGUE, f"{path.name} says nothing about what is in it"
    assert len(path.read_text().splitlines()) <= LONGEST, f"{path.name} holds more than one noun"


@pytest.mark.parametrize(
    ("module", "source", "refused"),
    [
        ("cove.engine.pool", "from cove.gateway.http import Wire", True),
        ("cove.engine.pool", "def f():\n    from cove.mcp import classify", True),
        ("cove.mcp.classify", "import cove.engine.pool", True),
        ("cove.mcp.classify", "import mcp", True),
        ("cove.gateway.routes", "from mcp.types import Tool", True),
        ("cove.gateway.routes", "from cove.mcp.classify import classify", False),
        ("cove.gateway.routes", "from cove import api", True),
        ("cove.gateway.routes", "from ..api import app", True),
        ("cove.gateway.routes", "from . import http", False),
        ("cove.gateway.routes", "import importlib\nimportlib.import_module('mcp')", True),
        ("cove.api.app", "from cove.gateway import routes", True),
        ("cove.engine.supervisor", "from cove.drivers import oci", True),
        ("cove.engine.supervisor", "from cove.drivers import process as p", True),
        ("cove.engine.supervisor", "from cove.drivers.base import Driver", False),
        ("cove.engine.supervisor", "from cove.store.sql import SqlStore", True),
        ("cove.drivers.oci", "from cove.sandbox import spec", False),
        ("cove.drivers.oci", "from cove.drivers.process import ProcessDriver", False),
        ("cove.drivers.oci", "from cove.runtimes import python", True),
        ("cove.sandbox.spec", "from cove.drivers.base import Launch", True),
        ("cove.runtimes.python", "from cove.sandbox import spec", True),
        ("cove.runtimes.serve", "from mcp.server import MCPServer", False),
        ("cove.runtimes.serve", "from cove.errors import CoveError", True),
        ("cove.runtimes.python", "from cove.runtimes import serve", True),
        ("cove.runtimes.python", "import mcp", True),
        ("cove.model", "from cove.states import VersionState", False),
        ("cove.model", "from cove.engine import pool", True),
        ("cove.sdk.client", "from cove.api import app", True),
        ("cove.sdk.client", "import mcp", True),
        ("cove.cli.call", "from mcp import Client", False),
        ("cove.cli.call", "from cove.sdk.client import Cove", False),
        ("cove.cli.call", "from cove.engine import pool", True),
        ("cove.cli.call", "from cove import server", True),
        ("cove.cli.up", "import cove.server", True),
        ("cove.cli.up", "from cove.drivers.oci import OciDriver", True),
        ("cove.server", "from cove.drivers.oci import OciDriver", False),
        ("cove.server", "import mcp", True),
        ("cove.server", "from cove.cli import main", True),
        ("cove.server", "from cove import __version__", False),
        ("cove.toolbox", "import os", True),
    ],
)
def test_the_rule_finds_a_planted_violation(module: str, source: str, refused: bool) -> None:
    assert bool(complaints({module: source})) is refused
