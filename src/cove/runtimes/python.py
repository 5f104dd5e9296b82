"""A Python source becomes layers and a command."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import re
import shlex
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.requirements import Requirement

from cove.errors import CoveError
from cove.model import FunctionSpec, Interpreter, Plan, Transport, literal
from cove.runtimes import bounded, interpreters, uv
from cove.runtimes.layers import Layers
from cove.runtimes.requirements import Requirements, declared
from cove.runtimes.source import Source

Progress = Callable[[str], None]

_SHELL = re.compile(r"[|&;<>()$`\n*?~{}!]|^\s*\w+=|(^|\s)#")
_SEVERAL = re.compile(r"[|&;<>()`\n{}!]|^\s*\w+=|^\s*(exec|cd|if|for|while|set|export)\b")
_FRAMEWORKS = ("fastapi", "starlette", "quart", "litestar")
_PATHS = {"http": "/mcp", "sse": "/sse"}
_ALONE = ("-I", "-S", "-W", "ignore")
_COMPILES_WITHIN = 120.0
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


async def plan(source: Source, layers: Layers, progress: Progress) -> tuple[FunctionSpec, Plan]:
    """Make a source's layers and say how it runs; the spec with what was found filled in.

    `progress` gets one line per step a person waits for; what was decided for them is in the
    plan's notes, for the caller to tell. Errors:
    `bad_source` for requirements that cannot be read and Pythons that are not there,
    `resolve_failed` with uv's own last lines.
    """
    spec = source.spec
    if spec.runtime == "command":
        code = await asyncio.to_thread(layers.add_tree, source.folder)
        return spec, Plan(_command(spec), _env(spec, None), code, None, None, source.notes)
    needs = settle(source, await asyncio.to_thread(declared, source))
    interpreter = await interpreters.find(spec.runtime, needs.python)
    if needs.origin:
        progress(f"dependencies from {needs.origin}")
    deps = await _dependencies(needs, interpreter, layers, progress)
    code = await asyncio.to_thread(layers.add_tree, source.folder)
    minor = ".".join(interpreter.version.split(".")[:2])
    spec = replace(spec, runtime=spec.runtime or f"python{minor}")
    notes = (*source.notes, *needs.notes)
    return spec, Plan(_argv(source), _env(spec, interpreter), code, deps, interpreter, notes)


def settle(source: Source, needs: Requirements) -> Requirements:
    """The requirements with what Cove adds, each addition with a note: an MCP SDK where none is
    asked for, `mcp<2` where the source needs the first one, uvicorn for a web object."""
    notes = list(needs.notes)
    lines, constraints = list(needs.lines), list(needs.constraints)
    speaks_v1 = next((str(m.path) for m in source.modules if m.speaks_v1), "")
    serves = any(module.serves_mcp for module in source.modules)
    why = f"{speaks_v1} needs the SDK's first version"
    if source.spec.kind == "mcp" and serves and not (needs.get("mcp") or needs.get("fastmcp")):
        # The package fastmcp brings its own mcp; asking for both could only contradict it.
        fastmcp = _imports(source, "fastmcp") and not speaks_v1
        lines.append("fastmcp" if fastmcp else "mcp<2" if speaks_v1 else "mcp")
        notes.append(_added(needs, "MCP SDK", lines[-1:]) + (f" ({why})" if speaks_v1 else ""))
    elif speaks_v1 and not _decided(needs.get("mcp")):
        constraints.append("mcp<2")
        notes.append(f"mcp is resolved as mcp<2: {why}")
    if source.spec.kind == "web" and source.is_object and not needs.get("uvicorn"):
        frameworks = [] if needs.origin else [f for f in _FRAMEWORKS if _imports(source, f)]
        sockets = ["websockets"] if any("ebSocket" in m.text for m in source.modules) else []
        lines += [*frameworks, "uvicorn", *sockets]
        notes.append(_added(needs, "uvicorn", [*frameworks, "uvicorn", *sockets]))
    return dataclasses.replace(
        needs, lines=tuple(lines), constraints=tuple(constraints), notes=tuple(notes)
    )


def _added(needs: Requirements, what: str, added: list[str]) -> str:
    lack = f"{needs.origin} names no {what}" if needs.origin else "no dependencies are declared"
    return f"{lack}: {' and '.join(added)} added"


def _imports(source: Source, package: str) -> bool:
    return any(
        name.split(".")[0] == package for module in source.modules for name in module.imports
    )


def _decided(asked: list[Requirement]) -> bool:
    """Whether the requirements say themselves which major version: by an upper bound, or by
    asking for more than the first one has."""
    upper = {"<", "<=", "==", "===", "~="}
    return any(
        each.url
        or any(part.operator in upper for part in each.specifier)
        or not each.specifier.contains("1.999")
        for each in asked
    )


async def _dependencies(
    needs: Requirements, interpreter: Interpreter, layers: Layers, progress: Progress
) -> str:
    """The layer with the resolved packages: a virtual environment, without any if none are asked
    for, so that `python` in a command is always there."""
    with tempfile.TemporaryDirectory(prefix="cove-resolve-") as folder:
        work = _Work(Path(folder), needs, interpreter)
        resolved = await work.resolve() if needs.lines else ""
        if resolved:
            progress(f"resolved {len(resolved.splitlines())} packages: {_told(needs, resolved)}")

        async def make(into: Path) -> None:
            progress("installing dependencies")
            await work.install(resolved, into)

        path, fresh = await layers.build(_layer_key(resolved, interpreter), make)
    if needs.lines and not fresh:
        progress("dependencies were installed before")
    return path


def _told(needs: Requirements, resolved: str) -> str:
    """The versions of what was asked for by name; what these brought along is not told."""
    asked = {Requirement(line).name.lower().replace("_", "-") for line in needs.lines}
    lines = [line.split(" ")[0] for line in resolved.splitlines()]
    return ", ".join(line for line in lines if line.partition("==")[0] in asked)


def _layer_key(resolved: str, interpreter: Interpreter) -> str:
    parts = (resolved, interpreter.executable, interpreter.version, sysconfig.get_platform())
    return "python-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


@dataclass(frozen=True, slots=True)
class _Work:
    """One resolution and the installation of what it found."""

    folder: Path
    needs: Requirements
    interpreter: Interpreter

    async def resolve(self) -> str:
        """One pinned requirement a line."""
        requirements = self._write("requirements.in", self.needs.lines)
        constraints = self._write("constraints.in", self.needs.constraints)
        compiled = await uv.run(
            [
                *("pip", "compile", requirements, "--constraints", constraints),
                *("--python", self.interpreter.executable, "--only-binary", ":all:"),
                *("--quiet", "--no-header", "--no-annotate", *self._indexes()),
            ]
        )
        return "".join(f"{line}\n" for line in compiled.splitlines() if line.strip())

    async def install(self, resolved: str, into: Path) -> None:
        """A relocatable environment in the folder `into`: it is mounted under another path."""
        await uv.run(
            [
                *("venv", str(into), "--python", self.interpreter.executable),
                *("--relocatable", "--no-project", "--allow-existing", "--quiet"),
            ]
        )
        python = into / "bin" / "python"
        if python.readlink() != Path(self.interpreter.executable):
            python.unlink()
            python.symlink_to(self.interpreter.executable)
        if not resolved:
            return
        pinned = self._write("resolved.txt", resolved.splitlines())
        await uv.run(
            [
                *("pip", "install", "--python", str(python), "--requirement", pinned),
                *("--no-deps", "--only-binary", ":all:", "--link-mode", "copy"),
                *("--no-compile-bytecode", "--quiet", *self._indexes()),
            ]
        )
        await self._compile(into)

    async def _compile(self, into: Path) -> None:
        """Bytecode for the layer, which its instances cannot write: first starts are faster by it.

        By the Python below the layer, and never the layer's own nor uv's `--compile-bytecode`,
        which starts that one: a Python runs the `.pth` files of its environment, and nothing
        that was deployed runs on the host.
        """
        command = [self.interpreter.executable, *_ALONE, "-m", "compileall", "-qq", "-j", "2"]
        # Files that do not compile are common, in tests and templates: they have no bytecode.
        with contextlib.suppress(TimeoutError):
            await bounded.run([*command, str(into / "lib")], {}, _COMPILES_WITHIN)

    def _indexes(self) -> list[str]:
        flags = [f"--index={url}" for url in self.needs.extra_indexes]
        if self.needs.index:
            flags.append(f"--default-index={self.needs.index}")
        if self.needs.extra_indexes:
            # requirements.txt is pip's format, and pip takes the best version of all indexes.
            flags.append("--index-strategy=unsafe-best-match")
        return flags

    def _write(self, name: str, lines: tuple[str, ...] | list[str]) -> str:
        path = self.folder / name
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        return str(path)


def _argv(source: Source) -> tuple[str, ...]:
    spec = source.spec
    if spec.command is not None:
        return _command(spec)
    assert spec.entry is not None
    python = "{deps}/bin/python"
    if not source.is_object:
        return (python, spec.entry)
    transport: Transport = spec.transport or "http"
    serve = [python, "{serve}", "--app", spec.entry, "--kind", spec.kind]
    if spec.kind == "mcp":
        serve += ["--transport", transport, "--path", literal(spec.path or _PATHS[transport])]
        serve += ["--body", str(spec.limits.body), "--session-idle", f"{spec.session.idle:g}"]
    if source.disarm:
        serve += ["--disarm", source.disarm]
    return tuple(serve)


def _command(spec: FunctionSpec) -> tuple[str, ...]:
    """The words of a command, or a shell where it says more than words can."""
    assert spec.command is not None
    command = literal(spec.command)
    if _SHELL.search(command):
        # One program with variables in its words replaces the shell, so that signals reach it.
        one = not _SEVERAL.search(command)
        return ("/bin/sh", "-c", f"exec {command}" if one else command)
    try:
        return tuple(shlex.split(command))
    except ValueError as error:
        raise CoveError(
            "bad_config", f"command = {spec.command!r}: {error}", hint="close the quotes"
        ) from error


def _env(spec: FunctionSpec, interpreter: Interpreter | None) -> dict[str, str]:
    env = {
        "PATH": _SYSTEM_PATH,
        "PORT": "{port}",
        "FASTMCP_HOST": "127.0.0.1",
        "FASTMCP_PORT": "{port}",
    }
    if interpreter is not None:
        env |= {
            "PATH": f"{{deps}}/bin:{_SYSTEM_PATH}",
            "VIRTUAL_ENV": "{deps}",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
    return env | {name: literal(value) for name, value in spec.env.items()}
