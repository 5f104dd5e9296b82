"""Makes what a sandbox binds readable to the sandbox's user, without touching the files.

A layer that any user may read is bound as it is. One that is closed (a umask of 077) is
mounted through a mapping that shows its owner as the sandbox's user.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

from cove.errors import CoveError
from cove.sandbox.idmap import mount_as
from cove.sandbox.rootfs import unreadable
from cove.sandbox.spec import GID, UID, Bind

# Written by the system's packages for every user: not looked through at each start.
TRUSTED = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc")


class Layers:
    """Remembers which layers were found readable: they are immutable while they are in use."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], str | None] = {}

    def closed(self, source: str) -> str | None:
        """The first path below `source` that others may not read. Blocks when first asked."""
        if any(source == top or source.startswith(f"{top}/") for top in TRUSTED):
            return None
        info = os.stat(source)
        key = (source, info.st_ino, info.st_ctime_ns)
        if key not in self._known:
            self._known[key] = unreadable(source)
        return self._known[key]

    def open_up(
        self, binds: Iterable[Bind], folder: str, first_id: int, mounted: list[str]
    ) -> tuple[Bind, ...]:
        """The binds with closed sources replaced by mounts below `folder`.

        `mounted` receives each mount as it is made, for the caller to undo. Blocks.
        `CoveError("start_failed")` naming the closed path where it cannot be shown.
        """
        return tuple(self._opened(bind, folder, first_id, mounted) for bind in binds)

    def _opened(self, bind: Bind, folder: str, first_id: int, mounted: list[str]) -> Bind:
        shut = self.closed(bind.source)
        if shut is None:
            return bind
        place = f"{folder}/{len(mounted)}"
        try:
            if bind.folder:
                os.makedirs(place)
            else:
                os.makedirs(folder, exist_ok=True)
                open(place, "x").close()
            mount_as(bind.source, place, first_id + UID, first_id + GID)
        except OSError as e:
            raise CoveError(
                "start_failed",
                f"{shut} cannot be read by the sandbox's user, and this kernel or file system "
                f"cannot show it under another owner ({e.strerror or e})",
                hint=f"chmod -R o+rX {bind.source}",
            ) from e
        mounted.append(place)
        return replace(bind, source=place)
