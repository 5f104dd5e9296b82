"""A campaign: so many inputs of each kind, from one seed, bounded in time and memory."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from fuzz.answers import Answers
from fuzz.front import Front, InputError
from fuzz.rewriting import Rewriting
from fuzz.sockets import Sockets
from fuzz.ways import Ways
from fuzz.wire import FaultError

CASE_SECONDS = 30
MEMORY = 2 * 1024**3
"""Bytes of address space that a worker may have."""

_SHOWN = 3000
_CHECKS = 10
_WARM = 3  # checks until everything that is remembered once has been
_BLOCKS_FREE = 3000
_BLOCKS_PER_INPUT = 0.02
_RESIDENT_FREE = 32 * 1024**2


class Cases(Protocol):
    """A kind of cases."""

    name: str
    outcomes: Counter[str]

    def case(self, rng: Random) -> int:
        """One case, made of `rng` alone; how many inputs it was."""

    def settle(self) -> None:
        """Forget what may be remembered, so that what is left can be measured."""


KINDS: dict[str, Callable[[], Cases]] = {
    "front": Front,
    "answers": Answers,
    "rewriting": Rewriting,
    "ways": Ways,
    "sockets": Sockets,
}
SHARES = {"front": 0.72, "answers": 0.15, "rewriting": 0.06, "ways": 0.065, "sockets": 0.005}


@dataclass
class Failure:
    """An input that shows a defect, and how to have it again."""

    kind: str
    seed: int
    number: int
    why: str
    data: bytes = b""
    cuts: tuple[int, ...] = ()
    manner: str = ""
    trace: str = ""

    def __str__(self) -> str:
        return (
            f"{self.kind} case {self.number} of seed {self.seed}: {self.why}\n"
            f"  input:  {_shown(self.data)}\n"
            f"  cut at: {self.cuts}\n"
            f"  manner: {self.manner}\n"
            f"  again:  make fuzz SEED={self.seed} CASE={self.kind}/{self.number}\n{self.trace}"
        )


@dataclass
class Result:
    """What a worker did of one kind, in `seconds` of a core's time.

    `blocks` (objects alive) and `resident` (bytes) are those of each check.
    """

    kind: str
    inputs: int = 0
    cases: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    blocks: list[int] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    failure: Failure | None = None


def _shown(data: bytes) -> str:
    """An input, whole where it can be read; the long ones are had again by their number."""
    if len(data) <= _SHOWN:
        return repr(data)
    return f"{data[:_SHOWN]!r} and {len(data) - _SHOWN} bytes more"


def run(
    kind: str,
    seed: int,
    count: int,
    *,
    worker: int = 0,
    workers: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> Result:
    """A worker's part of `count` inputs: every `workers`-th case, from its own number on."""
    cases, result = KINDS[kind](), Result(kind)
    quota = -(-count // workers)
    number, started = worker, time.process_time()
    try:
        while result.inputs < quota and result.failure is None and not stop():
            result.failure = _case(cases, seed, number, result)
            number += workers
            if result.inputs >= quota * (len(result.blocks) + 1) / _CHECKS:
                result.failure = result.failure or _measure(cases, seed, number, result)
    finally:
        if isinstance(cases, Sockets):
            cases.close()
    result.seconds = time.process_time() - started
    result.outcomes = cases.outcomes
    return result


def again(kind: str, seed: int, number: int) -> Result:
    """One case, as it was in the campaign of that seed."""
    cases, result = KINDS[kind](), Result(kind)
    result.failure = _case(cases, seed, number, result)
    result.outcomes = cases.outcomes
    return result


def _case(cases: Cases, seed: int, number: int, result: Result) -> Failure | None:
    rng = Random(f"{seed}/{cases.name}/{number}")
    try:
        with _bounded():
            result.inputs += cases.case(rng)
            result.cases += 1
    except InputError as error:
        cause = error.__cause__ or error
        trace = "".join(traceback.format_exception(cause)[-3:])
        manner = repr(error.manner)
        return Failure(cases.name, seed, number, error.why, error.data, error.cuts, manner, trace)
    except Exception as error:
        return Failure(cases.name, seed, number, repr(error), trace=traceback.format_exc())
    return None


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """A case that never ends is a defect too."""

    def late(signum: int, frame: object) -> None:
        raise TimeoutError(f"the case takes more than {CASE_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _measure(cases: Cases, seed: int, number: int, result: Result) -> Failure | None:
    try:
        cases.settle()
    except FaultError as error:
        return Failure(cases.name, seed, number, str(error))
    gc.collect()
    result.blocks.append(sys.getallocatedblocks())
    result.resident.append(resident())
    why = grows(result)
    return Failure(cases.name, seed, number, why) if why else None


def grows(result: Result) -> str:
    """Why the memory of a run is no longer bounded; nothing where it is."""
    if len(result.blocks) <= _WARM:
        return ""
    part = 1 - _WARM / len(result.blocks)
    blocks = result.blocks[-1] - result.blocks[_WARM - 1]
    if blocks > _BLOCKS_FREE + _BLOCKS_PER_INPUT * result.inputs * part:
        return f"{blocks} more objects are alive than after the first inputs: {result.blocks}"
    held = result.resident[-1] - result.resident[_WARM - 1]
    if held > _RESIDENT_FREE:
        return f"{held} more bytes are held than after the first inputs: {result.resident}"
    return ""


def resident() -> int:
    """Bytes of memory that this process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def confine() -> None:
    """No worker may take more memory than is its."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
