"""The Pythons of this machine that functions may run on. None is ever downloaded."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys

from packaging.specifiers import SpecifierSet

from cove.errors import CoveError
from cove.model import Interpreter
from cove.runtimes import uv

_ASK = """
import json, os, platform, sys
executable = getattr(sys, "_base_executable", None) or sys.executable
print(json.dumps([
    os.path.realpath(executable), os.path.realpath(sys.base_prefix), platform.python_version()
]))
"""
_ANSWERS_WITHIN = 30.0


async def find(runtime: str | None, requires: str) -> Interpreter:
    """The Python for `runtime` ("python3.12"); without one, that of Cove itself where `requires`
    (a version specifier, may be empty) allows it, else the first that it allows.

    `CoveError("bad_source")` with those that were found, where none fits.
    """
    own = _own()
    wanted = runtime.removeprefix("python") if runtime else ""
    if wanted in {"", _minor(own.version)}:
        if SpecifierSet(requires).contains(own.version, prereleases=True):
            return own
        wanted = wanted or requires
    try:
        path = await uv.run(["python", "find", wanted, "--system", "--no-project"])
    except CoveError as error:
        raise await _missing(f"Python {wanted}") from error
    found = await _ask(path.strip())
    if not SpecifierSet(requires).contains(found.version, prereleases=True):
        raise await _missing(f"Python {requires}, which the source requires, as {runtime}")
    return found


def _own() -> Interpreter:
    executable = getattr(sys, "_base_executable", None) or sys.executable
    return Interpreter(
        os.path.realpath(executable), os.path.realpath(sys.base_prefix), platform.python_version()
    )


async def _ask(executable: str) -> Interpreter:
    """What an interpreter says of itself: shims and links lead to the real one."""
    process = await asyncio.create_subprocess_exec(
        executable,
        "-I",
        "-c",
        _ASK,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd="/",
    )
    try:
        async with asyncio.timeout(_ANSWERS_WITHIN):
            out, _ = await process.communicate()
        real, prefix, version = json.loads(out)
    except (TimeoutError, ValueError) as error:
        raise CoveError(
            "bad_source",
            f"{executable} does not answer as a Python should",
            hint="name another in cove.toml: runtime",
        ) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Interpreter(real, prefix, version)


async def _missing(what: str) -> CoveError:
    listing = await uv.run(["python", "list", "--only-installed", "--output-format", "json"])
    found = {_minor(each["version"]) for each in json.loads(listing)} | {_minor(_own().version)}
    names = ", ".join(f"python{version}" for version in sorted(found, key=_order))
    return CoveError(
        "bad_source",
        f"{what} is not on this machine",
        hint=f"install it, or write runtime as one of those found: {names}",
    )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _order(minor: str) -> tuple[int, ...]:
    return tuple(int(part) for part in minor.split(".") if part.isdigit())
