"""The processes of a campaign: one for each core that counts, and the first failure stops all."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Event

from fuzz.campaign import SHARES, Result, confine, run

SECONDS = 900.0
"""A campaign that takes longer than this is stopped, and has failed."""

WORKERS = min(2, os.cpu_count() or 1)

_stop: Event | None = None


def campaign(seed: int, count: int) -> list[Result]:
    """All kinds of cases, `count` inputs of them."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    until = time.monotonic() + SECONDS
    with ProcessPoolExecutor(
        WORKERS, mp_context=context, initializer=_begin, initargs=(stop,)
    ) as pool:
        parts = [
            pool.submit(_work, kind, seed, round(count * share), worker, until)
            for kind, share in SHARES.items()
            for worker in range(WORKERS)
        ]
        return [part.result() for part in parts]


def _begin(stop: Event) -> None:
    global _stop
    _stop = stop
    confine()


def _work(kind: str, seed: int, count: int, worker: int, until: float) -> Result:
    """One process's part of a kind."""
    stop = _stop
    assert stop is not None

    def over() -> bool:
        return stop.is_set() or time.monotonic() > until

    result = run(kind, seed, count, worker=worker, workers=WORKERS, stop=over)
    if result.failure is not None:
        stop.set()
    return result
