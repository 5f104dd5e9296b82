"""The last resort: whatever a campaign comes to, nothing that it started outlives it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from chaos.server import Server
from cove.server.tiers import cgroup_parent

_PATIENCE = 10.0


def sweep(server: Server) -> None:
    """End the server and all that is its. After a clean stop there is nothing to do."""
    if server.running:
        server.process and server.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process and server.process.wait(_PATIENCE)
        if server.running:
            server.kill()
    if not server.data.exists():
        return
    parent = cgroup_parent(server.data)
    deadline = time.monotonic() + _PATIENCE
    while (left := _processes(server, parent)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    for place in reversed(_mounts(server)):
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)
    for group in sorted(Path("/sys/fs/cgroup").glob(f"*/{parent}/**/"), reverse=True):
        with contextlib.suppress(OSError):
            group.rmdir()


def _processes(server: Server, parent: str) -> list[int]:
    """Those in the server's control groups, and its keeper."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if parent in (process / "cgroup").read_text() or str(server.data).encode() in words:
                found.append(int(process.name))
    return [pid for pid in found if pid != os.getpid()]


def _mounts(server: Server) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if str(server.data) in line]
