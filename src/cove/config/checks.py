"""What a value may be: a check returns the value as Cove keeps it, or says what is right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from cove.config.secret import wrong_secret_name
from cove.model import GIB, KIB, MIB, Affinity, AffinityKind

Check = Callable[[Any], Any]

DAY = 86400.0
MOST_SECRETS = 64
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}
_BYTES = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1024 * GIB}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OBJECT = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_PROGRAM = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*\.py")


class BadValueError(Exception):
    """What a value must be; says nothing of the key, which the caller knows.

    `hint` stands where the value itself would be shown.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class NotBuiltError(Exception):
    """A value of the design that this version of Cove does not have."""


def one_of(*values: str, later: tuple[str, ...] = ()) -> Check:
    def check(value: Any) -> Any:
        if value in values:
            return value
        if isinstance(value, str) and value in later:
            raise NotBuiltError
        near = difflib.get_close_matches(str(value), values, 1)
        also = f"; did you mean {near[0]!r}?" if near else ""
        raise BadValueError("must be " + " or ".join(repr(v) for v in values) + also)

    return check


def number(low: float, high: float, *, whole: bool) -> Check:
    def check(value: Any) -> Any:
        right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not right or not low <= value <= high:
            noun = "a whole number" if whole else "a number"
            raise BadValueError(f"must be {noun} from {low:g} to {high:g}")
        return value if whole else float(value)

    return check


def duration(low: float, high: float) -> Check:
    def check(value: Any) -> float:
        seconds = _measure(value, _DURATION, _SECONDS)
        if seconds is None or not low <= seconds <= high:
            raise BadValueError(
                f"must be a duration from {_in_units(low)} to {_in_units(high)}, "
                'like "500ms", "2s", "30m", "6h" or a number of seconds'
            )
        return seconds

    return check


def size(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        size = _measure(value, _SIZE, _BYTES)
        if size is None or not low <= size <= high:
            raise BadValueError(
                f"must be a size from {_in_bytes(low)} to {_in_bytes(high)}, "
                'like "64KiB", "256MiB", "1GiB" or a number of bytes'
            )
        return int(size)

    return check


def text(pattern: re.Pattern[str], right: str, later: re.Pattern[str] | None = None) -> Check:
    def check(value: Any) -> str:
        if isinstance(value, str) and later is not None and later.fullmatch(value):
            raise NotBuiltError
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise BadValueError(f"must be {right}")
        return value

    return check


def entry(value: Any) -> str:
    if isinstance(value, str) and (_OBJECT.fullmatch(value) or _PROGRAM.fullmatch(value)):
        return value
    raise BadValueError('must be "module:object" or a file of the folder, like "server.py"')


def env(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise BadValueError('must be a table, like { UNITS = "metric" }')
    for name, text in value.items():
        if not _ENV_NAME.fullmatch(name):
            raise BadValueError(f"has {name!r}, which is no name of an environment variable")
        if not isinstance(text, str) or "\0" in text:
            raise BadValueError(f"has {name} = {text!r}: values are strings, in quotes")
    return value


def secrets(value: Any) -> tuple[str, ...]:
    # What stands here may be a value by mistake: none of it is repeated.
    hint = "`cove secret set NAME` keeps a value; cove.toml says which names the function gets"
    if not isinstance(value, list) or len(value) > MOST_SECRETS:
        raise BadValueError(
            f'must be a list of at most {MOST_SECRETS} names, like ["WEATHER_KEY"]', hint
        )
    for at, name in enumerate(value):
        if wrong := wrong_secret_name(name):
            raise BadValueError(f"has no name of a secret at place {at + 1}: {wrong}", hint)
        if name in value[:at]:
            raise BadValueError(f"has {name} twice", hint)
    return tuple(value)


def affinity(value: Any) -> Affinity:
    if value == "url":
        raise NotBuiltError
    kind, colon, name = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not colon and kind in {"none", "mcp", "principal"}:
        return Affinity(cast(AffinityKind, kind))
    if kind in {"header", "cookie", "query"} and _TOKEN.fullmatch(name):
        return Affinity(cast(AffinityKind, kind), name)
    raise BadValueError(
        'must be "none", "mcp", "principal", "header:NAME", "cookie:NAME" or "query:NAME", '
        "where NAME is 1 to 64 letters, digits and !#$%&'*+-.^_`|~"
    )


RUNTIME_LATER = re.compile(r"node\d*|image")
URL_PATH = re.compile(r"/[^\s?#%{}]*")
_LISTEN = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
DOMAIN = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


def listen(value: Any) -> str:
    match = _LISTEN.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[2]) > 65535:
        raise BadValueError('must be an address and a port, like "127.0.0.1:7070" or "[::1]:7070"')
    return cast(str, value)


def _measure(value: Any, pattern: re.Pattern[str], units: Mapping[str, float]) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = pattern.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        return None
    return float(match[1]) * units[match[2]]


def _in_units(seconds: float) -> str:
    unit = next(u for u in ("d", "h", "m", "s", "ms") if seconds >= _SECONDS[u] or u == "ms")
    return f"{seconds / _SECONDS[unit]:g}{unit}"


def _in_bytes(size: int) -> str:
    unit = next(u for u in ("TiB", "GiB", "MiB", "KiB", "B") if size >= _BYTES[u] or u == "B")
    return f"{size / _BYTES[unit]:g}{unit}"
