"""`subscriptions/listen` (MCP 2026-07-28): what the gateway itself says of it, or leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cove.mcp import messages, sse
from cove.mcp.classify import MODERN_VERSION

_METHOD = "subscriptions/listen"
_ACK = "notifications/subscriptions/acknowledged"
_SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
_LISTS = {
    "toolsListChanged": "notifications/tools/list_changed",
    "promptsListChanged": "notifications/prompts/list_changed",
    "resourcesListChanged": "notifications/resources/list_changed",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to what is no listen request that can be held."""

    status: int
    body: bytes


def read(body: bytes, version: bytes, *, modern: bool) -> Listen | Refusal:
    """A POST whose headers say `subscriptions/listen`, as far as it can be held.

    Refused as the specification has it: no JSON, another method than the header's, a version
    that is not spoken, a server (`modern` false) that does not know the method.
    """
    try:
        (message,) = messages.parse(body)
    except ValueError:
        return Refusal(400, messages.error(-32700, "Parse error"))
    ident = messages.request_id(message)
    if message.get("method") != _METHOD:
        text = f"Mcp-Method is {_METHOD}, the body's method is not"
        return Refusal(400, messages.error(-32020, text, ident))
    if ident is None:
        return Refusal(400, messages.error(-32600, "a listen request has an id"))
    if not modern:
        return Refusal(404, messages.error(-32601, "Method not found", ident))
    if version != MODERN_VERSION:
        data = {
            "supported": [MODERN_VERSION.decode()],
            "requested": version.decode("latin-1"),
        }
        return Refusal(400, messages.error(-32022, "Unsupported protocol version", ident, data))
    return Listen(message, ident)


class Listen:
    """One client's subscription, across the instances that serve it."""

    def __init__(self, message: dict[str, Any], ident: messages.RequestId) -> None:
        params = message.get("params")
        wanted = params.get("notifications") if isinstance(params, dict) else None
        self._filter = wanted if isinstance(wanted, dict) else {}
        self._ident = ident
        self._acknowledged = False
        self._ended = False

    def acknowledge(self) -> bytes:
        """The acknowledgement, where no instance is there to send it."""
        self._acknowledged = True
        return self._note(_ACK, {"notifications": self._filter})

    def repeats(self, event: sse.Event) -> bool:
        """Whether an event is an acknowledgement that the client has had already."""
        if self._answers(event):
            self._ended = True
        if _ACK.encode() not in event.data:
            return False
        again, self._acknowledged = self._acknowledged, True
        return again

    def _answers(self, event: sse.Event) -> bool:
        if b'"result"' not in event.data and b'"error"' not in event.data:
            return False
        try:
            return any(messages.answer_id(m) == self._ident for m in messages.parse(event.data))
        except ValueError:
            return False

    def lists_changed(self) -> Iterator[bytes]:
        """After a deploy: each list that the client wants to know of may be another."""
        for wanted, method in _LISTS.items():
            if self._filter.get(wanted):
                yield self._note(method, {})

    def end(self) -> bytes:
        """The graceful end, unless the server has sent it."""
        if self._ended:
            return b""
        self._ended = True
        result = {"resultType": "complete", "_meta": {_SUBSCRIPTION: self._ident}}
        return sse.encode(messages.dump({"jsonrpc": "2.0", "id": self._ident, "result": result}))

    def _note(self, method: str, params: dict[str, Any]) -> bytes:
        params = {**params, "_meta": {_SUBSCRIPTION: self._ident}}
        return sse.encode(messages.dump({"jsonrpc": "2.0", "method": method, "params": params}))
