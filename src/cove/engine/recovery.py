"""Recovery: what an earlier Cove left, taken over before anybody is served.

The store and the ledger say what every session was; the drivers say which instances still run.
A session whose instance runs goes on; every other has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import structlog

from cove import clock
from cove.drivers.base import Driver, Running
from cove.engine.functions import Functions
from cove.engine.instance import named
from cove.engine.ledger import Ledger
from cove.engine.output import Outputs
from cove.engine.sessions import STREAM, Sessions
from cove.events import Event, OnEvent
from cove.model import SessionRecord
from cove.states import InstanceState, SessionState
from cove.store.base import Store

log = structlog.get_logger("cove.recovery")


@dataclass(frozen=True, slots=True)
class Recovered:
    """How many instances and sessions go on, and how many sessions have ended with theirs."""

    instances: int
    sessions: int
    ended: int


async def recover(
    *,
    drivers: Iterable[Driver],
    functions: Functions,
    sessions: Sessions,
    outputs: Outputs,
    store: Store,
    ledger: Ledger,
    on_event: OnEvent,
) -> Recovered:
    """Take over. Functions must be loaded; `ledger` has what the earlier process noted."""
    records = ledger.settled(await store.sessions())
    left: list[Running] = []
    for driver in drivers:
        left += await driver.adopt()
    adopted = await functions.adopt(left)
    going_on, ended = [], []
    for record in records:
        found = adopted.get(record.instance)
        if found is not None and found[1].state is InstanceState.READY and _goes_on(record):
            going_on.append(sessions.restore(record, *found))
        else:
            ended.append(record)
    ledger.turn()
    await store.put_sessions([replace(record, state=SessionState.ENDED) for record in ended])
    await store.put_sessions(sessions.take_changed())
    ledger.settle()
    whose = {record.instance: record.function for record in records}
    names = [entry.name for entry in functions.all()]
    for ident in sorted({*outputs.left()} - {*adopted}):
        function = whose.get(ident) or _function(ident, names)
        if function in names:
            _ended_meanwhile(ident, function, outputs, on_event)
        else:
            outputs.discard(ident)  # nobody is left to read it
    recovered = Recovered(len(adopted), len(going_on), len(ended))
    if left or records:
        log.info("recovered", instances=recovered.instances, sessions=recovered.sessions)
    return recovered


def _goes_on(record: SessionRecord) -> bool:
    return record.state is not SessionState.ENDED and record.affinity != STREAM


def _function(ident: str, names: Sequence[str]) -> str:
    """Whose instance it was, by the beginning of its id; empty where that may be several's."""
    head = ident.rpartition("-")[0].rpartition("-")[0]
    found = [name for name in names if named(name) == head]
    return found[0] if len(found) == 1 else ""


def _ended_meanwhile(ident: str, function: str, outputs: Outputs, on_event: OnEvent) -> None:
    """An instance has ended while no Cove was there, or was not to be adopted: its last words."""
    number = ident.rpartition("-")[0].rpartition("-")[2]
    version = int(number) if number.isdigit() else 0
    output = outputs.adopt(function, version, ident)
    output.finish()
    last = output.tail(1)
    reason = "ended while no Cove was there" + (f"; it said last: {last[0]}" if last else "")
    on_event(Event(clock.wall(), "instance.crashed", function, version, ident, reason))
