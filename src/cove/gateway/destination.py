"""A destination: where requests are forwarded to, and what of their heads goes there."""

from __future__ import annotations

from cove.errors import CoveError
from cove.metrics import FunctionStats

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110 §7.6.1: meant for one connection, never forwarded."""

# What the gateway says itself, whatever the caller claims.
_REPLACED = frozenset(
    {
        b"host",
        b"content-length",
        b"expect",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-request-id",
        b"x-real-ip",
        b"forwarded",
        # what servers that turn header names into variables read as the above
        b"x_forwarded_for",
        b"x_forwarded_host",
        b"x_forwarded_prefix",
        b"x_forwarded_proto",
    }
)


class Destination:
    """Where requests are forwarded to: a function, or Cove's own control API.

    `not_sent_on` are the headers that stay here, for callers without and with a project key.
    """

    __slots__ = (
        "body",
        "host",
        "learns",
        "lifetime",
        "mcp",
        "name",
        "not_sent_on",
        "port",
        "stats",
        "timeout",
    )

    def __init__(
        self,
        name: str,
        stats: FunctionStats,
        *,
        body: int,
        timeout: float,
        lifetime: float = 0.0,
        port: int = 80,
        mcp: bool = False,
        learns: bool = False,
    ) -> None:
        self.name = name
        self.stats = stats
        self.body = body
        self.timeout = timeout
        self.lifetime = lifetime
        self.port = port
        self.host = b"localhost:%d" % port
        self.mcp = mcp
        self.learns = learns
        kept = HOP_BY_HOP | _REPLACED
        if mcp:
            kept |= {b"origin"}  # checked here; the backend knows only its own
        if learns:
            kept |= {b"mcp-session-id"}  # Cove's own; the backend's is sent instead
        # A project key is between the caller and Cove.
        self.not_sent_on = (kept, kept | {b"authorization"})


def too_large(there: Destination) -> CoveError:
    """The request's body is over the function's bound."""
    return CoveError(
        "too_large",
        f"the body is larger than {there.body} bytes, the most that {there.name} takes",
        hint="send less, or raise limits.body in cove.toml",
    )


def overdue(there: Destination) -> CoveError:
    """The function has not answered in the time that it is given."""
    return CoveError(
        "timeout",
        f"{there.name} did not answer within {there.timeout:g} s",
        hint="raise limits.timeout in cove.toml if its requests take longer",
    )
