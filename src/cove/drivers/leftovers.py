"""What an earlier driver left on its ground: told apart by what the kernel says, not by files.

An id is whole where the first process that its record names is in its control group, is number 1
of a pid namespace, and is in a network namespace of its own. All else that has the id is remains.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from cove.drivers.bundle import Bundle
from cove.drivers.ground import Ground
from cove.drivers.held import hold_same
from cove.drivers.procfs import first_id, pid_inside, processes, settle, user_of, words
from cove.drivers.record import Record, boot_id, read_record
from cove.sandbox.mounts import Mount, below, mounts
from cove.sandbox.netns import NetworkNamespace

PATIENCE = 5.0  # seconds for a killed runtime to be gone


@dataclass(frozen=True, slots=True)
class Whole:
    """An instance that can be adopted, held open."""

    bundle: Bundle
    pidfd: int


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Instances that run whole, and the remains of all other ids."""

    whole: list[Whole]
    remains: list[Bundle]


def leftovers(ground: Ground) -> Leftovers:
    """Look. Ends runtimes that were still at work, and nothing else. Blocks."""
    _end_runtimes(ground.runtime)
    for draft in ground.roots.glob(".draft-*"):
        shutil.rmtree(draft, ignore_errors=True)
    found = Leftovers([], [])
    mounted, boot = mounts(), boot_id()
    for ident in sorted(_ids(ground)):
        whole = _whole(ground, ident, mounted, boot)
        if whole is not None:
            found.whole.append(whole)
        else:
            found.remains.append(_bundle(ground, Record(ident, "", 0, 0, 0.0, 0), mounted))
    return found


def _ids(ground: Ground) -> set[str]:
    found = ground.parent.children()
    for folder in (ground.bundles, ground.runtime):
        found.update(os.listdir(folder))
    return found


def _bundle(
    ground: Ground,
    record: Record,
    mounted: list[Mount],
    netns: NetworkNamespace | None = None,
) -> Bundle:
    folder = str(ground.bundles / record.id)
    # As they were made: what was mounted last is taken away first.
    return Bundle(ground, record, netns=netns, mounted=below(folder, mounted)[::-1])


def _whole(ground: Ground, ident: str, mounted: list[Mount], boot: str) -> Whole | None:
    record = read_record(ground.bundles / ident)
    if record is None or record.boot != boot:
        return None
    group = ground.cgroup(ident)
    if record.pid not in group.pids():
        return None
    pidfd = hold_same(record.pid, record.started)
    if pidfd is None:
        return None
    netns: NetworkNamespace | None = None
    with contextlib.suppress(OSError):
        netns = NetworkNamespace(of=record.pid)
        # All of this is the held process's if it is there still, and in its group.
        if (
            pid_inside(record.pid) == 1
            and first_id(record.pid) == record.first_id
            and record.pid in group.pids()
            and _same(record)
        ):
            group.thaw()
            return Whole(_bundle(ground, record, mounted, netns), pidfd)
    if netns is not None:
        netns.close()
    os.close(pidfd)
    return None


def _same(record: Record) -> bool:
    again = hold_same(record.pid, record.started)
    if again is not None:
        os.close(again)
    return again is not None


def _end_runtimes(root: Path) -> None:
    """A runtime outlives the Cove that called it, and would go on making what is being removed."""
    settle()
    for one in processes():
        if not _works_on(one.pid, root):
            continue
        pidfd = hold_same(one.pid, one.started)
        if pidfd is None:
            continue
        try:
            if _works_on(one.pid, root):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                poll.poll(PATIENCE * 1000)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)


def _works_on(pid: int, root: Path) -> bool:
    """Whether a process is a runtime of Cove's user, called for containers of this root."""
    return words(pid)[1:3] == ["--root", str(root)] and user_of(pid) == os.geteuid()
