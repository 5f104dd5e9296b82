"""uv, which resolves and installs: run in a process group of its own, with pip's configuration."""

from __future__ import annotations

import configparser
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from uv import find_uv_bin

from cove.errors import CoveError
from cove.runtimes import bounded

TIMEOUT = "COVE_BUILD_TIMEOUT"
"""The variable that says how many seconds one resolution or installation may take."""

_TIMEOUT = 300.0

_OURS = {
    "UV_PYTHON_DOWNLOADS": "never",
    "UV_NO_PROGRESS": "1",
    "NO_COLOR": "1",
}
_NOT_OURS = frozenset(
    {
        *("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "UV_PROJECT"),
        # uv would start a layer's own Python, and with it what was deployed.
        "UV_COMPILE_BYTECODE",
    }
)
_TAIL = 20
_PYENV = ".pyenv"


def bound(environ: Mapping[str, str]) -> float:
    """Seconds that one run may take. `bad_config` where the operator said no such number."""
    said = environ.get(TIMEOUT, "") or str(_TIMEOUT)
    try:
        seconds = float(said)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise CoveError(
            "bad_config",
            f"{TIMEOUT}={said} is no number of seconds",
            hint="start Cove without it, or with a number up to 86400",
        )
    return seconds


async def run(args: Sequence[str]) -> str:
    """uv's stdout. `CoveError("resolve_failed")` with its last lines, also after `bound`.

    A cancelled run leaves no process behind.
    """
    timeout = bound(os.environ)
    command = [find_uv_bin(), *args]
    env = environment(os.environ, pip_settings(os.environ))
    try:
        finished = await bounded.run(command, env, timeout)
    except TimeoutError:
        raise CoveError(
            "resolve_failed",
            f"the dependencies were not resolved and installed within {timeout:g} s",
            hint="is the package index reachable from this machine, and quick? Then deploy again; "
            f"the operator can give it longer with {TIMEOUT}",
        ) from None
    if finished.code:
        raise _failure(finished.err)
    return finished.out


def _failure(text: str) -> CoveError:
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    said = " ".join(text.split()).lower()
    if "no usable wheels" in said or "building source distributions" in said or "no wheels" in said:
        hint = (
            "wheels only until builds are sandboxed: ask for a version that has a wheel for "
            "this Python and platform, or do without the package"
        )
    elif "not found in the package registry" in said or "no versions of" in said:
        hint = "is the name spelt right, and does the index have that version?"
    elif "unsatisfiable" in said:
        hint = "the requirements contradict each other: relax the ones named above"
    elif "no space left" in said or "disk quota" in said:
        hint = "the disk is full: free space on this machine, then deploy again"
    elif any(
        word in said for word in ("connect", "dns", "timed out", "certificate", "sending request")
    ):
        hint = "can this machine reach its package index? pip's configuration and UV_* are used"
    else:
        hint = "uv's own words are above"
    return CoveError(
        "resolve_failed", "the dependencies could not be installed", hint=hint, lines=lines[-_TAIL:]
    )


def environment(environ: Mapping[str, str], pip: Mapping[str, str]) -> dict[str, str]:
    """uv's environment: Cove's own, without what would point uv elsewhere, and pip's settings
    said in uv's words wherever no UV_* variable says otherwise. Pure but for looking whether
    local folders exist."""
    env = {name: value for name, value in environ.items() if name not in _NOT_OURS}
    said: dict[str, str] = {}
    if index := pip.get("index-url"):
        said["UV_DEFAULT_INDEX"] = index
    if extra := _present(pip.get("extra-index-url", "")):
        said["UV_INDEX"] = " ".join(extra)
        # pip takes the best version of all indexes; whoever configured pip counts on that.
        said["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if links := _present(pip.get("find-links", "")):
        said["UV_FIND_LINKS"] = ",".join(links)
    if hosts := pip.get("trusted-host", "").split():
        said["UV_INSECURE_HOST"] = " ".join(hosts)
    cert = pip.get("cert", "")
    if cert and Path(cert).exists():
        said["SSL_CERT_FILE"] = cert
    given = set(environ)
    if given & {"UV_INDEX_URL", "UV_EXTRA_INDEX_URL"}:
        given |= {"UV_DEFAULT_INDEX", "UV_INDEX"}
    env.update({name: value for name, value in said.items() if name not in given})
    env["PATH"] = os.pathsep.join([env.get("PATH", os.defpath), *_pyenv(environ)])
    return env | _OURS


def pip_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """pip's own configuration, later sources over earlier: its files, then PIP_* variables."""
    settings: dict[str, str] = {}
    for path in _pip_files(environ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, "utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            # pip would stop here; a broken file of another tool must not stop a deploy.
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                settings.update(parser.items(section))
    for name, value in environ.items():
        if name.startswith("PIP_"):
            settings[name[4:].lower().replace("_", "-")] = value
    return settings


def _pip_files(environ: Mapping[str, str]) -> Iterator[Path]:
    """pip's documented locations on Unix, in its order."""
    only = environ.get("PIP_CONFIG_FILE")
    if only == os.devnull:
        return
    home = Path(environ.get("HOME") or Path.home())
    for folder in reversed(environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep)):
        yield Path(folder) / "pip" / "pip.conf"
    yield Path("/etc/pip.conf")
    yield home / ".pip" / "pip.conf"
    yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
    if only:
        yield Path(only)


def _present(words: str) -> list[str]:
    """The addresses of a list, without local folders that do not exist, which uv would refuse."""
    kept = []
    for word in words.split():
        parts = urlsplit(word)
        local = unquote(parts.path) if parts.scheme == "file" else "" if parts.scheme else word
        if not local or Path(local).expanduser().exists():
            kept.append(word)
    return kept


def _pyenv(environ: Mapping[str, str]) -> list[str]:
    """Where pyenv keeps Pythons: its shims on PATH answer for the chosen versions only."""
    root = Path(environ.get("PYENV_ROOT") or Path(environ.get("HOME") or Path.home()) / _PYENV)
    try:
        return sorted((str(path) for path in root.glob("versions/3.*/bin")), reverse=True)
    except OSError:
        return []  # another user's
