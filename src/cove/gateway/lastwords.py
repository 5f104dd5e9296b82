"""Last words: what an event stream can still say that is not to be finished."""

from __future__ import annotations

from cove.errors import CoveError
from cove.gateway.exchange import Exchange
from cove.gateway.replies import rpc_event
from cove.mcp import messages, sse


def last_words(
    error: CoveError, exchange: Exchange, passed: sse.Boundary, asked: bytes, *, mcp: bool
) -> bytes | None:
    """Events that end a stream properly; None where it must break off instead.

    Three cases, beside a stream that stands within an event, of which nobody can take half.
    An MCP request's stream ends with a response, so it ends whole with an error as that: for
    the requests in `asked`, its body, if that is known. What Cove ends itself because it is
    stopping is asked for again at once, if by GET: such streams have no end of their own.
    Any other is reset, so that nobody takes it for whole (RFC 9112 §8): an EventSource, which
    comes back after a proper end, does so after a reset too (HTML §9.2.3), and what else reads
    events may not.
    """
    if not passed.reached:
        return None
    if mcp and exchange.method == b"POST":
        ids = messages.request_ids(asked)
        if not ids:
            return None
        said = answers(passed.last)
        return b"".join(rpc_event(error, exchange.id, ident) for ident in ids if ident not in said)
    if error.code == "draining" and exchange.method == b"GET":
        return sse.RETRY
    return None


def answers(last: bytes) -> set[messages.RequestId]:
    """The requests that the events in `last` answer."""
    found: set[messages.RequestId] = set()
    for event in sse.EventParser().feed(last):
        try:
            parsed = messages.parse(event.data)
        except ValueError:
            continue  # not a message, or the end of one
        found.update(ident for m in parsed if (ident := messages.answer_id(m)) is not None)
    return found
