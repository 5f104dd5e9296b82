"""The machine that was measured on, without anything that names it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


def describe() -> list[str]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    packages = ", ".join(f"{name} {version(name)}" for name in ("uvloop", "httptools", "mcp"))
    load = f"load {os.getloadavg()[0]:.1f} before"
    # a kernel's local suffix may name a fleet or a host
    kernel = platform.release().partition("-")[0]
    return [
        f"- {model}, {os.cpu_count()} cores, {memory:.0f} GiB, {load}",
        f"- Linux {kernel}, Python {platform.python_version()}, {packages}",
        f"- {_first_line('nginx', '-v')}; {_first_line('wrk', '-v')}; {_runtimes()}",
    ]


def _first_line(*command: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True)
    line = (ran.stdout + ran.stderr).strip().splitlines()[0]
    return line.partition(" Copyright")[0].removeprefix("nginx version: ")


def _runtimes() -> str:
    found = []
    for name in ("crun", "runc"):
        try:
            found.append(_first_line(name, "--version"))
        except FileNotFoundError:
            continue
    return ", ".join(found) or "no OCI runtime"
