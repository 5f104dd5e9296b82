"""The supervisor: carries out what the autoscaler decides, and notices what ends by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from cove import clock
from cove.drivers.base import Driver, Exit, Launch, Running
from cove.engine.autoscaler import decide
from cove.engine.instance import Instance, new_id
from cove.engine.output import Outputs
from cove.engine.pool import Pool
from cove.engine.setbacks import RETRY_FIRST, RETRY_MOST, set_back, start_error
from cove.errors import CoveError
from cove.events import Event, EventKind, OnEvent
from cove.model import Isolation, Version, literal
from cove.states import InstanceState

log = structlog.get_logger("cove.supervisor")

_PROBE_FIRST, _PROBE_MOST = 0.004, 0.05
_THROTTLE_AFTER = 1.0
_STOP_GRACE = 5.0
_ADOPT = 2.0  # seconds for one that was serving to take a connection
_TICK = 0.25
_TURN = 2.0
_CLOSE = _STOP_GRACE + 10.0
_ENDING = "this Cove is stopping"
_AGAIN = "try again when it is up"


Secrets = Callable[[Sequence[str]], Mapping[str, str]]
"""The values of secrets by name; `CoveError` where one is not to be had."""


class Supervisor:
    """Starts and stops instances of the pools it is shown, through one driver per tier.

    `parallel_starts` instances are brought up at one time, whosever they are. One that takes
    long gives its turn to the next after `_TURN` seconds; so that a slow program's starts are
    bounded still, no pool has more than `parallel_starts` under way.
    """

    def __init__(
        self,
        drivers: Mapping[Isolation, Driver],
        *,
        outputs: Outputs,
        parallel_starts: int,
        secrets: Secrets = lambda names: {},
        on_start: Callable[[Pool, float], None] | None = None,
        on_event: OnEvent = lambda event: None,
    ) -> None:
        self._drivers = drivers
        self._outputs = outputs
        self._secrets = secrets
        self._on_event = on_event
        self._parallel = parallel_starts
        self._turns = asyncio.Semaphore(parallel_starts)
        self._pools: set[Pool] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: dict[Instance, asyncio.Task[None]] = {}
        self._given_up: set[Instance] = set()
        self._every: dict[Instance, Pool] = {}
        self._on_start = on_start
        self._closing = False
        self._paused = False

    # What is wanted.

    def add(self, pool: Pool) -> None:
        """Look after a pool from now on."""
        self._pools.add(pool)
        self.wake(pool)

    def pause(self) -> None:
        """Start and stop nothing until `resume`: what runs already is not known yet."""
        self._paused = True

    def resume(self) -> None:
        """Bring every pool to its demand."""
        self._paused = False
        for pool in list(self._pools):
            self.wake(pool)

    def wake(self, pool: Pool) -> None:
        """Bring a pool to its demand now."""
        if self._closing or self._paused or pool not in self._pools:
            return
        now = asyncio.get_running_loop().time()
        spec = pool.version.spec
        decision = decide(pool.demand(now), spec.scale, spec.session.per_instance, live=pool.live)
        # Who waits for the only instance is answered by the start, even by its failure; others
        # have a chance of room, and a program that does not stay up has its pause.
        stuck = pool.waiting and not pool.ready and not pool.starting
        if now < pool.retry_at and stuck and pool.failing is not None:
            pool.fail_waiting(pool.failing)
        elif now >= pool.retry_at or stuck:
            for _ in range(min(decision.start, self._parallel - len(pool.starting))):
                self._spawn(pool, "cold")
        stopping = set(decision.stop)
        for instance in [i for i in pool.ready if i.id in stopping]:
            self.stop(pool, instance)

    async def run(self) -> None:
        """Look at every pool again and again: idle instances leave, minimums are kept."""
        while True:
            await asyncio.sleep(_TICK)
            for pool in list(self._pools):
                try:
                    self._tick(pool)
                except Exception:
                    log.exception("pool could not be looked after", pool=repr(pool))

    def _tick(self, pool: Pool) -> None:
        if pool.ready or pool.waiting or (pool.live and pool.version.spec.scale.min):
            self.wake(pool)
        elif not pool.live and not pool.instances:
            self._pools.discard(pool)

    # Starting.

    def _spawn(self, pool: Pool, by: str) -> Instance:
        if self._closing:
            raise CoveError(
                "draining", f"{pool.version.function} is not started: {_ENDING}", hint=_AGAIN
            )
        instance = Instance(new_id(pool.version), started_at=clock.wall(), started_by=by)
        pool.starting.append(instance)
        self._every[instance] = pool
        task = asyncio.create_task(self._start(pool, instance))
        self._starting[instance] = task
        task.add_done_callback(lambda task: self._started(pool, instance))
        self._keep(task)
        return instance

    def _started(self, pool: Pool, instance: Instance) -> None:
        self._starting.pop(instance, None)
        self._given_up.discard(instance)
        if instance.state is InstanceState.STARTING:
            self._gone(pool, instance)  # cancelled before it had begun

    async def first(self, pool: Pool, probe: Callable[[Instance], Awaitable[None]]) -> None:
        """Start one instance of a pool that is not live yet and let `probe` look at it.

        `deploy_failed` with the program's own last lines where it does not start.
        """
        instance = self._spawn(pool, "cold")
        try:
            await asyncio.wait([self._starting[instance]])
        except asyncio.CancelledError:
            self.stop(pool, instance)
            raise
        if instance.state is not InstanceState.READY:
            raise start_error(pool, instance, "deploy_failed")
        instance.inflight += 1
        try:
            await probe(instance)
        except CoveError as error:
            if instance.state is not InstanceState.READY:
                raise start_error(pool, instance, "deploy_failed") from error
            error.lines = error.lines or tuple(instance.tail())
            raise
        finally:
            pool.release(instance, asyncio.get_running_loop().time())

    async def _start(self, pool: Pool, instance: Instance) -> None:
        begun = asyncio.get_running_loop().time()
        try:
            await self._bring_up(pool, instance)
        except Exception as error:
            await self._give_up(pool, instance)
            self._start_failed(pool, instance, error)
            return
        except BaseException:
            await self._give_up(pool, instance)
            raise
        loop = asyncio.get_running_loop()
        loop.call_later(_THROTTLE_AFTER, _throttle, instance)
        if instance.state is not InstanceState.STARTING:
            return
        self._ready(pool, instance)
        seconds = loop.time() - begun
        if self._on_start is not None:
            self._on_start(pool, seconds)
        log.info("instance ready", instance=instance.id, ms=round(seconds * 1000))
        self._tell("instance.started", pool, instance, f"ready after {seconds * 1000:.0f} ms")
        self.wake(pool)  # for the next, where more were wanted than may start at one time

    def _ready(self, pool: Pool, instance: Instance) -> None:
        pool.failing = None  # one more setback, and it is again
        pool.became_ready(instance, asyncio.get_running_loop().time())

    def _tell(self, kind: EventKind, pool: Pool, instance: Instance, reason: str) -> None:
        version = pool.version
        self._on_event(
            Event(clock.wall(), kind, version.function, version.number, instance.id, reason)
        )

    async def _bring_up(self, pool: Pool, instance: Instance) -> None:
        with contextlib.ExitStack() as turn:
            await self._turns.acquire()
            turn.callback(self._turns.release)
            running = await self._launch(pool, instance)
            early = asyncio.get_running_loop().call_later(_TURN, turn.close)
            turn.callback(early.cancel)
            startup = pool.version.spec.limits.startup
            await self._until_open(pool.version, instance, running, startup)

    def _start_failed(self, pool: Pool, instance: Instance, error: Exception) -> None:
        if not isinstance(error, CoveError):
            log.error("start failed", instance=instance.id, exc_info=error)
            error = CoveError(
                "start_failed", f"{pool.version.function} could not be started: {error}"
            )
        log.warning("start failed", instance=instance.id, reason=error.message)
        instance.failure = error
        self._tell("instance.start_failed", pool, instance, error.message)
        self._set_back(pool, RETRY_FIRST, error.message, instance)
        if not pool.ready and not pool.starting:
            pool.fail_waiting(start_error(pool, instance, "start_failed"))

    async def _launch(self, pool: Pool, instance: Instance) -> Running:
        version = pool.version
        plan = version.plan
        driver = self._drivers.get(version.isolation)
        if driver is None:
            raise CoveError(
                "start_failed",
                f"{version.function}:{version.number} runs with isolation = "
                f"{version.isolation!r}, which this Cove has not",
                hint="`cove doctor` says what is missing; or deploy it again for what there is",
            )
        secrets = self._secrets(version.spec.secrets)
        output = instance.output = self._outputs.make(
            version.function, version.number, instance.id, list(secrets.values())
        )
        output.serving = instance.serves
        stdout, stderr = output.open()
        try:
            running = await driver.start(
                Launch(
                    id=instance.id,
                    function=version.function,
                    version=version.number,
                    argv=plan.argv,
                    env={
                        **plan.env,
                        **{name: literal(value) for name, value in secrets.items()},
                        "COVE_FUNCTION": version.function,
                    },
                    port=version.spec.port,
                    code=plan.code,
                    deps=plan.deps,
                    interpreter=plan.interpreter,
                    limits=version.spec.limits,
                    stdout=stdout,
                    stderr=stderr,
                    secrets=secrets,
                )
            )
        finally:
            os.close(stdout)
            os.close(stderr)
        instance.running = running
        running.exited.add_done_callback(lambda done: self._exited(pool, instance, done.result()))
        return running

    async def _until_open(
        self, version: Version, instance: Instance, running: Running, patience: float
    ) -> None:
        """Until the program's port accepts. Its exit or `patience` seconds end the wait."""
        pause = _PROBE_FIRST
        try:
            async with asyncio.timeout(patience):
                while not running.exited.done():
                    try:
                        (await running.connect()).close()
                        if not running.exited.done():
                            return
                    except OSError:
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(asyncio.shield(running.exited), pause)
                        pause = min(pause * 1.3, _PROBE_MOST)
        except TimeoutError:
            ports = ", ".join(str(port) for port in running.ports()) or "none"
            raise CoveError(
                "start_failed",
                f"{version.function} opened no port within {patience:g} s",
                hint=f"listen on $PORT (ports it listens on: {ports}), or raise limits.startup",
                lines=instance.tail(),
            ) from None
        raise CoveError(
            "start_failed",
            f"{version.function} ended while starting: {running.exited.result()}",
            lines=instance.tail(),
        )

    async def _give_up(self, pool: Pool, instance: Instance) -> None:
        self._given_up.add(instance)
        if instance.running is not None:
            await instance.running.stop(0)
        self._gone(pool, instance)

    # Adopting.

    async def adopt(self, pool: Pool, running: Running) -> Instance | None:
        """An earlier Cove's instance goes on in its pool; None, and it ends, if it takes nothing.

        Its pool must be one that this supervisor looks after, or will.
        """
        version = pool.version
        instance = Instance(running.id, started_at=clock.wall(), started_by="adopted")
        output = self._outputs.adopt(version.function, version.number, running.id)
        output.serving = instance.serves
        instance.served = True  # by what the Cove before knew
        instance.running, instance.output = running, output
        pool.starting.append(instance)
        self._every[instance] = pool
        running.exited.add_done_callback(lambda done: self._exited(pool, instance, done.result()))
        try:
            await self._until_open(version, instance, running, _ADOPT)
        except CoveError as error:
            log.warning("instance not adopted", instance=instance.id, reason=error.message)
            await self._give_up(pool, instance)
            self._given_up.discard(instance)
            self._tell("instance.stopped", pool, instance, f"not adopted: {error.message}")
            return None
        _throttle(instance)
        self._ready(pool, instance)
        log.info("instance adopted", instance=instance.id, pid=running.pid)
        self._tell("instance.adopted", pool, instance, f"pid {running.pid}")
        return instance

    # Stopping.

    def stop(self, pool: Pool, instance: Instance) -> None:
        """End an instance: at once out of the pool, then its requests, then the program."""
        if instance.state is InstanceState.STARTING:
            task = self._starting.get(instance)
            if task is not None and instance not in self._given_up:
                task.cancel()
            return
        if instance.state is not InstanceState.READY:
            return
        pool.retire(instance)
        instance.move(InstanceState.DRAINING)
        self._keep(asyncio.create_task(self._end(pool, instance)))

    async def _end(self, pool: Pool, instance: Instance) -> None:
        if instance.running is not None:
            how = await instance.running.stop(_STOP_GRACE)
            log.info("instance stopped", instance=instance.id)
            self._tell("instance.stopped", pool, instance, str(how))

    def _exited(self, pool: Pool, instance: Instance, how: Exit) -> None:
        instance.exit = how
        if instance.state is InstanceState.STARTING:
            return  # _start notices, and says why
        if instance.state is InstanceState.READY:
            log.warning("instance ended by itself", instance=instance.id, reason=str(how))
            self._tell("instance.oom" if how.oom else "instance.crashed", pool, instance, str(how))
            if asyncio.get_running_loop().time() - instance.ready_at > RETRY_MOST:
                pool.setbacks = 0
            # What its only caller has brought about is no setback for others.
            if not (pool.exclusive and instance.slots):
                self._set_back(pool, 0.0, str(how), instance)
        self._gone(pool, instance)
        self.wake(pool)

    def _gone(self, pool: Pool, instance: Instance) -> None:
        pool.drop(instance)
        self._every.pop(instance, None)
        if instance.output is not None:
            instance.output.close()
        if instance.state is not InstanceState.STOPPED:
            instance.move(InstanceState.STOPPED)

    def _set_back(self, pool: Pool, first: float, reason: str, instance: Instance) -> None:
        now = asyncio.get_running_loop().time()
        if set_back(pool, instance, reason, first=first, now=now):
            self._tell("version.failing", pool, instance, reason)

    def retire(self, pool: Pool) -> None:
        """A pool is no longer live: idle instances leave now, others when they are done."""
        pool.live = False
        self.wake(pool)

    async def remove(self, pool: Pool, reason: CoveError) -> None:
        """End all instances of a pool, answering who waits with `reason`."""
        self._pools.discard(pool)
        pool.live = False
        pool.fail_waiting(reason)
        await self._stop_all(pool)

    async def close(self, *, keep: bool = False) -> None:
        """End everything, a deploy's first instance too. Nothing is started any more.

        `keep`: instances with sessions stay, to be adopted; nothing more is done with them.
        Takes `_CLOSE` seconds at most, whatever programs do.
        """
        self._closing = True
        for instance in self._starting:
            instance.failure = CoveError("draining", _ENDING, hint=_AGAIN)
        for pool in self._pools:
            pool.fail_waiting(CoveError("draining", _ENDING, hint=_AGAIN))
        for instance, pool in list(self._every.items()):
            if not (keep and instance.slots and instance.state is InstanceState.READY):
                self.stop(pool, instance)
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=_CLOSE)
            if left:
                log.error("instances did not end", instances=[i.id for i in self._every])
        for instance in self._every:
            if instance.output is not None:
                instance.output.release()  # the next Cove reads on

    async def _stop_all(self, pool: Pool) -> None:
        ends: list[asyncio.Future[Exit] | asyncio.Task[None]] = []
        for instance in pool.instances:
            self.stop(pool, instance)
            if instance.running is not None:
                ends.append(instance.running.exited)
            if (task := self._starting.get(instance)) is not None:
                ends.append(task)
        if ends:
            await asyncio.wait(ends, timeout=_CLOSE)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("instance task failed", error=repr(error))


def _throttle(instance: Instance) -> None:
    if not instance.throttled and instance.running is not None:
        instance.throttled = True
        instance.running.throttle()
