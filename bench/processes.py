"""What processes use as the kernel counts it: CPU time, memory, and who belongs to whom."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def parents() -> dict[int, int]:
    """Every process and its parent."""
    out = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                out[int(entry.name)] = int(_after_name(entry)[1])
    return out


def tree(root: int, without: Iterable[int] = ()) -> set[int]:
    """`root` and its descendants, leaving out `without` and theirs."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    cut, found, todo = set(without), set(), [root]
    while todo:
        pid = todo.pop()
        if pid not in cut:
            found.add(pid)
            todo.extend(children.get(pid, ()))
    return found


def cpu(pids: Iterable[int]) -> float:
    """CPU seconds these processes have used, user and system, all threads."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = _after_name(Path(f"/proc/{pid}"))
            total += (int(fields[11]) + int(fields[12])) / TICK
    return total


def pss(pids: Iterable[int]) -> int:
    """Bytes these processes hold, pages shared with others counted in proportion."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def pin(pids: Iterable[int], core: int) -> None:
    """Keep every thread of these processes on one core."""
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(task), {core})


def _after_name(proc: Path) -> list[str]:
    # the name may hold spaces and parentheses: fields count from its last one
    return (proc / "stat").read_text().rpartition(")")[2].split()
