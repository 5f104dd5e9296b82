"""Dataclasses as JSON and back, by their type hints.

Made for `FunctionSpec`, `Plan` and `Facts`: nested dataclasses, scalars, literals,
`X | None`, tuples of one type and string mappings. A field that is missing takes its
default, so that records outlive added fields; one that is unknown is an error, because a
limit that this Cove does not understand must not be dropped in silence.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from cove.errors import CoveError

T = TypeVar("T")


def encode(value: object) -> Any:
    """`value` as what `json.dumps` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def decode(kind: type[T], body: Any) -> T:
    """The `kind` that `encode` made `body` from. `CoveError("internal")` if it cannot be."""
    try:
        return cast(T, _decode(kind, body))
    except (TypeError, ValueError, AttributeError) as fault:
        raise CoveError(
            "internal",
            f"a record cannot be read as {kind.__name__}: {fault}",
            hint="was it written by a newer Cove? start that one, or restore a backup",
        ) from fault


def _decode(hint: Any, body: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        if unknown := body.keys() - hints.keys():
            raise ValueError(f"{hint.__name__} has no {', '.join(sorted(unknown))}")
        return hint(**{name: _decode(hints[name], item) for name, item in body.items()})
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if body is None and type(None) in args:
            return None
        (only,) = [arg for arg in args if arg is not type(None)]
        return _decode(only, body)
    if origin is Literal:
        if body not in args:
            raise ValueError(f"{body!r} is none of {args}")
        return body
    if origin is tuple:
        return tuple(_decode(args[0], item) for item in _a(list, body))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: _decode(args[1], item) for key, item in _a(dict, body).items()}
    if hint is float and type(body) is int:
        return float(body)
    return _a(hint, body)


def _a(kind: type[T], body: Any) -> T:
    # type() and not isinstance(): a bool is an int to Python, and never one to a limit.
    if type(body) is not kind:
        raise ValueError(f"{body!r} is not {kind.__name__}")
    return body
