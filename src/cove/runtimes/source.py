"""What a deployed folder is: its cove.toml, and where that is silent, what its files show."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cove import config
from cove.errors import CoveError
from cove.model import FunctionSpec, Kind, Transport
from cove.runtimes import modules
from cove.runtimes.modules import Module, Run

CONFIG_FILE = "cove.toml"

_FIRST = ("server", "main", "app", "__main__")
_PREFERRED = ("mcp", "server", "app")
_PREFERRED_APPS = ("app", "application", "api")
_SKIPPED = frozenset({"__pycache__", "node_modules", "venv", "env", "build", "dist", "tests"})
_MAX_FILES = 2000
_MAX_CONFIG_BYTES = 1024**2


@dataclass(frozen=True, slots=True)
class Source:
    """A folder that can be deployed. `spec` says how it runs: by `entry` or by `command`."""

    spec: FunctionSpec
    folder: Path
    modules: tuple[Module, ...]
    entry: Module | None
    """The module that `spec.entry` or `spec.command` names, where it is in the folder."""
    disarm: str = ""
    """`package.module:Class` whose `run()` the entry calls on import, where it must not."""
    notes: tuple[str, ...] = ()

    @property
    def is_object(self) -> bool:
        """Whether `spec.entry` is `module:object`, rather than a file run as a program."""
        return self.spec.entry is not None and ":" in self.spec.entry


def read(folder: Path, *, name: str | None, fallback: str) -> Source:
    """What `folder` deploys as. `name` overrides cove.toml's; `fallback` is slugged if neither is.

    Reads only; nothing is imported or run. Errors: those of `config.parse_function`, and
    `bad_source` where no server is found or it is not clear which. Blocks.
    """
    text = _config_text(folder)

    def spec_of(kind: Kind) -> FunctionSpec:
        return config.parse_function(
            text, fallback_name=fallback, override_name=name, default_kind=kind
        )

    spec = spec_of("mcp")
    if spec.command is not None:
        return _commanded(spec, folder, spec.command)
    if spec.entry is not None and ":" not in spec.entry:
        return _program(spec, folder, _written_program(folder, spec.entry))
    found = _written_object(folder, spec.entry) if spec.entry else _Search(folder).best(spec, text)
    if found.web and not config.writes_kind(text):
        spec = spec_of("web")
    if found.name is None:
        return _program(spec, folder, found.module)
    if found.module is None:
        return Source(spec, folder, _modules(folder, strict=False), None)
    return _object(spec, folder, found.module, found.name)


@dataclass(frozen=True, slots=True)
class _Found:
    """A module and a name in it; no name where the module is run as a program."""

    module: Module | None
    name: str | None
    web: bool = False


class _Search:
    """Looks for a server where neither entry nor command is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules = _modules(folder, strict=True)
        by_name = {module.name: module for module in self.modules}
        self.first = [by_name[name] for name in _FIRST if name in by_name]
        self.rest = [module for module in self.modules if module not in self.first]

    def best(self, spec: FunctionSpec, text: str) -> _Found:
        """1: an MCP server; 2: an ASGI app, if web is written or no kind is; else an error."""
        web_written = config.writes_kind(text) and spec.kind == "web"
        found = None if web_written else self._mcp()
        if found is None and (web_written or not config.writes_kind(text)):
            found = self._web(programs=web_written)
        if found is None:
            raise self._nothing(spec.kind)
        return found

    def _mcp(self) -> _Found | None:
        serves = any(module.serves_mcp for module in self.modules)
        for module in self.first:
            if module.servers:
                return _Found(module, _choose(module, tuple(module.servers), _PREFERRED, "server"))
            # A factory's result, or another module's server with more tools put on it.
            made = next((name for name in _PREFERRED if name in module.bound), None)
            if made is not None and serves:
                return _Found(module, made)
        found = self._only(
            [(module, next(iter(module.servers))) for module in self.rest if module.servers],
            "an MCP server",
        )
        if found is not None:
            return _Found(found, _choose(found, tuple(found.servers), _PREFERRED, "server"))
        made_by = [(m, "mcp") for m in self.rest if m.serves_mcp and "mcp" in m.bound]
        found = self._only(made_by, "an MCP server")
        if found is not None:
            return _Found(found, "mcp")
        programs = [
            m for m in self.first if m.serves_mcp and any(not run.guarded for run in m.runs)
        ]
        return _Found(programs[0], None) if programs else None

    def _web(self, *, programs: bool) -> _Found | None:
        for module in self.first:
            if module.apps:
                name = _choose(module, module.apps, _PREFERRED_APPS, "app")
                return _Found(module, name, web=True)
        found = self._only([(m, m.apps[0]) for m in self.rest if m.apps], "an ASGI app")
        if found is not None:
            return _Found(found, _choose(found, found.apps, _PREFERRED_APPS, "app"), web=True)
        started = [m for m in self.first if m.runs]
        return _Found(started[0], None, web=True) if programs and started else None

    def _only(self, candidates: Sequence[tuple[Module, str]], what: str) -> Module | None:
        """The one module that has an object of that kind; each comes with the object's name."""
        if len(candidates) > 1:
            names = ", ".join(str(module.path) for module, _ in candidates)
            module, name = candidates[0]
            raise CoveError(
                "bad_source",
                f"several files hold {what}: {names}",
                hint=f'say which in {CONFIG_FILE}: entry = "{module.name}:{name}"',
            )
        return candidates[0][0] if candidates else None

    def _nothing(self, kind: str) -> CoveError:
        if not self.modules:
            if large := [path.name for path in self.folder.glob("*.py") if _is_large(path)]:
                raise modules.too_large(large[0])
            seen = sorted(path.name for path in self.folder.iterdir())[:10]
            return CoveError(
                "bad_source",
                "there is no Python file in what was deployed"
                + (f", only {', '.join(seen)}" if seen else ""),
                hint=f'deploy a .py file, or write a {CONFIG_FILE} with command = "…"',
            )
        where = ", ".join(str(module.path) for module in self.modules[:10])
        if kind == "web":
            return CoveError(
                "bad_source",
                f"no ASGI app (FastAPI, Starlette, Quart, …) was found in {where}",
                hint=f'write entry = "module:object" or command = "…" in {CONFIG_FILE}',
            )
        return CoveError(
            "bad_source",
            f"no MCP server and no ASGI app was found in {where}: looked for a module-level name "
            "made by FastMCP(…), MCPServer(…) or Server(…), or by FastAPI(…) or Starlette(…)",
            hint=f'write entry = "module:object" or command = "…" in {CONFIG_FILE}',
        )


def _choose(module: Module, names: tuple[str, ...], preferred: tuple[str, ...], what: str) -> str:
    for name in preferred:
        if name in names:
            return name
    if len(names) > 1:
        raise CoveError(
            "bad_source",
            f"{module.path} has several {what}s: {', '.join(names)}",
            hint=f'say which in {CONFIG_FILE}: entry = "{module.name}:{names[0]}"',
        )
    return names[0]


def _object(spec: FunctionSpec, folder: Path, module: Module, name: str) -> Source:
    """An object to serve, unless importing its module would already start it."""
    if module.serves_mcp and (module.path.name in {"mcp.py", "fastmcp.py"}):
        raise CoveError(
            "bad_source",
            f"{module.path} hides the package {module.path.stem} that it imports",
            hint="give the file another name, server.py for example",
        )
    stray = next((run for run in module.runs if not run.guarded), None)
    disarm = note = ""
    if stray is not None:
        made_by = module.servers.get(name, "")
        if not (stray.direct and stray.over == "stdio" and made_by):
            return _program(spec, folder, module)
        # It would wait on stdin for ever; as an object it serves what the file means to serve.
        owner, _, cls = made_by.rpartition(".")
        disarm = f"{owner}:{cls}"
        note = f"{module.path} line {stray.line}: run() is passed over, Cove serves {name!r}"
    spec = dataclasses.replace(spec, entry=f"{module.name}:{name}")
    notes = (note,) if note else ()
    return Source(spec, folder, _modules(folder, strict=False), module, disarm, notes)


def _program(spec: FunctionSpec, folder: Path, module: Module | None) -> Source:
    """A file run as a program; what it says of its transport is a hint where none is written."""
    assert module is not None
    runs = module.runs
    if spec.kind == "mcp" and runs and all(run.over == "stdio" for run in runs):
        raise _speaks_stdio(module, runs[0])
    spec = dataclasses.replace(_hinted(spec, module), entry=str(module.path))
    return Source(spec, folder, _modules(folder, strict=False), module)


def _commanded(spec: FunctionSpec, folder: Path, command: str) -> Source:
    """A command line; the first of the folder's modules that it names counts as its entry."""
    found = _modules(folder, strict=False)
    try:
        words = shlex.split(command)[1:]
    except ValueError:
        words = command.split()[1:]
    named = (
        module
        for word in words
        for module in found
        if word.removeprefix("./") == str(module.path) or word.partition(":")[0] == module.name
    )
    entry = next(named, None)
    return Source(_hinted(spec, entry) if entry else spec, folder, found, entry)


def _hinted(spec: FunctionSpec, module: Module) -> FunctionSpec:
    """The spec with the transport that the program runs over, if none is written and it has one."""
    over: set[Transport | None] = {run.over for run in module.runs if run.over != "stdio"}
    if spec.kind != "mcp" or spec.transport is not None or len(over) != 1:
        return spec
    return dataclasses.replace(spec, transport=over.pop())


def _speaks_stdio(module: Module, run: Run) -> CoveError:
    name = next(iter(module.servers), "mcp")
    return CoveError(
        "not_built",
        f"{module.path} line {run.line} serves over stdio, which is not built yet for programs",
        hint=f'write entry = "{module.name}:{name}", or run(transport="streamable-http")',
    )


def _written_program(folder: Path, entry: str) -> Module:
    path = folder / entry
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        raise CoveError(
            "bad_source",
            f"entry = {entry!r}: there is no such file in what was deployed",
            hint="name a file of the folder, or module:object",
        )
    return modules.parse(folder, path)


def _written_object(folder: Path, entry: str) -> _Found:
    """The module of a written entry. One that is not in the folder may be a dependency's."""
    module_name, _, name = entry.partition(":")
    file = module_name.replace(".", "/")
    for path in (f"{file}.py", f"{file}/__init__.py", f"src/{file}.py", f"src/{file}/__init__.py"):
        if not (folder / path).is_file():
            continue
        module = dataclasses.replace(modules.parse(folder, folder / path), name=module_name)
        if module.names is not None and name.split(".")[0] not in module.names:
            known = ", ".join(sorted(module.servers) or sorted(module.apps) or sorted(module.bound))
            raise CoveError(
                "bad_source",
                f"entry = {entry!r}: {path} has no {name!r} at its top level",
                hint=f"it has {known}" if known else "define it there",
            )
        return _Found(module, name, web=name in module.apps)
    return _Found(None, name)


def _modules(folder: Path, *, strict: bool) -> tuple[Module, ...]:
    """The folder's Python files, shallow ones first. Where not `strict`, broken ones are left out:
    a file that nothing imports must not stop a deploy that says what it runs."""
    found: list[Module] = []
    for path in _python_files(folder):
        try:
            found.append(modules.parse(folder, path))
        except CoveError:
            # Only files that the search would have looked into first are worth failing for.
            if strict and (path.parent == folder):
                raise
    return tuple(found)


def _python_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in _SKIPPED
            and not (Path(root) / name / "pyvenv.cfg").exists()
        )
        found += (
            path
            for path in (Path(root) / name for name in sorted(files))
            if path.suffix == ".py" and not path.is_symlink() and not _is_large(path)
        )
        if len(found) > _MAX_FILES:
            break
    return sorted(found, key=lambda path: (len(path.parts), path))


def _is_large(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > modules.MAX_FILE_BYTES


def _config_text(folder: Path) -> str:
    path = folder / CONFIG_FILE
    for other in folder.iterdir():
        if other.name.lower() == CONFIG_FILE and other.name != CONFIG_FILE:
            raise CoveError(
                "bad_config",
                f"{other.name} would be read on some machines and not on others",
                hint=f"call it {CONFIG_FILE}",
            )
    # A link could name any file of this machine, and its lines would come back in an error.
    if not path.is_file() or path.is_symlink():
        return ""
    with path.open("rb") as file:
        data = file.read(_MAX_CONFIG_BYTES + 1)
    if len(data) > _MAX_CONFIG_BYTES:
        raise CoveError(
            "bad_config",
            f"{CONFIG_FILE} is larger than {_MAX_CONFIG_BYTES // 1024**2} MiB",
            hint="keep what is no setting in files of its own",
        )
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise CoveError(
            "bad_config", f"{CONFIG_FILE} is not UTF-8: {error}", hint="save it as UTF-8"
        ) from error
