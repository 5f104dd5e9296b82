"""What an instance prints: two fifos that outlive Cove, read line by line, the last lines kept."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from cove.clock import now
from cove.logs.keeper import Keeper
from cove.logs.reader import Reader

Stream = Literal["stdout", "stderr"]
STREAMS: tuple[Stream, Stream] = ("stdout", "stderr")

LINE_BYTES = 8192
_LINES = 200
_READ = 4096
_RECORDS = 1024  # of one read at most; more lines than that share them
_LAST_READS = 256  # of a fifo's rest, a MiB at most, where nobody goes on writing
_TAIL_READS = 16
_BREATH = 0.0005  # seconds in which other threads have their turn
_BUDGET = 128 * 1024
_LINE_COST = 100
_EVERY = 0.1
_SHORTEST_SECRET = 4
_HIDDEN = b"[secret]"
_CONCEALED = b"[not kept: the secrets that it may hold are not known any more]"


@dataclass(frozen=True, slots=True)
class Printed:
    """Some lines of one stream, in order, of an instance of a function's version."""

    function: str
    version: int
    instance: str
    stream: Stream
    lines: list[str]
    session: str = ""
    request: str = ""


OnPrinted = Callable[[Printed], None]
"""Told what was printed, in the reader's thread: it is kept when this returns."""

Serving = Callable[[], tuple[str, str]]
"""Which session and request an instance serves just now, where that is one."""


class Sealing(Protocol):
    """Keeps which secrets an instance was given, for the next Cove."""

    def remember(self, values: Sequence[str]) -> bytes:
        """The values, sealed."""

    def recall(self, sealed: bytes) -> Sequence[str] | None:
        """The values; None where what sealed them is gone."""


class Outputs:
    """The outputs of all instances: their fifos' folder, who reads it, and who holds it open."""

    def __init__(
        self,
        folder: Path,
        on_printed: OnPrinted,
        keeper: Keeper | None = None,
        sealing: Sealing | None = None,
    ) -> None:
        """`folder` is made. Without a keeper, what nobody has open is forgotten; without sealing,
        which secrets an instance was given is not remembered for the next Cove."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._keeper = keeper
        self._on_printed = on_printed
        self._sealing = sealing
        self._reader = Reader()

    def __repr__(self) -> str:
        return f"<Outputs {self._folder}>"

    def make(
        self, function: str, version: int, instance: str, secrets: Sequence[str] = ()
    ) -> Output:
        """A new instance's, whose fifos are there from now on; it was given these `secrets`.

        `OSError` where they cannot be, and then nothing is.
        """
        output = Output(self, function, version, instance)
        try:
            if secrets and self._sealing is not None:
                self._given(instance).write_bytes(self._sealing.remember(secrets))
            for path in output.paths:
                os.mkfifo(path, 0o600)
                if self._keeper is not None:
                    self._keeper.hold(path.name)
            output.hide(secrets)
            output.read()
        except OSError:
            output.finish()
            raise
        return output

    def adopt(self, function: str, version: int, instance: str) -> Output:
        """An instance's of an earlier Cove; what it has printed since is read."""
        output = Output(self, function, version, instance)
        with contextlib.suppress(FileNotFoundError):
            sealed = self._given(instance).read_bytes()
            secrets = self._sealing.recall(sealed) if self._sealing is not None else None
            if secrets is None:
                output.conceal()
            else:
                output.hide(secrets)
        output.read()
        return output

    def discard(self, instance: str) -> None:
        """Remove what an instance has left, unread."""
        self.forget(Output(self, "", 0, instance))

    def left(self) -> list[str]:
        """Instances that have fifos here."""
        names = (name.rpartition(".") for name in os.listdir(self._folder))
        return sorted({ident for ident, _, stream in names if stream in STREAMS})

    def look(self) -> None:
        """See that what must be held is held. Cheap; to be called now and then."""
        if self._keeper is not None:
            self._keeper.look()

    def close(self) -> None:
        """Read no more. What instances print from here on waits for the next Cove."""
        self._reader.close()
        if self._keeper is not None:
            self._keeper.close()

    # For an output.

    def path(self, instance: str, stream: Stream) -> Path:
        return self._folder / f"{instance}.{stream}"

    def printed(self, printed: Printed) -> None:
        self._on_printed(printed)

    def watch(self, descriptor: int, output: Output) -> None:
        self._reader.add(descriptor, output)

    def unwatch(self, descriptor: int) -> None:
        self._reader.remove(descriptor)

    def finish(self, output: Output) -> None:
        """Have an output's rest read in the reader's thread."""
        self._reader.call(output.finish)

    def forget(self, output: Output) -> None:
        """Remove what there is of an output."""
        for path in output.paths:
            path.unlink(missing_ok=True)
            if self._keeper is not None:
                self._keeper.drop(path.name)
        self._given(output.instance).unlink(missing_ok=True)

    def _given(self, instance: str) -> Path:
        return self._folder / f".{instance}.given"  # of no interest to the keeper


class Output:
    """One instance's stdout and stderr.

    At most `_BUDGET` bytes are read in `_EVERY` seconds, short lines counting for more: one
    that prints more waits at its full fifo.
    """

    def __init__(self, home: Outputs, function: str, version: int, instance: str) -> None:
        self._home = home
        self.instance = instance
        self._about = (function, version, instance)
        self.paths = [home.path(instance, stream) for stream in STREAMS]
        self.serving: Serving | None = None
        self._secrets: re.Pattern[bytes] | None = None
        self._longest = 1
        self._concealed = False
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._open: dict[int, Stream] = {}
        self._rest: dict[Stream, bytes] = dict.fromkeys(STREAMS, b"")
        self._spent, self._since = 0, 0.0
        self._turn = threading.Lock()

    def hide(self, secrets: Iterable[str]) -> None:
        """Keep these values, and each line of them, out of what is kept.

        Of fewer than 4 bytes they are not looked for.
        """
        parts = {part.encode() for secret in secrets for part in (secret, *secret.splitlines())}
        found = sorted((p for p in parts if len(p) >= _SHORTEST_SECRET), key=len, reverse=True)
        if found:
            self._secrets = re.compile(b"|".join(map(re.escape, found)))
            self._longest = len(found[0])

    def conceal(self) -> None:
        """It was given secrets, and nobody knows which: keep nothing of what it prints."""
        self._concealed = True

    def open(self) -> tuple[int, int]:
        """Descriptors for the instance to write to; the caller closes them after the start.

        Open for reading too: a fifo that its writer reads never breaks, whoever else ends.
        """
        out = os.open(self.paths[0], os.O_RDWR | os.O_CLOEXEC)
        try:
            return out, os.open(self.paths[1], os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            os.close(out)
            raise

    def read(self) -> None:
        """Begin to read. A fifo that is not there is passed over."""
        for path, stream in zip(self.paths, STREAMS, strict=True):
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self._open[descriptor] = stream
                self._home.watch(descriptor, self)

    def pump(self, descriptor: int) -> float:
        """Read what there is, for the reader."""
        with self._turn:
            if descriptor not in self._open or self._read(descriptor) < 0:
                return -1.0
            if now() - self._since > _EVERY:
                self._spent, self._since = 0, now()
            return _EVERY if self._spent > _BUDGET else 0.0

    def _read(self, descriptor: int) -> int:
        """Read once: how many bytes, or -1 where nobody has it open to write any more."""
        try:
            data = os.read(descriptor, _READ)
        except BlockingIOError:
            return 0
        if data:
            self._take(self._open[descriptor], data)
        return len(data) or -1

    def _take(self, stream: Stream, data: bytes) -> None:
        *lines, rest = (self._rest[stream] + data).split(b"\n")
        if len(rest) > LINE_BYTES + self._longest:  # the longest secret may reach beyond
            rest = self._hidden(rest)
            lines.append(rest[: -self._longest])
            rest = rest[-self._longest :]
        self._rest[stream] = rest
        if len(lines) > _RECORDS:  # none is lost, and thousands cost what some do
            each = -(-len(lines) // _RECORDS)
            lines = [b"\n".join(lines[n : n + each]) for n in range(0, len(lines), each)]
        self._spent += len(data) + _LINE_COST * len(lines)
        self._say(stream, lines)

    def _say(self, stream: Stream, lines: list[bytes]) -> None:
        if not lines:
            return
        text = [
            piece.decode(errors="replace").removesuffix("\r")
            for line in lines
            for piece in _pieces(self._hidden(line))
        ]
        self._lines.extend(text[-_LINES:])
        session, request = self.serving() if self.serving is not None else ("", "")
        function, version, instance = self._about
        self._home.printed(
            Printed(function, version, instance, stream, text, session=session, request=request)
        )

    def _hidden(self, line: bytes) -> bytes:
        if self._concealed:
            return _CONCEALED
        return self._secrets.sub(_HIDDEN, line) if self._secrets is not None else line

    def tail(self, count: int = 20) -> list[str]:
        """The last `count` lines, an unfinished one included."""
        with self._turn:
            for descriptor in self._open:
                self._read_some(descriptor, _TAIL_READS)
            rests = (self._hidden(rest) for rest in self._rest.values() if rest)
            return [*self._lines, *(r.decode(errors="replace") for r in rests)][-count:]

    def close(self) -> None:
        """The instance has ended: what it has left is read behind, then its fifos are removed."""
        self._home.finish(self)

    def finish(self) -> None:
        """The same, here and now. Lines stay. Idempotent."""
        with self._turn:
            for descriptor in self._open:
                self._read_some(descriptor, _LAST_READS)
            self._say_rests()
            self._let_go()
        self._home.forget(self)

    def _read_some(self, descriptor: int, most: int) -> None:
        for count in range(1, most + 1):
            if self._read(descriptor) <= 0:
                return
            if count % _TAIL_READS == 0:
                time.sleep(_BREATH)

    def release(self) -> None:
        """Read no more, and leave what is not read yet to the next Cove."""
        with self._turn:
            self._say_rests()
            self._let_go()

    def _say_rests(self) -> None:
        for stream, rest in self._rest.items():
            self._say(stream, [rest] if rest else [])
            self._rest[stream] = b""

    def _let_go(self) -> None:
        for descriptor in self._open:
            self._home.unwatch(descriptor)
            os.close(descriptor)
        self._open = {}


def _pieces(line: bytes) -> list[bytes]:
    """A line as it is, or in pieces of `LINE_BYTES` where it is longer."""
    starts = range(0, len(line), LINE_BYTES)
    return (
        [line[start : start + LINE_BYTES] for start in starts] if len(line) > LINE_BYTES else [line]
    )
