"""Sessions: which instance a caller's thread of work lives on, and until when."""

from __future__ import annotations

import asyncio
import heapq
import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace

from cove import clock
from cove.engine.instance import Instance
from cove.engine.pool import Pool
from cove.errors import CoveError
from cove.model import SessionRecord
from cove.states import InstanceState, SessionState, move

STREAM = "stream"
"""The affinity, in records, of a session that is a stream."""


class Session:
    """A routing session: a key, its principal, its instance. Times are the loop's.

    `on_end` is told once, when the session ends for whatever reason. `remote` is the id the
    program itself gave it; `attached` what the gateway keeps with it; `streams`: it is one stream
    of its caller's, and ends with that.
    """

    __slots__ = (
        "attached",
        "created",
        "created_at",
        "gone",
        "id",
        "inflight",
        "instance",
        "key",
        "last",
        "on_end",
        "opened",
        "pool",
        "principal",
        "remote",
        "state",
        "streams",
    )

    def __init__(self, pool: Pool, principal: str, key: str, now: float) -> None:
        self.id = secrets.token_hex(8)
        self.pool = pool
        self.principal = principal
        self.key = key
        self.remote = b""
        self.attached: object = None
        self.streams = False
        self.instance: Instance | None = None
        self.opened: asyncio.Future[CoveError | None] | None = None
        self.inflight = 0
        self.created = self.last = now
        self.created_at = clock.wall()
        self.gone: Callable[[], None] | None = None
        self.state = SessionState.RUNNING
        self.on_end: set[Callable[[], None]] = set()

    def due(self) -> float:
        """When the session ends if nothing more happens."""
        policy = self.pool.version.spec.session
        idle = self.last + policy.idle if not self.inflight else float("inf")
        return min(idle, self.created + policy.lifetime)

    @property
    def lost(self) -> bool:
        """Its instance is gone."""
        return self.instance is not None and self.instance.state in (
            InstanceState.STOPPED,
            InstanceState.DRAINING,
        )

    def record(self) -> SessionRecord:
        version = self.pool.version
        return SessionRecord(
            id=self.id,
            function=version.function,
            version=version.number,
            principal=self.principal,
            affinity=STREAM if self.streams else str(version.spec.session.affinity),
            key=self.key,
            instance=self.instance.id if self.instance is not None else "",
            state=self.state,
            created_at=self.created_at,
            last_at=self.created_at + (self.last - self.created),
            remote=self.remote.decode("latin-1"),
        )

    def __repr__(self) -> str:
        return f"<Session {self.id} {self.state} of {self.pool.version.function}>"


Key = tuple[str, str, str]

_FEW = 64
_KEPT = 100_000


class Sessions:
    """All running sessions, found by function, principal and key in one look-up.

    A session holds a slot of its instance from its opening to its end.
    """

    def __init__(self, note: Callable[[SessionRecord], None] = lambda record: None) -> None:
        """`note` is given what opens and what ends, before anybody is told of it."""
        self._note = note
        self._by_key: dict[Key, Session] = {}
        self._due: list[tuple[float, str, Session]] = []
        self._stale = 0
        self._changed: dict[str, Session] = {}
        self._ended: dict[str, SessionRecord] = {}

    def get(self, function: str, principal: str, key: str) -> Session | None:
        """The running session of that caller, if its instance still is."""
        session = self._by_key.get((function, principal, key))
        if session is not None and session.lost:
            self.end(session, session.last)
            return None
        return session

    def open(self, pool: Pool, principal: str, key: str, now: float) -> Session:
        """A new session, not yet on an instance."""
        session = Session(pool, principal, key, now)
        self._by_key[(pool.version.function, principal, key)] = session
        self._schedule(session)
        self._changed[session.id] = session
        return session

    def put_back(self, records: Iterable[SessionRecord]) -> None:
        """Records that the store did not take: they are due again, where nothing newer is.

        Sessions that run are remembered all; of those that have ended, `_KEPT` at most.
        """
        running = {session.id: session for session in self._by_key.values()}
        for record in records:
            if (session := running.get(record.id)) is not None:
                self._changed[session.id] = session
            elif record.id not in self._changed and len(self._ended) < _KEPT:
                self._ended[record.id] = replace(record, state=SessionState.ENDED)

    def restore(self, record: SessionRecord, pool: Pool, instance: Instance) -> Session:
        """A session of an earlier process goes on, on its instance that was adopted."""
        now, wall = asyncio.get_running_loop().time(), clock.wall()
        session = Session(pool, record.principal, record.key, now)
        session.id = record.id
        session.remote = record.remote.encode("latin-1")
        session.created_at = record.created_at
        # By a clock that may have been set since: no session is from the future.
        session.created = now - max(0.0, wall - record.created_at)
        session.last = now - max(0.0, min(wall - record.last_at, now - session.created))
        instance.slots += 1
        self._by_key[(record.function, record.principal, record.key)] = session
        self._schedule(session)
        self.place(session, instance)
        return session

    def place(self, session: Session, instance: Instance) -> None:
        """The session lives on `instance`, whose slot the caller has claimed.

        A session that has ended while it waited for its instance gives the slot back.
        """
        if session.state is SessionState.ENDED:
            session.pool.free_slot(instance, session.last)
            return
        session.instance = instance
        if session.pool.exclusive:
            instance.session = session.id
        self._changed[session.id] = session
        self._note(session.record())
        session.gone = lambda: self.end(session, session.last)
        instance.on_stopping.add(session.gone)

    def touch(self, session: Session, now: float) -> None:
        """Something was sent or answered: idle time begins anew."""
        session.last = now

    def end(self, session: Session, now: float) -> None:
        """End a session and give its slot back. Idempotent."""
        if session.state is SessionState.ENDED:
            return
        session.state = move(f"session {session.id}", session.state, SessionState.ENDED)
        key = (session.pool.version.function, session.principal, session.key)
        if self._by_key.get(key) is session:
            del self._by_key[key]
        self._changed[session.id] = session
        if session.instance is not None:
            self._note(session.record())
            session.instance.session = ""
            if session.gone is not None:
                session.instance.on_stopping.discard(session.gone)
            session.pool.free_slot(session.instance, now)
        listeners, session.on_end = session.on_end, set()
        for listener in listeners:
            listener()
        session.attached = session.gone = None
        self._forget_one()

    def _forget_one(self) -> None:
        # An ended session stays in the heap until its time: not more of them than of the others.
        self._stale += 1
        if self._stale > max(_FEW, len(self._due) // 2):
            self._due = [item for item in self._due if item[2].state is not SessionState.ENDED]
            heapq.heapify(self._due)
            self._stale = 0

    def expire(self, now: float) -> list[Session]:
        """End every session whose time has come; returns them."""
        ended = []
        while self._due and self._due[0][0] <= now:
            _, _, session = heapq.heappop(self._due)
            if session.state is SessionState.ENDED:
                self._stale -= 1
                continue
            if session.due() <= now:
                self._stale -= 1  # it has left the heap already
                self.end(session, now)
                ended.append(session)
            else:
                self._schedule(session, now)
                self._changed[session.id] = session  # `last` reaches the store from time to time
        return ended

    def _schedule(self, session: Session, now: float = 0.0) -> None:
        # A busy session is due at infinity: look again when its idle time could have passed.
        again = now + session.pool.version.spec.session.idle
        due = min(session.due(), max(again, session.last)) if session.inflight else session.due()
        heapq.heappush(self._due, (due, session.id, session))

    def of(self, function: str | None = None) -> list[Session]:
        """Running sessions, newest first."""
        found = [
            s
            for s in self._by_key.values()
            if function is None or s.pool.version.function == function
        ]
        return sorted(found, key=lambda s: -s.created)

    def count(self, function: str) -> int:
        return sum(1 for key in self._by_key if key[0] == function)

    def take_changed(self) -> list[SessionRecord]:
        """Records of what changed since the last call, for the store."""
        changed, self._changed = self._changed, {}
        ended, self._ended = self._ended, {}
        return [*ended.values(), *(session.record() for session in changed.values())]
