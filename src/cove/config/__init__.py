"""cove.toml and DATA/config.toml: text in, checked data out, every error with its line.

Durations are numbers of seconds or strings with a unit: `500ms`, `2s`, `30m`, `6h`, `7d`.
Sizes are numbers of bytes or strings with a binary unit: `64KiB`, `256MiB`, `1GiB`; `MB` and
the like are refused, because half of their readers mean 1000 and the other half 1024.
"""

from cove.config.function import FUNCTION_KEYS, parse_function, writes_kind
from cove.config.lines import key_lines
from cove.config.names import RESERVED_NAMES, check_name, slug
from cove.config.operator import OPERATOR_KEYS, OperatorConfig, read_operator
from cove.config.secret import (
    LARGEST_VALUE,
    check_secret_name,
    check_secret_value,
    secret_too_large,
)

__all__ = [
    "FUNCTION_KEYS",
    "LARGEST_VALUE",
    "OPERATOR_KEYS",
    "RESERVED_NAMES",
    "OperatorConfig",
    "check_name",
    "check_secret_name",
    "check_secret_value",
    "key_lines",
    "parse_function",
    "read_operator",
    "secret_too_large",
    "slug",
    "writes_kind",
]
