"""Control groups on hosts with v1, v2, or both: limits, what was used, and who is inside.

The OCI runtime makes an instance's group; this reads it, throttles it and sweeps it away.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from cove.sandbox.mounts import parse_mounts

PERIOD = 100_000  # microseconds over which a CPU quota is counted, the kernel's default
SMALLEST_QUOTA = 1_000  # the kernel's least

Mode = Literal["v1", "v2", "hybrid", "none"]


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """Where this host's hierarchies are mounted: v1 ones by controller, and the v2 one."""

    v1: Mapping[str, str]
    v2: str | None

    @property
    def mode(self) -> Mode:
        if self.v1:
            return "hybrid" if self.v2 else "v1"
        return "v2" if self.v2 else "none"

    @property
    def mounts(self) -> list[str]:
        return sorted({*self.v1.values(), *([self.v2] if self.v2 else [])})

    def limits_swap(self) -> bool:
        """Whether the kernel accounts swap, and so takes a limit on it."""
        if "memory" in self.v1:
            return os.path.exists(f"{self.v1['memory']}/memory.memsw.limit_in_bytes")
        if self.v2 is None:
            return False
        # The root group has no such file; any other group has it where swap is accounted.
        with os.scandir(self.v2) as entries:
            return any(os.path.exists(f"{entry.path}/memory.swap.max") for entry in entries)

    def group(self, path: str) -> Cgroup:
        return Cgroup(self, path.strip("/"))


def hierarchies(mountinfo: str) -> Hierarchies:
    """Read from the text of /proc/self/mountinfo (proc(5))."""
    v1: dict[str, str] = {}
    v2: str | None = None
    for one in parse_mounts(mountinfo):
        if one.kind == "cgroup2" and v2 is None:
            v2 = one.target
        elif one.kind == "cgroup":
            for option in one.options:
                if option not in ("rw", "ro", "xattr"):
                    v1.setdefault(option.removeprefix("name="), one.target)
    return Hierarchies(v1, v2)


def host_hierarchies() -> Hierarchies:
    """This host's, now."""
    with open("/proc/self/mountinfo") as f:
        return hierarchies(f.read())


class Cgroup:
    """One group by its path within each hierarchy. Missing files read as nothing used."""

    def __init__(self, host: Hierarchies, path: str) -> None:
        self._host = host
        self.path = path

    def __repr__(self) -> str:
        return f"<Cgroup /{self.path} {self._host.mode}>"

    def _folder(self, controller: str) -> tuple[str, bool]:
        """The folder that has a controller's files, and whether they are v2's."""
        if controller in self._host.v1:
            return f"{self._host.v1[controller]}/{self.path}", False
        return f"{self._host.v2}/{self.path}", True

    def folders(self) -> list[str]:
        """Every folder of this group that exists."""
        paths = (f"{mount}/{self.path}" for mount in self._host.mounts)
        return [path for path in paths if os.path.isdir(path)]

    def throttle(self, cpu: float) -> None:
        """Allow `cpu` cores from now on. Does nothing for a group that is gone.

        Nor where a group above allows less: the kernel refuses more, and that limit holds.
        """
        folder, v2 = self._folder("cpu")
        quota = max(int(cpu * PERIOD), SMALLEST_QUOTA)
        with contextlib.suppress(OSError):
            if v2:
                _write(f"{folder}/cpu.max", f"{quota} {PERIOD}")
            else:
                _write(f"{folder}/cpu.cfs_period_us", str(PERIOD))
                _write(f"{folder}/cpu.cfs_quota_us", str(quota))

    def cpu_seconds(self) -> float:
        """CPU used since the group was made."""
        folder, v2 = self._folder("cpuacct")
        if v2:
            return _table(f"{folder}/cpu.stat").get("usage_usec", 0) / 1e6
        return _number(f"{folder}/cpuacct.usage") / 1e9

    def memory_bytes(self) -> int:
        """Memory charged to the group now."""
        folder, v2 = self._folder("memory")
        return _number(f"{folder}/{'memory.current' if v2 else 'memory.usage_in_bytes'}")

    def oom_kills(self) -> int:
        """How many of its processes the kernel killed for want of memory."""
        folder, v2 = self._folder("memory")
        return _table(f"{folder}/{'memory.events' if v2 else 'memory.oom_control'}").get(
            "oom_kill", 0
        )

    def pids(self) -> list[int]:
        """Its processes and those of groups below it, as the host numbers them."""
        found: set[int] = set()
        for folder in self.folders():
            for path in _depth_first(folder):
                with contextlib.suppress(OSError), open(f"{path}/cgroup.procs") as f:
                    found.update(int(line) for line in f)
        return sorted(found)

    def children(self) -> set[str]:
        """Names of the groups right below it."""
        found: set[str] = set()
        for folder in self.folders():
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                found.update(entry.name for entry in entries if entry.is_dir())
        return found

    def thaw(self) -> None:
        """Let its processes run: what version 1 has frozen does not even die of SIGKILL."""
        folder, v2 = self._folder("freezer")
        with contextlib.suppress(OSError):
            if v2:
                _write(f"{folder}/cgroup.freeze", "0")
            else:
                _write(f"{folder}/freezer.state", "THAWED")

    def kill(self, wait: float) -> bool:
        """SIGKILL until it is empty; whether it is, after `wait` seconds. Blocks."""
        deadline = time.monotonic() + wait
        while pids := self.pids():
            if time.monotonic() >= deadline:
                return False
            self.thaw()
            self._kill_once(pids)
            time.sleep(0.002)
        return True

    def _kill_once(self, pids: list[int]) -> None:
        held: dict[int, int] = {}
        try:
            for pid in pids:
                with contextlib.suppress(OSError):
                    held[pid] = os.pidfd_open(pid)
            # Who is in the group now is in it under the number that is held.
            for pid in held.keys() & set(self.pids()):
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(held[pid], signal.SIGKILL)
        finally:
            for pidfd in held.values():
                os.close(pidfd)

    def remove(self, wait: float = 0.0) -> bool:
        """Remove its folders, children first; whether all are gone after `wait` seconds.

        Blocks. A group stays busy for a moment after its last process has ended.
        """
        deadline = time.monotonic() + wait
        while not self._removed_once():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.002)
        return True

    def _removed_once(self) -> bool:
        gone = True
        for folder in self.folders():
            for path in _depth_first(folder):
                try:
                    os.rmdir(path)
                except OSError as e:
                    gone = gone and e.errno == errno.ENOENT
        return gone


def _depth_first(folder: str) -> Iterator[str]:
    for path, _, _ in os.walk(folder, topdown=False):
        yield path


def _write(path: str, text: str) -> None:
    with open(path, "w") as f:
        f.write(text)


def _number(path: str) -> int:
    try:
        with open(path) as f:
            return int(f.read())
    except (OSError, ValueError):
        return 0


def _table(path: str) -> dict[str, int]:
    """`name number` lines; empty where the file is not."""
    try:
        with open(path) as f:
            pairs = (line.split() for line in f)
            return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
    except (OSError, ValueError):
        return {}
