"""The data folder: one Cove at a time has it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from cove.errors import CoveError


@contextlib.contextmanager
def hold(data: Path) -> Iterator[None]:
    """Make the data folder and keep others off it; `conflict` where another Cove has it."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o755)
        lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CoveError(
            "bad_config",
            f"the data folder {data} cannot be used: {error.strerror}",
            hint="choose another with --data or COVE_DATA",
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise CoveError(
            "conflict",
            f"another Cove runs on the data folder {data}",
            hint="stop it, or choose another folder with --data",
        ) from error
    try:
        yield
    finally:
        os.close(lock)
