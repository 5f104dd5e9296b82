"""What can go wrong, said once: a code, what was tried, and the next step.

Foreign errors are translated where they enter. The edges (gateway replies,
control API, CLI) only render a `CoveError`; none of them invents one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Code:
    """How a code is answered: HTTP status, JSON-RPC code, and whether a retry helps."""

    status: int
    rpc: int = -32603
    retry: bool = False


CODES: Mapping[str, Code] = {
    # what the caller sent
    "bad_request": Code(400, -32600),
    "bad_config": Code(400),
    "bad_source": Code(400),
    "bad_name": Code(400),
    "unauthorized": Code(401, -32001),
    "forbidden": Code(403, -32003),
    "not_found": Code(404, -32004),
    "session_not_found": Code(404, -32001),
    "method_not_allowed": Code(405, -32600),
    "request_timeout": Code(408, -32000, retry=True),
    "conflict": Code(409),
    "too_large": Code(413, -32600),
    "misdirected": Code(421, -32600),
    "too_many_requests": Code(429, -32000, retry=True),
    "headers_too_large": Code(431, -32600),
    # what the function did
    "deploy_failed": Code(422),
    "resolve_failed": Code(422),
    "start_failed": Code(502),
    "failing": Code(502, retry=True),
    "bad_gateway": Code(502),
    "timeout": Code(504),
    # what this machine can do
    "isolation_unavailable": Code(422),
    "not_built": Code(400),
    "internal": Code(500),
    "overloaded": Code(503, -32000, retry=True),
    "draining": Code(503, -32000, retry=True),
    "unreachable": Code(503, -32000, retry=True),
}


_OWN = frozenset({"code", "message", "retry", "hint", "lines"})


class CoveError(Exception):
    """An error a person can act on.

    `code` is one of `CODES`; `message` says what was tried and what happened;
    `hint` says what to do next; `lines` carries a program's own last output; `detail` says for
    programs what the message says for people, under names of its own.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str = "",
        lines: Sequence[str] = (),
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.lines = tuple(lines)
        self.detail = detail or {}

    @property
    def status(self) -> int:
        return CODES[self.code].status

    @property
    def rpc(self) -> int:
        return CODES[self.code].rpc

    @property
    def retry(self) -> bool:
        return CODES[self.code].retry

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"code": self.code, "message": self.message, "retry": self.retry}
        if self.hint:
            out["hint"] = self.hint
        if self.lines:
            out["lines"] = list(self.lines)
        return {**self.detail, **out}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> CoveError:
        """The error another Cove process sent; an unknown code reads as `internal`."""
        code = str(body.get("code", "internal"))
        return cls(
            code if code in CODES else "internal",
            str(body.get("message", "unknown error")),
            hint=str(body.get("hint", "")),
            lines=[str(line) for line in body.get("lines", ())],
            detail={name: value for name, value in body.items() if name not in _OWN},
        )
