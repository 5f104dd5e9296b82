"""What all bundles of a driver stand on: a tmpfs of its own, roots, and its control group.

Bundles and the runtime's state hold environments, and so secrets: on a tmpfs they are never on a
disk, and they vanish with a reboot, as the containers do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from cove.errors import CoveError
from cove.model import KIB
from cove.sandbox.cgroup import Cgroup, host_hierarchies
from cove.sandbox.ids import SLOTS
from cove.sandbox.layers import Layers
from cove.sandbox.mounts import below, is_tmpfs, mount_tmpfs, unmount
from cove.sandbox.rootfs import reachable

SIZE = SLOTS * 64 * KIB  # a bound: an instance takes some 50 KiB, and there are so many at most
CGROUP_PATIENCE = 2.0  # seconds for the kernel to let go of an empty cgroup


class Ground:
    """`found` says that an earlier driver's was there, with whatever it has left."""

    def __init__(self, state: Path, serve: Path | None, cgroup_parent: str) -> None:
        """Makes the folder and mounts the tmpfs, if they are not there. Blocks for a moment.

        `CoveError("isolation_unavailable")` where the mount is refused.
        """
        self._host = host_hierarchies()
        self.parent = self._host.group(cgroup_parent)
        self.limit_swap = self._host.limits_swap()
        state.mkdir(parents=True, exist_ok=True)
        self.state = state.resolve()
        self.found = is_tmpfs(str(self.state))
        if not self.found:
            _mount(self.state)
        self.roots = roots_for(self.state)
        self.bundles = self.state / "bundles"
        self.runtime = self.state / "runtime"
        for folder in (self.bundles, self.runtime):
            folder.mkdir(mode=0o700, exist_ok=True)
        self.serve = serve
        self.layers = Layers()

    def __repr__(self) -> str:
        return f"<Ground {self.state}>"

    def cgroup(self, ident: str) -> Cgroup:
        """An instance's."""
        return self._host.group(f"{self.parent.path}/{ident}")

    def leave(self) -> None:
        """Take all of it away. Nothing may stand on it any more. Blocks; idempotent."""
        self.parent.remove(CGROUP_PATIENCE)
        shutil.rmtree(self.roots, ignore_errors=True)
        if is_tmpfs(str(self.state)):
            unmount(str(self.state))
        for empty in (self.roots.parent, self.state):
            with contextlib.suppress(OSError):
                empty.rmdir()


def _mount(state: Path) -> None:
    """An empty folder becomes a tmpfs; what a driver without one has left there is removed."""
    for place in below(str(state)):
        unmount(place)
    for old in state.iterdir():
        shutil.rmtree(old, ignore_errors=True)
    try:
        # Skeletons lie within; what is not for other ids to see has a mode of its own.
        mount_tmpfs(str(state), SIZE, 0o711)
    except OSError as e:
        raise CoveError(
            "isolation_unavailable",
            f"no tmpfs can be mounted at {state} ({e.strerror}): what containers are started "
            "with, secrets too, would be on a disk",
            hint="run Cove with CAP_SYS_ADMIN, or with --driver process, which isolates nothing",
        ) from e


def roots_for(state: Path) -> Path:
    """The folder for skeletons, which ids other than root must be able to walk down to.

    Below `state`, or below /run where some folder above `state` is closed to them. Made here.
    """
    if reachable(str(state)):
        ways = [state / "roots"]
    else:
        # Not by `state` itself, which is another folder whenever something is mounted there.
        info = os.stat(state.parent)
        name = f"{info.st_dev:x}-{info.st_ino:x}-{state.name}"
        ways = [Path("/run/cove"), Path("/run/cove") / name]
    for way in ways:
        way.mkdir(exist_ok=True)
        way.chmod(0o711)
    return ways[-1]
