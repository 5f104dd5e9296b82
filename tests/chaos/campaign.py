"""Rounds of load, SIGKILL and start again, each checked; then a clean stop that leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx2

from chaos.clients import (
    Browsing,
    Chatting,
    Client,
    Counting,
    Listening,
    Modern,
    Streaming,
    browser,
)
from chaos.deployer import Deploying, Following
from chaos.server import Control, Json, RefusedError, Server
from chaos.sweep import sweep
from chaos.tally import Tally
from chaos.traces import Ground, strays

AGAIN_WITHIN = 45.0
"""Seconds after a start in which everyone must have been served again."""

CROWD: Sequence[tuple[type[Client], int]] = (
    (Counting, 6),
    (Listening, 2),
    (Modern, 2),
    (Streaming, 2),
    (Chatting, 2),
    (Browsing, 3),
)
_PIECE = 4096  # bytes
_LINE = re.compile(r"line (\d+) of ")
KEPT = ("counter", "printer")  # the functions whose instances are never idle


@dataclass
class Result:
    """What a campaign has seen. A campaign without `violations` is one that went well."""

    tally: Tally = field(default_factory=Tally)
    rounds: int = 0
    kills: int = 0
    restarts: list[float] = field(default_factory=list)
    sessions_kept: int = 0
    sessions_lost: int = 0
    adopted: int = 0
    replaced: int = 0
    lines: int = 0
    taken: int = 0
    leaks: Counter[str] = field(default_factory=Counter)

    @property
    def violations(self) -> list[str]:
        return self.tally.violations


class Campaign:
    """`rounds` of it, from one seed. Round n is drawn from `seed + n` alone."""

    def __init__(self, folder: Path, rounds: int, seed: int, driver: str = "auto") -> None:
        self.server = Server(folder, driver)
        self.rounds, self.seed = rounds, seed
        self.result = Result()
        self.tally = self.result.tally
        self._line = 0
        self._since = ""

    async def run(self) -> Result:
        """All rounds, whatever they find. Everything ends with it."""
        try:
            self.server.launch()
            await self.server.ready()
            async with browser() as http:
                await self._rounds(http)
            await self._leave()
        except (RefusedError, TimeoutError) as error:
            self.tally.violation(f"{type(error).__name__}: {error}\n{self.server.last_words()}")
        finally:
            await asyncio.to_thread(sweep, self.server)
        return self.result

    async def _rounds(self, http: httpx2.AsyncClient) -> None:
        control = Control(self.server, http)
        deploying = Deploying(control, *self._given(http, 0))
        await deploying.stand()
        self.ground = Ground(self.server)
        clients: list[Client] = [deploying, Following(deploying, *self._given(http, 1))]
        for cls, count in CROWD:
            clients += (cls(*self._given(http, len(clients) + n)) for n in range(count))
        async with self._crowd(clients):
            await self._everyone(clients)
            for number in range(self.rounds):
                self.tally.round = number
                await self._round(Random(self.seed + number), control, deploying, clients)
                self.result.rounds += 1

    def _given(self, http: httpx2.AsyncClient, number: int) -> tuple[object, ...]:
        return self.server, http, self.tally, Random(f"{self.seed} {number}")

    @contextlib.asynccontextmanager
    async def _crowd(self, clients: Sequence[Client]) -> AsyncIterator[None]:
        """All of them at work, through kills and starts."""
        tasks = [asyncio.create_task(client.run()) for client in clients]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for client, end in zip(
                clients, await asyncio.gather(*tasks, return_exceptions=True), strict=True
            ):
                if isinstance(end, Exception):
                    self.tally.violation(f"{client.kind}: {end!r}")

    async def _round(
        self, dice: Random, control: Control, deploying: Deploying, clients: Sequence[Client]
    ) -> None:
        kills = self.result.kills
        await asyncio.sleep(dice.uniform(0.2, 1.5))
        before = await control.instances()
        sessions = [client for client in clients if isinstance(client, Counting)]
        named = {client: client.session for client in sessions if client.who}
        await asyncio.sleep(dice.uniform(0.0, 0.3))
        await self._kill(dice)
        await self._start(dice)
        await self._everyone(clients)
        async with deploying.hold:
            await deploying.check()
            await self._same_instances(before, await control.instances())
            await self._no_line_is_missing(control, self.result.kills - kills)
            await self._nothing_stray(control)
        self.result.sessions_kept += sum(client.session == was for client, was in named.items())
        self.result.sessions_lost = sum(client.lost for client in sessions)

    async def _kill(self, dice: Random) -> None:
        self.tally.down(time.monotonic())
        self.server.kill()
        self.result.kills += 1
        await asyncio.sleep(dice.choice((0.0, dice.uniform(0, 0.8))))

    async def _start(self, dice: Random) -> None:
        """Start it again; one in five is killed while it starts, and another started."""
        while dice.random() < 0.2:
            self.server.launch()
            await asyncio.sleep(dice.uniform(0.1, 1.5))
            self.server.kill()
            self.result.kills += 1
        begun = time.monotonic()
        self.server.launch()
        ready = await self.server.ready()
        self.tally.up(ready)
        self.result.restarts.append(ready - begun)

    async def _everyone(self, clients: Sequence[Client]) -> None:
        """Wait until each client has been served again."""
        waiting = {asyncio.create_task(client.again()): client for client in clients}
        done, late = await asyncio.wait(waiting, timeout=AGAIN_WITHIN)
        for task in late:
            task.cancel()
            self.tally.violation(
                f"{waiting[task].kind}: nothing went well within {AGAIN_WITHIN:g} s of a start"
            )
        await asyncio.gather(*late, return_exceptions=True)
        assert all(task.exception() is None for task in done)

    async def _same_instances(self, before: dict[str, Json], after: dict[str, Json]) -> None:
        """Those with sessions, and those that must always be, are the processes that they were."""
        self.result.adopted += sum(each["started_by"] == "adopted" for each in after.values())
        for ident, was in before.items():
            function = ident.rsplit("-", 2)[0]
            if function not in KEPT or was["state"] != "ready":
                continue
            if function == "counter" and not was["sessions"]:
                continue
            now = after.get(ident)
            if now is None or now["pid"] != was["pid"]:
                self.result.replaced += 1
                self.tally.violation(f"instance {ident} with pid {was['pid']} is now {now}")

    async def _no_line_is_missing(self, control: Control, kills: int) -> None:
        """The printer's numbers are in its log one after the other, each once.

        But for what a kill may take, as docs/failures.md says: one piece that has been read and
        is not written yet, and the beginning of a line.
        """
        records = await control.lines("printer", self._since)
        said = [
            f"{line} of {record['instance']}"
            for record in records
            for line in record["text"].split("\n")  # many lines at once may share a record
        ]
        numbers = [int(match[1]) for text in said if (match := _LINE.match(text))]
        torn = len(said) - len(numbers)
        if not numbers or numbers[0] > self._line or torn > kills:
            self.tally.violation(f"from line {self._line} on the log has {torn} torn: {said[:5]}")
        if not numbers:
            return
        for last, number in itertools.pairwise(numbers):
            missing = number - last - 1
            if 0 < missing <= _PIECE // len(f"line {number}\n") + 1 and kills:
                kills -= 1
                self.result.taken += missing
            elif missing:
                at = next(n for n, text in enumerate(said) if text.startswith(f"line {number} "))
                self.tally.violation(f"the log does not go on: {said[max(0, at - 3) : at + 4]}")
                break
        self.result.lines += numbers[-1] - self._line
        self._line, self._since = numbers[-1], records[-1]["time"]

    async def _nothing_stray(self, control: Control) -> None:
        async def names() -> set[str]:
            found = await control.instances()
            return {*found, *(f" of session {each['pid']}," for each in found.values())}

        for stray in await strays(self.ground, names):
            self.result.leaks[stray.kind] += 1
            self.tally.violation(f"left behind: {stray.kind} {stray.what}")

    async def _leave(self) -> None:
        """A clean stop, after which nothing is there but the data."""
        if not self.server.running:
            return
        code = await asyncio.to_thread(self.server.stop)
        if code:
            self.tally.violation(f"cove up ended with {code}\n{self.server.last_words()}")

        async def none() -> set[str]:
            return set()

        for stray in await strays(self.ground, none):
            self.result.leaks[stray.kind] += 1
            self.tally.violation(f"left behind by a clean stop: {stray.kind} {stray.what}")
