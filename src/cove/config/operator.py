"""DATA/config.toml: what belongs to the machine's operator, not to a function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cove.config.checks import DAY, DOMAIN, BadValueError, Check, duration, listen, size, text
from cove.config.lines import Path
from cove.config.table import Table
from cove.model import GIB, MIB


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadValueError("must be true or false")
    return value


OPERATOR_KEYS: Mapping[Path, Check] = {
    ("domain",): text(DOMAIN, 'a domain name, like "localhost" or "fn.example.com"'),
    ("listen",): listen,
    ("drain",): duration(0, 3600),
    ("logs", "size"): size(MIB, 1024 * GIB),
    ("logs", "age"): duration(60, 3650 * DAY),
    ("logs", "access"): _flag,
}

OPERATOR_NOT_BUILT: frozenset[Path] = frozenset(
    {("plans",), ("prices",), ("folders",), ("mirrors",), ("limits",)}
)


@dataclass(frozen=True, slots=True)
class LogsConfig:
    """`[logs]`: bytes and seconds that are kept of each function, and whether its requests are."""

    size: int = 64 * MIB
    age: float = 7 * DAY
    access: bool = True


@dataclass(frozen=True, slots=True)
class OperatorConfig:
    """DATA/config.toml: what belongs to the machine's operator. `None` is "not written"."""

    domain: str | None = None
    listen: str | None = None
    drain: float = 10.0
    logs: LogsConfig = LogsConfig()


def read_operator(text: str, filename: str = "config.toml") -> OperatorConfig:
    """DATA/config.toml; errors are `bad_config` with key and line."""
    got = Table(text, filename).read(OPERATOR_KEYS, OPERATOR_NOT_BUILT)
    top = {path[0]: value for path, value in got.items() if len(path) == 1}
    logs = {path[1]: value for path, value in got.items() if path[0] == "logs"}
    return OperatorConfig(**top, logs=LogsConfig(**logs))
