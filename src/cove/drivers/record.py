"""What a driver must remember of an instance to adopt it, in a small file beside it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cove.drivers.base import Launch

RECORD = "record.json"


@dataclass(frozen=True, slots=True)
class Record:
    """An instance without its command, environment and secrets. `cpu` is cores, `memory` bytes.

    `first_id` is the first of its host ids where it has some of its own. `pid`, `started` (clock
    ticks since boot) and `boot` say together which process is its first: they are known, and the
    record is written, when its start has come to an end. Whatever has no record is half made.
    """

    id: str
    function: str
    version: int
    port: int
    cpu: float
    memory: int
    first_id: int = 0
    pid: int = 0
    started: int = 0
    boot: str = ""

    @classmethod
    def of(cls, launch: Launch, *, port: int, first_id: int = 0) -> Record:
        return cls(
            id=launch.id,
            function=launch.function,
            version=launch.version,
            port=port,
            cpu=launch.limits.cpu,
            memory=launch.limits.memory,
            first_id=first_id,
        )

    def write(self, folder: Path) -> None:
        """Put it into an instance's folder, whole or not at all, whenever this process ends."""
        aside = folder / f".{RECORD}"
        aside.write_text(json.dumps(asdict(self)))
        aside.rename(folder / RECORD)


def read_record(folder: Path) -> Record | None:
    """The record in an instance's folder; None if there is none, or none that can be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        said = json.loads((folder / RECORD).read_text())
        record = Record(
            id=str(said["id"]),
            function=str(said["function"]),
            version=int(said["version"]),
            port=int(said["port"]),
            cpu=float(said["cpu"]),
            memory=int(said["memory"]),
            first_id=int(said["first_id"]),
            pid=int(said["pid"]),
            started=int(said["started"]),
            boot=str(said["boot"]),
        )
        if record.id == folder.name:
            return record
    return None


def boot_id() -> str:
    """Which boot of this machine this is; empty where the kernel does not say."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as f:
        return f.read().strip()
    return ""
