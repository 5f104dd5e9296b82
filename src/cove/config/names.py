"""What a function may be called."""

from __future__ import annotations

import re

from cove.errors import CoveError

RESERVED_NAMES = frozenset({"api", "sandbox", "console", "catalog", "egress"})

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def check_name(name: str) -> str:
    """`name`, if a function may have it: a DNS label that Cove does not keep for itself."""
    if not _LABEL.fullmatch(name):
        suggestion = slug(name)
        raise CoveError(
            "bad_name",
            f"{name!r} cannot be a function's name: names are DNS labels, "
            "1 to 63 lowercase letters, digits and dashes, with no dash at either end",
            hint=f"try {suggestion!r}" if suggestion else "choose another name",
        )
    if name in RESERVED_NAMES:
        raise CoveError(
            "bad_name",
            f"{name!r} is a name that Cove keeps for itself",
            hint=f"choose another name, {name + '-server'!r} for example",
        )
    if re.match(r"\d+-", name):
        raise CoveError(
            "bad_name",
            f"{name!r} begins with digits and a dash, which Cove's own hosts do",
            hint=f"try {slug(name) or 'a name that begins with a letter'!r}",
        )
    return name


def slug(text: str) -> str:
    """The nearest DNS label to a file's or folder's name; empty if nothing is left of it."""
    label = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return re.sub(r"^(\d+-)+", "", label)[:63].rstrip("-")
