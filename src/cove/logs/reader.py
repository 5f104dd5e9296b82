"""A thread that reads what instances print, so that no program's output costs a request time."""

from __future__ import annotations

import contextlib
import heapq
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

import structlog

from cove.clock import now

log = structlog.get_logger("cove.output")


class Source(Protocol):
    """Something with a descriptor to read. Called in the reader's thread."""

    def pump(self, descriptor: int) -> float:
        """Read what there is. Seconds to leave it alone for, or a negative number at its end."""


class Reader:
    """Reads any number of sources in one thread, begun with the first of them."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._sources: dict[int, Source] = {}
        self._resting: list[tuple[float, int]] = []
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._closed = False
        self._calls: deque[Callable[[], None]] = deque()
        self._turn = threading.Lock()  # of who changes what is looked at
        self._thread: threading.Thread | None = None

    def add(self, descriptor: int, source: Source) -> None:
        """Read `source` whenever `descriptor` has something, until `remove`."""
        with self._turn:
            self._sources[descriptor] = source
            self._selector.register(descriptor, selectors.EVENT_READ)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cove-output", daemon=True)
                self._thread.start()

    def remove(self, descriptor: int) -> None:
        """Look at it no more. Idempotent. A `pump` of it may be under way still."""
        with self._turn:
            self._sources.pop(descriptor, None)
            self._forget(descriptor)

    def call(self, work: Callable[[], None]) -> None:
        """Have something done in the thread, after what it is doing; here where there is none."""
        if self._thread is None or self._closed:
            work()
            return
        self._calls.append(work)
        self._stir()

    def _stir(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b".")

    def _forget(self, descriptor: int) -> None:
        with contextlib.suppress(KeyError, ValueError, OSError):
            self._selector.unregister(descriptor)

    def close(self) -> None:
        """End the thread. Sources are their owners' to close."""
        self._closed = True
        self._stir()
        if self._thread is not None:
            self._thread.join()
        self._selector.close()
        os.close(self._woken)
        os.close(self._wake)

    def _run(self) -> None:
        while not self._closed or self._calls:
            while self._calls:
                self._guarded(self._calls.popleft())
            if self._closed:
                return
            timeout = max(0.0, self._resting[0][0] - now()) if self._resting else None
            for key, _ in self._selector.select(timeout):
                if key.fd == self._woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._woken, 4096)
                else:
                    self._pump(key.fd)
            while self._resting and self._resting[0][0] <= now():
                self._again(heapq.heappop(self._resting)[1])

    def _pump(self, descriptor: int) -> None:
        source = self._sources.get(descriptor)
        if source is None:
            return
        try:
            pause = source.pump(descriptor)
        except Exception:
            log.exception("an instance's output is read no more")
            pause = -1.0
        if pause:
            with self._turn:
                if self._sources.get(descriptor) is source:
                    self._forget(descriptor)
            if pause > 0:
                heapq.heappush(self._resting, (now() + pause, descriptor))

    def _again(self, descriptor: int) -> None:
        with self._turn:
            if descriptor in self._sources:
                with contextlib.suppress(KeyError, ValueError, OSError):
                    self._selector.register(descriptor, selectors.EVENT_READ)

    @staticmethod
    def _guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            log.exception("the rest of an instance's output was not read")
