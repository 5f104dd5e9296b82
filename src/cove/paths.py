"""Where Cove keeps things unless told otherwise. Server and clients must agree on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from cove.errors import CoveError

KEY = "key"
URL = "url"


def default_data(env: Mapping[str, str] | None = None, uid: int | None = None) -> Path:
    """The data folder of this user: `/var/lib/cove` for root, else below XDG_DATA_HOME."""
    env = os.environ if env is None else env
    if (os.geteuid() if uid is None else uid) == 0:
        return Path("/var/lib/cove")
    # The XDG specification: a relative path there is invalid and to be ignored.
    base = Path(env.get("XDG_DATA_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".local" / "share") / "cove"


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
