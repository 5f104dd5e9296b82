"""What a Cove has on this machine, thing by thing, and whose each is: an instance's or nobody's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from chaos.server import Server
from cove.server.tiers import cgroup_parent

PATIENCE = 8.0
"""Seconds in which what is on its way out must be gone."""

_OWN = {
    "alive",
    "api.sock",
    "deploys",
    "oci",
    "output",
    "process",
    "tmp",
    ".control",
    ".keeper",
    "bundles",
    "runtime",
    "roots",
}


@dataclass(frozen=True)
class Trace:
    """A thing, and the name that says whose it is."""

    kind: str
    what: str


class Ground:
    """Where a server leaves traces. `parent` is its control group's name, as long as it lives."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.data = str(server.data)
        self.parent = cgroup_parent(server.data)

    def traces(self) -> Iterator[Trace]:
        """Everything that is there, but what Cove itself is."""
        yield from self._processes()
        yield from self._mounts()
        yield from self._groups()
        yield from self._loops()
        yield from self._sockets()
        yield from self._files()

    def _processes(self) -> Iterator[Trace]:
        keepers = 0
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                groups = (process / "cgroup").read_text()
                known = self.data in words or self.parent in groups
                known = known or self.data.encode() in (process / "environ").read_bytes()
            except OSError:
                continue
            pid = int(process.name)
            if not known or pid in (os.getpid(), self.server.pid):
                continue
            if "keep.py" in words and not keepers:
                keepers += 1  # one, that is Cove's
                continue
            state, parent, session = _state(process)
            if state == "Z" and parent != str(self.server.pid):
                continue  # it has ended, and is init's to bury
            group = next((g for g in groups.split() if self.parent in g), "")
            named = f"{pid} of session {session}, {group.rpartition('/')[2]}"
            yield Trace("process", f"{named} {words[:120]}")

    def _mounts(self) -> Iterator[Trace]:
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            place = line.split()[4]
            if self.data in line and place != f"{self.data}/run/oci":
                yield Trace("mount", place)

    def _groups(self) -> Iterator[Trace]:
        for group in self._group_folders():
            yield Trace("cgroup", str(group))

    def _group_folders(self) -> Iterator[Path]:
        """The groups of single instances, in every hierarchy that there is."""
        top = Path("/sys/fs/cgroup")
        for hierarchy in (top, *_listed(top)):
            yield from (path for path in _listed(hierarchy / self.parent) if path.is_dir())

    def _loops(self) -> Iterator[Trace]:
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            file = backing.read_text().strip()
            if self.data in file:
                yield Trace("loop device", f"{backing.parts[3]} {file}")

    def _sockets(self) -> Iterator[Trace]:
        seen: set[str] = set()
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
            path = line.split()[7] if len(line.split()) > 7 else ""
            if not path.startswith((self.data, str(self.server.temporary))):
                continue
            listens = int(line.split()[3], 16) & 0x10000  # as the kernel's __SO_ACCEPTCON
            if listens and (path in seen or Path(path).name not in _OWN):
                yield Trace("socket", path)
            seen |= {path} if listens else set()

    def _files(self) -> Iterator[Trace]:
        run = self.server.data / "run"
        for folder in (run, run / "output", run / "oci", run / "oci/bundles", run / "oci/runtime"):
            for path in _listed(folder):
                if path.name not in _OWN and not path.name.startswith("sessions.log"):
                    yield Trace("file", str(path))
        uploads = self.server.data / "uploads"
        for folder in (run / "deploys", run / "tmp", uploads, self.server.temporary):
            yield from (Trace("folder", str(path)) for path in _listed(folder))
        for path in _listed(self.server.data / "layers"):
            if path.name.startswith("."):
                yield Trace("folder", str(path))

    def namespaces(self) -> set[str]:
        """The network namespaces that the server has open, and that instances are in."""
        found: set[str] = set()
        for descriptor in _listed(Path(f"/proc/{self.server.pid}/fd")):
            try:
                target = os.readlink(descriptor)
            except OSError:
                continue
            if target.startswith("net:"):
                found.add(target)
        return found

    def inhabited(self) -> set[str]:
        """The network namespaces of processes in the server's control groups."""
        found: set[str] = set()
        for group in self._group_folders():
            with contextlib.suppress(OSError):
                for pid in (group / "cgroup.procs").read_text().split():
                    found.add(os.readlink(f"/proc/{pid}/ns/net"))
        return found


async def strays(ground: Ground, instances: Callable[[], Awaitable[set[str]]]) -> list[Trace]:
    """What belongs to no instance, looked at again until it is gone or has stayed too long.

    `instances` says by which words in its name a thing is an instance's.
    """
    deadline = time.monotonic() + PATIENCE
    stayed: set[Trace] | None = None
    while True:
        before = await instances()
        found = await asyncio.to_thread(lambda: set(ground.traces()))
        found |= await asyncio.to_thread(_empty_namespaces, ground)
        ids = before | await instances()
        strange = {each for each in found if not any(ident in each.what for ident in ids)}
        stayed = strange if stayed is None else stayed & strange
        if not stayed:
            return []
        if time.monotonic() > deadline:
            return sorted(stayed, key=lambda each: (each.kind, each.what))
        await asyncio.sleep(0.2)


def _empty_namespaces(ground: Ground) -> set[Trace]:
    """A namespace that the server holds and in which nobody is."""
    return {Trace("network namespace", each) for each in ground.namespaces() - ground.inhabited()}


def _state(process: Path) -> tuple[str, str, str]:
    """A process's state, as proc(5) has it, its parent's id and its session's."""
    try:
        words = (process / "stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return "", "", ""
    return words[0], words[1], words[3]


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
