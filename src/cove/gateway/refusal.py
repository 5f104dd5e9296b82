"""What is said of bytes that cannot be served: a status, and words for whoever sent them."""

from __future__ import annotations

import httptools
import structlog

from cove.gateway.head import HeadTooLargeError, RefusedError

TOO_LARGE = "64 KiB and 100 header fields are the most of a head; send fewer, or shorter ones"
TOO_MUCH_BETWEEN = "more than 1 MiB of chunk extensions or trailers; send none"

log = structlog.get_logger("cove.gateway")


def refusal(cause: BaseException) -> tuple[int, bytes]:
    """Why the parser stopped: llhttp's reason, one of Cove's rules, or a defect of Cove's."""
    if isinstance(cause, HeadTooLargeError):
        return 431, TOO_LARGE.encode()
    if isinstance(cause, RefusedError):
        return 400, str(cause).encode()
    if isinstance(cause, httptools.HttpParserError):
        return 400, b"malformed HTTP: %b; send requests as RFC 9112 has them" % str(cause).encode()
    log.error("connection failed", error=repr(cause), exc_info=cause)
    return 500, b"Cove failed on this request; its log says why"
