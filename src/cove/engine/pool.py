"""A pool: the instances of a version and the requests waiting for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from cove.engine.autoscaler import Demand
from cove.engine.instance import Instance
from cove.errors import CoveError
from cove.model import Version
from cove.states import InstanceState


class Pool:
    """Hands instances to requests. Claiming never waits; waiting is bounded and first come.

    A *slot* is room for a session. A claim with a slot takes both; the slot is given back on
    its own (`free_slot`), since sessions outlive the requests that open them. Where
    `per_instance` is 1 every claim outside a session takes a slot for its duration, so that no
    request meets another's session.

    `retry_at`: not before then does the loop's time see a start that nobody waits for;
    `setbacks` counts what failed or ended by itself of late, `stillborn` those in a row that never
    had a caller; `failing` is what is answered until then where those are too many.
    `on_change`, shared by a function's pools, is told when an instance has become ready.
    """

    def __init__(
        self,
        version: Version,
        wake: Callable[[Pool], None],
        on_change: set[Callable[[], None]] | None = None,
    ) -> None:
        self.version = version
        self.live = False
        self.retry_at = 0.0
        self.setbacks = 0
        self.stillborn = 0
        self.failing: CoveError | None = None
        self.ready: list[Instance] = []
        self.starting: list[Instance] = []
        self.draining: list[Instance] = []
        self.on_change = on_change if on_change is not None else set()
        self._wake = wake
        self._concurrency = version.spec.scale.concurrency
        self._per_instance = version.spec.session.per_instance
        self.exclusive = self._per_instance == 1
        self._waiting: tuple[deque[asyncio.Future[Instance]], ...] = (deque(), deque())

    # Claiming: synchronous, on the request path.

    def claim(self, *, slot: bool = False) -> Instance | None:
        """An instance with room, or None."""
        if not slot:
            for instance in self.ready:
                if instance.inflight < self._concurrency:
                    instance.inflight += 1
                    return instance
            return None
        for instance in self.ready:
            if instance.inflight < self._concurrency and instance.slots < self._per_instance:
                instance.inflight += 1
                instance.slots += 1
                return instance
        return None

    def claim_on(self, instance: Instance) -> bool:
        """Room for one more request of a session that lives on `instance`."""
        if instance.inflight >= self._concurrency or instance.state is not InstanceState.READY:
            return False
        instance.inflight += 1
        return True

    def release(self, instance: Instance, now: float) -> None:
        """The end of a claim."""
        instance.inflight -= 1
        instance.idle_since = now
        if not instance.served and instance.state is InstanceState.READY:
            instance.served = True
            self.stillborn = 0
        if not instance.throttled:
            instance.throttled = True
            if instance.running is not None:
                instance.running.throttle()
        if self._waiting[0] or self._waiting[1]:
            self._dispatch()

    def free_slot(self, instance: Instance, now: float) -> None:
        """The end of a session, or of an opening that opened none."""
        instance.slots -= 1
        instance.idle_since = now
        if self._waiting[1]:
            self._dispatch()

    # Waiting.

    @property
    def waiting(self) -> int:
        return len(self._waiting[0]) + len(self._waiting[1])

    async def wait(self, *, slot: bool, timeout: float) -> Instance:
        """An instance with room, as soon as there is one; wakes the autoscaler.

        `overloaded` when the queue is full or `timeout` seconds pass; the reason of the
        failed start where no instance can be had.
        """
        if self.waiting >= self.version.spec.scale.queue:
            raise CoveError(
                "overloaded",
                f"{self.version.function} has {self.waiting} requests waiting, its most",
                hint="retry later, or raise scale.queue or scale.max in cove.toml",
            )
        future: asyncio.Future[Instance] = asyncio.get_running_loop().create_future()
        self._waiting[slot].append(future)
        self._wake(self)
        try:
            await asyncio.wait([future], timeout=timeout)
        except asyncio.CancelledError:
            if future.done() and future.exception() is None:
                self._undo(future.result(), slot=slot)
            raise
        finally:
            if future in self._waiting[slot]:
                self._waiting[slot].remove(future)
        if future.done():
            return future.result()
        raise CoveError(
            "overloaded",
            f"no instance of {self.version.function} had room within {timeout:g} s",
            hint="retry later, or raise scale.max or scale.concurrency in cove.toml",
        )

    def _undo(self, instance: Instance, *, slot: bool) -> None:
        if slot:
            instance.slots -= 1
        self.release(instance, asyncio.get_running_loop().time())

    def _dispatch(self) -> None:
        for slot in (True, False):
            queue = self._waiting[slot]
            while queue:
                if queue[0].done():
                    queue.popleft()
                    continue
                instance = self.claim(slot=slot)
                if instance is None:
                    break
                queue.popleft().set_result(instance)

    def fail_waiting(self, error: CoveError) -> None:
        """Answer everyone who waits with why there is no instance."""
        for queue in self._waiting:
            while queue:
                future = queue.popleft()
                if not future.done():
                    future.set_exception(error)

    # Changes that the supervisor brings.

    def became_ready(self, instance: Instance, now: float) -> None:
        """A start succeeded."""
        self.starting.remove(instance)
        instance.move(InstanceState.READY)
        instance.idle_since = instance.ready_at = now
        self.ready.append(instance)
        self._dispatch()
        for listener in list(self.on_change):
            listener()

    def retire(self, instance: Instance) -> None:
        """An instance is no longer to be handed out; it still exists until `drop`."""
        self.drop(instance)
        self.draining.append(instance)

    def drop(self, instance: Instance) -> None:
        """An instance is gone."""
        for group in (self.ready, self.starting, self.draining):
            if instance in group:
                group.remove(instance)

    @property
    def instances(self) -> list[Instance]:
        return [*self.ready, *self.starting, *self.draining]

    def demand(self, now: float) -> Demand:
        """What the autoscaler decides on."""
        idle = [
            (instance.id, now - instance.idle_since)
            for instance in self.ready
            if not instance.inflight and not instance.slots
        ]
        return Demand(
            requests=sum(i.inflight for i in self.ready) + self.waiting,
            waiting=self.waiting,
            sessions=sum(i.slots for i in self.ready) + len(self._waiting[1]),
            ready=len(self.ready),
            starting=len(self.starting),
            idle=sorted(idle, key=lambda item: -item[1]),
        )

    def __repr__(self) -> str:
        running = sum(i.inflight for i in self.ready)
        return (
            f"<Pool {self.version.function}:{self.version.number} [{running} running, "
            f"{self.waiting} waiting | {len(self.ready)} ready, {len(self.starting)} starting]>"
        )
