"""Which era a request speaks, from its headers alone (mcp.md §1, §8.1)."""

from __future__ import annotations

from enum import Enum

HANDSHAKE_VERSIONS = frozenset({b"2024-11-05", b"2025-03-26", b"2025-06-18", b"2025-11-25"})
"""Protocol versions that open with `initialize` and may keep a session."""

MODERN_VERSION = b"2026-07-28"
LATEST_HANDSHAKE_VERSION = b"2025-11-25"


class Era(Enum):
    LEGACY = "legacy"
    MODERN = "modern"


def era(version: bytes | None) -> Era:
    """The era of a request whose MCP-Protocol-Version header is `version` (None: absent).

    Anything that is not a handshake version is modern, as the SDKs' servers decide it: an
    unknown version is then refused by the server, in the words of the era that has them.
    """
    if version is None or version in HANDSHAKE_VERSIONS:
        return Era.LEGACY
    return Era.MODERN


def listens(version: bytes | None, method: bytes | None) -> bool:
    """Whether a POST opens a `subscriptions/listen` stream. Legacy headers say nothing."""
    return method == b"subscriptions/listen" and era(version) is Era.MODERN
