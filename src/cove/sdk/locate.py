"""Where the server is and which key it takes, from options, environment and data folder.

URL: the option, `COVE_URL`, the `url` file of a data folder that was named (a running server
writes it there), the default. Key: `COVE_KEY`, the `key` file of the data folder. Data
folder: the option, `COVE_DATA`, the default one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cove.paths import KEY, URL, default_data

DEFAULT_URL = "http://127.0.0.1:7070"


@dataclass(frozen=True, slots=True)
class Location:
    """A server's URL and the key for it. `missing` says why there is no key, if there is none."""

    url: str
    key: str | None = field(repr=False)
    data: Path
    missing: str = ""


def locate(
    url: str | None = None, data: str | Path | None = None, env: Mapping[str, str] | None = None
) -> Location:
    """The server that these options and this environment mean."""
    env = os.environ if env is None else env
    named = data or env.get("COVE_DATA")
    folder = Path(named).expanduser().absolute() if named else default_data(env)
    found = url or env.get("COVE_URL")
    if not found and named:
        found, _ = _read(folder / URL)
    key, missing = env.get("COVE_KEY"), ""
    if not key:
        key, missing = _read(folder / KEY)
    return Location(_whole(found or DEFAULT_URL), key or None, folder, missing)


def _whole(url: str) -> str:
    return (url if "://" in url else f"http://{url}").rstrip("/")


def _read(path: Path) -> tuple[str, str]:
    """The file's text, else an empty one and why."""
    try:
        return path.read_text("utf-8").strip(), ""
    except FileNotFoundError:
        return "", f"there is no {path}"
    except (OSError, UnicodeDecodeError) as fault:
        return "", f"{path} cannot be read: {getattr(fault, 'strerror', None) or fault}"
