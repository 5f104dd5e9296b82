"""`key=value` words as a tool's arguments, by the tool's own JSON schema. No I/O but `@file`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cove.errors import CoveError

Json = dict[str, Any]
DEEPEST = 8


def arguments(words: Iterable[str], whole: str | None, schema: Mapping[str, Any]) -> Json:
    """The arguments that `--args` (a JSON object) and then each `key=value` give.

    A value that is JSON of a type the schema wants there is that; any other is text.
    `key=@file` takes the file's text as the value, `key=@@x` is the text `@x`.
    """
    found = _whole(whole)
    properties = schema.get("properties", {})
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise CoveError(
                "bad_request",
                f"{word!r} is not key=value",
                hint='arguments look like city=Oslo days=3, or --args \'{"city": "Oslo"}\'',
            )
        found[key] = value(_text(key, text), properties.get(key, True), schema)
    return found


def value(text: str, wanted: object, schema: Mapping[str, Any]) -> Any:
    """The text as what the property's schema wants: a number, an object, or the text itself."""
    try:
        parsed = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(parsed, str) or not admits(wanted, parsed, schema) else parsed


def admits(wanted: object, parsed: Any, schema: Mapping[str, Any], depth: int = 0) -> bool:
    """Whether a property's schema has room for a value of that type. Unsaid is yes."""
    if not isinstance(wanted, Mapping) or depth > DEEPEST:
        return bool(wanted)
    if isinstance(reference := wanted.get("$ref"), str):
        return admits(_resolve(reference, schema), parsed, schema, depth + 1)
    for choice in ("anyOf", "oneOf"):
        if isinstance(options := wanted.get(choice), list):
            return any(admits(option, parsed, schema, depth + 1) for option in options)
    if isinstance(parts := wanted.get("allOf"), list):
        return all(admits(part, parsed, schema, depth + 1) for part in parts)
    if isinstance(values := wanted.get("enum"), list):
        return parsed in values
    if "const" in wanted:
        return bool(parsed == wanted["const"])
    types = wanted.get("type")
    if types is None:
        return True
    return not _types_of(parsed).isdisjoint([types] if isinstance(types, str) else types)


def _types_of(parsed: Any) -> set[str]:
    match parsed:
        case None:
            return {"null"}
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"number", "integer"} if parsed.is_integer() else {"number"}
        case list():
            return {"array"}
        case dict():
            return {"object"}
    return {"string"}


def _resolve(reference: str, schema: Mapping[str, Any]) -> object:
    at: Any = schema
    for part in reference.removeprefix("#/").split("/"):
        if not reference.startswith("#/") or not isinstance(at, Mapping) or part not in at:
            return True
        at = at[part]
    return at


def _whole(text: str | None) -> Json:
    try:
        body = json.loads(text) if text else {}
    except ValueError as fault:
        raise CoveError(
            "bad_request", f"--args is not JSON: {fault}", hint='like {"city": "Oslo"}'
        ) from fault
    if not isinstance(body, dict):
        raise CoveError("bad_request", "--args is not a JSON object", hint='like {"city": "Oslo"}')
    return body


def _text(key: str, text: str) -> str:
    if text.startswith("@@") or not text.startswith("@"):
        return text.removeprefix("@") if text.startswith("@@") else text
    try:
        return Path(text[1:]).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise CoveError(
            "bad_request",
            f"{key}: {text[1:]} cannot be read: {getattr(fault, 'strerror', None) or fault}",
            hint=f"for a value that begins with an @, write {key}=@{text}",
        ) from fault
