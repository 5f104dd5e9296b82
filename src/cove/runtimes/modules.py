"""What a Python file says of itself, read from its syntax. Nothing of it is ever imported here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cove.errors import CoveError

RunsOver = Literal["stdio", "sse", "http"]

_SERVERS = frozenset({"FastMCP", "MCPServer", "Server"})
_ASGI = frozenset(
    {
        ("fastapi", "FastAPI"),
        ("starlette", "Starlette"),
        ("quart", "Quart"),
        ("litestar", "Litestar"),
        ("blacksheep", "Application"),
        ("sanic", "Sanic"),
    }
)
_RUNS: dict[str, RunsOver | None] = {
    "run": None,
    "run_async": None,
    "run_stdio_async": "stdio",
    "run_sse_async": "sse",
    "run_streamable_http_async": "http",
    "run_http_async": "http",
}
MAX_FILE_BYTES = 1024**2
"""A larger file is not parsed: its syntax tree takes a hundred times as much memory."""

_RUNNERS = frozenset({"asyncio.run", "anyio.run", "trio.run", "uvicorn.run", "hypercorn.run"})
_V1_DECORATORS = frozenset(
    {"list_tools", "call_tool", "list_resources", "read_resource", "list_prompts", "get_prompt"}
)


@dataclass(frozen=True, slots=True)
class Run:
    """A call that starts a server. `over` is None where the syntax does not tell."""

    line: int
    over: RunsOver | None
    guarded: bool
    direct: bool
    """Whether it is `NAME.run(…)` itself, not a runner such as `asyncio.run` around it."""


@dataclass(frozen=True, slots=True)
class Module:
    """A parsed file: `name` as it is imported from the folder, `path` relative to it."""

    name: str
    path: Path
    text: str
    imports: frozenset[str]
    """Every dotted name it imports, anywhere in it: `mcp.server.fastmcp.FastMCP`."""
    servers: dict[str, str]
    """Module-level names of MCP servers, with what they were made by."""
    apps: tuple[str, ...]
    """Module-level names of ASGI apps."""
    bound: frozenset[str]
    """Module-level names bound to something that may be anything: a call's result, an import."""
    names: frozenset[str] | None
    """All module-level names; None where `import *` or `__getattr__` may add others."""
    runs: tuple[Run, ...]
    decorated_v1: bool
    """Whether a low-level server gets its handlers by decorators, as in mcp 1 only."""

    @property
    def speaks_v1(self) -> bool:
        """Whether it needs the MCP SDK 1.x: `mcp.server.fastmcp` went with 2.0."""
        return self.decorated_v1 or any(
            name.startswith("mcp.server.fastmcp") or name == "mcp.server.FastMCP"
            for name in self.imports
        )

    @property
    def serves_mcp(self) -> bool:
        """Whether it imports a server side of MCP, rather than none or only the client's."""
        return any(
            name.split(".")[0] == "fastmcp" or name.startswith("mcp.server")
            for name in self.imports
        )


def parse(folder: Path, path: Path) -> Module:
    """The module in the file `path` below `folder`. `CoveError("bad_source")` with its line."""
    relative = path.relative_to(folder)
    try:
        data = _content(path, relative)
        if b"\0" in data:  # Pythons disagree on what is wrong with it, and on which line
            raise ValueError("it is binary")
        tree = ast.parse(data, filename=str(relative))
        text = data.decode("utf-8", errors="replace")
    except SyntaxError as error:
        raise CoveError(
            "bad_source",
            f"{relative} line {error.lineno or 1}: {error.msg}",
            hint="correct that line; nothing was deployed",
            lines=[error.text.rstrip()] if error.text else [],
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise CoveError(
            "bad_source",
            f"{relative} is no Python file: {error}",
            hint="deploy a .py file, or a folder that holds one",
        ) from error
    return _Reader(tree).module(_import_name(relative), relative, text)


def too_large(name: str) -> CoveError:
    """A Python file of that name is not read."""
    return CoveError(
        "bad_source",
        f"{name} is larger than {MAX_FILE_BYTES // 1024**2} MiB",
        hint="keep data in files of its own, which may be larger",
    )


def _content(path: Path, relative: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise too_large(str(relative))
    return data


def _import_name(relative: Path) -> str:
    parts = list(relative.with_suffix("").parts)
    if parts[0] == "src" and len(parts) > 1:
        parts = parts[1:]
    return ".".join(parts)


class _Reader:
    """One pass over a module's syntax."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.origins: dict[str, str] = {}
        self.imports: set[str] = set()
        self.open_ended = False
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._import(node)

    def module(self, name: str, path: Path, text: str) -> Module:
        servers: dict[str, str] = {}
        apps: list[str] = []
        bound: set[str] = set()
        names: set[str] = set()
        for statement, _guarded in self._statements(self.tree.body, False, enter_main=False):
            for target, value in _bindings(statement):
                names.add(target)
                made_by = self._dotted(value.func) if isinstance(value, ast.Call) else None
                if made_by is not None and _is_server(made_by):
                    servers[target] = made_by
                elif made_by is not None and _is_asgi(made_by):
                    apps.append(target)
                elif self._may_be_anything(target, value):
                    bound.add(target)
        return Module(
            name=name,
            path=path,
            text=text,
            imports=frozenset(self.imports),
            servers=servers,
            apps=tuple(dict.fromkeys(apps)),
            bound=frozenset(bound),
            names=None if self.open_ended or "__getattr__" in names else frozenset(names),
            runs=tuple(self._runs(frozenset(servers) | (bound & {"mcp", "server", "app"}))),
            decorated_v1=self._decorated_v1(servers),
        )

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self.imports.add(alias.name)
                whole = alias.name if alias.asname else alias.name.split(".")[0]
                self.origins[alias.asname or whole] = whole
            return
        package = "." * node.level + (node.module or "")
        for alias in node.names:
            self.open_ended |= alias.name == "*"
            dotted = f"{package}.{alias.name}"
            self.imports.add(dotted)
            self.origins[alias.asname or alias.name] = dotted

    def _dotted(self, node: ast.expr) -> str | None:
        """`m.FastMCP` as `mcp.server.fastmcp.FastMCP`, by the module's imports."""
        if isinstance(node, ast.Subscript):  # FastMCP[State](…)
            return self._dotted(node.value)
        if isinstance(node, ast.Name):
            return self.origins.get(node.id, node.id)
        if isinstance(node, ast.Attribute) and (base := self._dotted(node.value)):
            return f"{base}.{node.attr}"
        return None

    def _may_be_anything(self, target: str, value: ast.AST) -> bool:
        if isinstance(value, ast.Import | ast.ImportFrom):
            # The package itself is bound by `import mcp`, which is no server.
            return self.origins.get(target, "").split(".")[0] not in {"mcp", "fastmcp"}
        return isinstance(value, ast.Call | ast.Await | ast.Name | ast.Attribute | ast.IfExp)

    def _statements(
        self, body: list[ast.stmt], guarded: bool, *, enter_main: bool
    ) -> Iterator[tuple[ast.stmt, bool]]:
        """The statements that importing the module runs, and with `enter_main` those behind
        `if __name__ == "__main__"`, marked as guarded."""
        for statement in body:
            yield statement, guarded
            main = isinstance(statement, ast.If) and _names_main(statement.test)
            if main and not enter_main:
                yield from self._statements(
                    getattr(statement, "orelse", []), guarded, enter_main=enter_main
                )
                continue
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            inner = [
                *getattr(statement, "body", []),
                *getattr(statement, "orelse", []),
                *getattr(statement, "finalbody", []),
            ]
            for handler in getattr(statement, "handlers", []):
                inner += handler.body
            yield from self._statements(inner, guarded or main, enter_main=enter_main)

    def _runs(self, servers: frozenset[str]) -> Iterator[Run]:
        for statement, guarded in self._statements(self.tree.body, False, enter_main=True):
            if not isinstance(statement, ast.Expr):
                continue
            call = statement.value
            if not isinstance(call, ast.Call):
                continue
            inner = next((c for c in _calls(call) if _is_run(c, servers)), None)
            if inner is not None:
                yield Run(call.lineno, _over(inner), guarded, inner is call)
            elif self._dotted(call.func) in _RUNNERS:
                yield Run(call.lineno, None, guarded, False)
            elif guarded:
                yield from self._runs_in_main(call, servers)

    def _runs_in_main(self, call: ast.Call, servers: frozenset[str]) -> Iterator[Run]:
        """`main()` behind the guard: the run is in the function of that name."""
        for node in self.tree.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(call.func, ast.Name) and node.name == call.func.id:
                for inner in _calls(node):
                    if _is_run(inner, servers):
                        yield Run(inner.lineno, _over(inner), True, True)

    def _decorated_v1(self, servers: dict[str, str]) -> bool:
        low = {name for name, made_by in servers.items() if made_by.endswith(".Server")}
        return any(
            isinstance(decorator, ast.Call)
            and isinstance(decorator.func, ast.Attribute)
            and isinstance(decorator.func.value, ast.Name)
            and decorator.func.value.id in low
            and decorator.func.attr in _V1_DECORATORS
            for node in ast.walk(self.tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for decorator in node.decorator_list
        )


def _bindings(statement: ast.stmt) -> Iterator[tuple[str, ast.AST]]:
    """Names that one statement binds, each with the node it gets its value from."""
    match statement:
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                for node in ast.walk(target):
                    if isinstance(node, ast.Name):
                        yield node.id, value
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            yield name, value
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            for alias in aliases:
                yield alias.asname or alias.name.split(".")[0], statement
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name, statement
        case ast.With(items=items) | ast.AsyncWith(items=items):
            for item in items:
                if isinstance(item.optional_vars, ast.Name):
                    yield item.optional_vars.id, item.context_expr


def _is_server(made_by: str) -> bool:
    parts = made_by.split(".")
    return parts[-1] in _SERVERS and parts[0] in {"mcp", "fastmcp"} and "client" not in parts


def _is_asgi(made_by: str) -> bool:
    parts = made_by.split(".")
    return (parts[0], parts[-1]) in _ASGI


def _is_run(call: ast.Call, servers: frozenset[str]) -> bool:
    return (
        isinstance(call.func, ast.Attribute)
        and call.func.attr in _RUNS
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id in servers
    )


def _over(call: ast.Call) -> RunsOver | None:
    assert isinstance(call.func, ast.Attribute)
    named = next((k.value for k in call.keywords if k.arg == "transport"), None)
    given = named or (call.args[0] if call.args else None)
    if given is None:
        # Without a word every SDK speaks stdio, unless arguments are spread in.
        spread = any(k.arg is None for k in call.keywords)
        return _RUNS[call.func.attr] or (None if spread else "stdio")
    if not isinstance(given, ast.Constant):
        return None
    words: dict[object, RunsOver] = {"stdio": "stdio", "sse": "sse"}
    return words.get(given.value, "http")


def _names_main(test: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(test))


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    return (each for each in ast.walk(node) if isinstance(each, ast.Call))
