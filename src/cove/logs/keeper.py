"""The keeper: a small process that holds instances' output while no Cove reads it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cove.clock import now
from cove.logs import keep

PROGRAM = Path(keep.__file__)
_PATIENCE = 0.5


class Keeper:
    """Starts the keeper of a folder of fifos where none is, and tells it what to hold.

    Its commands go through a fifo too: what was written to it is obeyed even if this process
    ends at once. Calls do not wait.
    """

    def __init__(self, folder: Path, alive: Path) -> None:
        """`folder` is made; `alive` is a file that this process has locked (`living`)."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._alive = alive
        self._child: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(FileExistsError):
            os.mkfifo(folder / keep.CONTROL, 0o600)
        self._control = os.open(folder / keep.CONTROL, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.look()

    def __repr__(self) -> str:
        return f"<Keeper of {self._folder}>"

    def hold(self, name: str) -> None:
        """Have a fifo of the folder held from now on."""
        self._tell(keep.HOLD + name.encode())

    def drop(self, name: str) -> None:
        """What it still has may be forgotten."""
        self._tell(keep.DROP + name.encode())

    def _tell(self, command: bytes) -> None:
        # Full only where the keeper is gone; the next one looks at the folder itself.
        with contextlib.suppress(OSError):
            os.write(self._control, command + b"\n")

    def look(self) -> None:
        """Start a keeper if there is none: it may have been killed, or be the last Cove's."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None
        if self._child is None and not self.lives():
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", str(PROGRAM), str(self._folder), str(self._alive)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={},
                start_new_session=True,
            )

    def lives(self) -> bool:
        """Whether some process keeps this folder."""
        lock = os.open(self._folder / keep.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(lock)
        return False

    def close(self) -> None:
        """No more commands; a keeper that holds nothing ends now. Blocks for some milliseconds."""
        self._tell(keep.END)
        deadline = now() + _PATIENCE
        while self._child is not None and self._child.poll() is None and now() < deadline:
            time.sleep(0.002)
        os.close(self._control)


@contextlib.contextmanager
def living(alive: Path) -> Iterator[None]:
    """Show keepers that a Cove is there, for as long as the block lasts. Blocks for a moment."""
    lock = os.open(alive, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
