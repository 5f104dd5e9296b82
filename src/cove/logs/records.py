"""What a log's line says, as JSON, and which lines a reader wants.

A function's records: time, stream (`stdout`, `stderr`, `access`, `cove`), function, version,
instance, session, request, text; those of `access` also method, path, status, ms, principal.
Events: time, kind, function, version, instance, reason. What is empty is left out. All is
ASCII: nothing that a program printed can move the cursor of who looks at the file itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any

from cove import clock
from cove.events import Event

Record = dict[str, Any]

STREAMS = ("stdout", "stderr", "access", "cove")

LONGEST = 8192
LONGEST_PATH = 2048
LONGEST_ID = 256

Line = tuple[float, str, int, str, str, str, str]
"""at, stream, version, instance, session, request, text."""

Access = tuple[float, int, str, str, bytes, str, bytes, bytes, int, float]
"""at, version, instance, session, request, principal, method, target, status, seconds."""

Entry = Line | Access | Event

Match = Callable[[bytes], Record | None]


class Writing:
    """Makes lines of one journal from some entries. `function` is empty for events."""

    def __init__(self, function: str) -> None:
        self._function = function
        self._about = _said("function", function)
        self._second = -1
        self._prefix = ""
        self._who: dict[tuple[int, str, str, str], str] = {}
        self._what: dict[tuple[bytes, bytes], tuple[str, str]] = {}

    def __call__(self, entry: Entry) -> bytes:
        """One line, with its end."""
        if isinstance(entry, Event):
            return self._event(entry)
        if len(entry) == 7:
            return self._line(entry)
        return self._access(entry)

    def remark(self, at: float, text: str) -> bytes:
        """What Cove itself has to say where records should stand."""
        if not self._function:
            return self._event(Event(at, "events.lost", reason=text))
        return self._line((at, "cove", 0, "", "", "", text))

    def _line(self, line: Line) -> bytes:
        at, stream, version, instance, session, request, text = line
        return (
            f'{{"time":"{self._time(at)}","stream":"{stream}"{self._about}'
            f"{_whose(version, instance, session)}{_said('request', request[:LONGEST_ID])}"
            f',"text":{_quoted(text)}}}\n'
        ).encode()

    def _access(self, access: Access) -> bytes:
        at, version, instance, session, request, principal, method, target, status, took = access
        # There are tens of thousands a second, of few callers and of few paths.
        who = self._who.get((version, instance, session, principal))
        if who is None:
            who = _whose(version, instance, session) + _said("principal", principal[:LONGEST_ID])
            self._who[version, instance, session, principal] = who
        what = self._what.get((method, target))
        if what is None:
            verb, path = method.decode("ascii", "replace"), _path(target)
            parts = _said("method", verb) + _said("path", path), _quoted(f"{verb} {path}")[:-1]
            what = self._what[method, target] = parts
        asked, text = what
        ident = _said("request", request[:LONGEST_ID].decode("ascii", "replace"))
        ms = f"{took * 1000:.1f}"
        return (
            f'{{"time":"{self._time(at)}","stream":"access"{self._about}{who}{ident}{asked}'
            f',"status":{status},"ms":{ms},"text":{text} {status} {ms} ms"}}\n'
        ).encode()

    def _event(self, event: Event) -> bytes:
        return (
            f'{{"time":"{self._time(event.at)}","kind":"{event.kind}"'
            f"{_said('function', event.function)}"
            f"{_whose(event.version, event.instance, '')}"
            f"{_said('reason', cut(event.reason))}}}\n"
        ).encode()

    def _time(self, at: float) -> str:
        # `clock.iso` costs as much as all the rest of a line: once a second is enough.
        second = int(at)
        if second != self._second:
            self._second, self._prefix = second, clock.iso(second)[:-4]
        return f"{self._prefix}{int((at - second) * 1000):03d}Z"


def cut(text: str) -> str:
    """The text, or what of it is kept and how long it was."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}… [cut: {len(text)} characters]"


def _path(target: bytes) -> str:
    """A request's path. Query and fragment may hold secrets, and so may a URL's user."""
    path = target.partition(b"?")[0].partition(b"#")[0]
    if not path.startswith(b"/") and b"://" in path:
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    text = path[: LONGEST_PATH + 1].decode("utf-8", "replace")
    return text if len(path) <= LONGEST_PATH else text[:LONGEST_PATH] + "…"


def _said(name: str, value: str) -> str:
    return f',"{name}":{_quoted(value)}' if value else ""


def _whose(version: int, instance: str, session: str) -> str:
    return (
        (f',"version":{version}' if version else "")
        + _said("instance", instance[:LONGEST_ID])
        + _said("session", session[:LONGEST_ID])
    )


def read(line: bytes) -> Record | None:
    """The record that a line is; None for what a crash left of one."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "time" in record else None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records a reader wants: all that is said must hold.

    `since` is seconds since the epoch. `instance` is an id or its last part; `request` is also
    found in a line's text.
    """

    since: float | None = None
    stream: str = ""
    function: str = ""
    instance: str = ""
    session: str = ""
    request: str = ""

    def matcher(self) -> Match:
        """What reads a line, and gives the record if it is wanted."""
        values = (self.stream, self.function, self.instance, self.session, self.request)
        # A wanted line holds each of them: most others need not be parsed.
        needles = [_quoted(value)[1:-1].encode() for value in values if value]
        since = None if self.since is None else clock.iso(self.since)

        def match(line: bytes) -> Record | None:
            for needle in needles:
                if needle not in line:
                    return None
            record = read(line)
            return record if record is not None and self._admits(record, since) else None

        return match

    def _admits(self, record: Record, since: str | None) -> bool:
        return (
            (since is None or str(record["time"]) >= since)
            and self.stream in ("", record.get("stream"))
            and self.function in ("", record.get("function"))
            and self.session in ("", record.get("session"))
            and _is_or_ends(str(record.get("instance", "")), self.instance)
            and (
                self.request in ("", record.get("request"))
                or self.request in str(record.get("text", ""))
            )
        )


def _is_or_ends(ident: str, wanted: str) -> bool:
    return not wanted or ident == wanted or ident.endswith("-" + wanted)
