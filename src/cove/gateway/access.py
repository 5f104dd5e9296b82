"""Access: what is told of each request that was routed to a function, once, at its end."""

from __future__ import annotations

from collections.abc import Callable

Access = Callable[[str, int, str, str, bytes, str, bytes, bytes, int, float], None]
"""Function, version, instance, session, request id, principal, method, target, status, seconds.

Empty or 0 is what is not known: a request that was refused has met no instance. The status is
the one that was answered, but that of the error where an answer was cut short, and 499 for a
client that left before its answer. A stream is told of when it ends, with its whole time.
"""


def unheard(
    function: str,
    version: int,
    instance: str,
    session: str,
    request: bytes,
    principal: str,
    method: bytes,
    target: bytes,
    status: int,
    seconds: float,
) -> None:
    """Nobody keeps them."""
