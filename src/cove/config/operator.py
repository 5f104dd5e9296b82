"""DATA/config.toml: what belongs to the machine's operator, not to a function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cove.config.checks import DOMAIN, Check, duration, listen, text
from cove.config.lines import Path
from cove.config.table import Table

OPERATOR_KEYS: Mapping[Path, Check] = {
    ("domain",): text(DOMAIN, 'a domain name, like "localhost" or "fn.example.com"'),
    ("listen",): listen,
    ("drain",): duration(0, 3600),
}

OPERATOR_NOT_BUILT: frozenset[Path] = frozenset(
    {("plans",), ("prices",), ("folders",), ("mirrors",), ("limits",)}
)


@dataclass(frozen=True, slots=True)
class OperatorConfig:
    """DATA/config.toml: what belongs to the machine's operator. `None` is "not written"."""

    domain: str | None = None
    listen: str | None = None
    drain: float = 10.0


def read_operator(text: str, filename: str = "config.toml") -> OperatorConfig:
    """DATA/config.toml; errors are `bad_config` with key and line."""
    got = Table(text, filename).read(OPERATOR_KEYS, OPERATOR_NOT_BUILT)
    return OperatorConfig(**{path[0]: value for path, value in got.items()})
