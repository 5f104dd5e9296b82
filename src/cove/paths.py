"""Where Cove keeps things unless told otherwise. Server and clients must agree on it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

KEY = "key"
URL = "url"
SECRETS_KEY = "secrets.key"


def default_data(env: Mapping[str, str] | None = None, uid: int | None = None) -> Path:
    """The data folder of this user: `/var/lib/cove` for root, else below XDG_DATA_HOME."""
    env = os.environ if env is None else env
    if (os.geteuid() if uid is None else uid) == 0:
        return Path("/var/lib/cove")
    # The XDG specification: a relative path there is invalid and to be ignored.
    base = Path(env.get("XDG_DATA_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".local" / "share") / "cove"
