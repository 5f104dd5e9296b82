"""Deploys, rollbacks, removals and secrets under way all the while, and what of it must be there.

What was acknowledged is there after a kill; of what was under way either is, and nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import httpx2

from chaos.clients import HANGS_AFTER, Client
from chaos.programs import PAGES, PROGRAM, STANDING, edition
from chaos.server import Control, RefusedError
from chaos.tally import Outcome

MOVING = "moving"
_REMEMBERED = 200


@dataclass
class Known:
    """What is known of a function: the versions acknowledged, and which of two may be live."""

    versions: set[int] = field(default_factory=set)
    live: set[int] = field(default_factory=set)
    there: bool | None = True
    """None while nobody knows: it was being made or removed."""


class Deploying(Client):
    """One deployer, one thing at a time. `hold` waits for its end and keeps the next from it."""

    kind = "deploy"

    def __init__(self, control: Control, *given: Any) -> None:
        super().__init__(*given)
        self.control = control
        self.functions: dict[str, Known] = {}
        self.secrets: dict[str, bool | None] = {}
        self.hold = asyncio.Lock()
        self.possible: deque[tuple[float, set[int]]] = deque(maxlen=_REMEMBERED)
        self._editions: dict[int, int] = {}
        self._next = 1

    async def stand(self) -> None:
        """Deploy the functions that stand all the while."""
        for name, (source, toml) in STANDING.items():
            version = await self.control.deploy(name, source, toml)
            self.functions[name] = Known({version}, {version})
        self._editions[1] = 1
        self.possible.append((0.0, {1}))

    async def turn(self) -> None:
        async with self.hold:
            begun, chance = time.monotonic(), self.dice.random()
            try:
                async with asyncio.timeout(2 * HANGS_AFTER):
                    if chance < 0.6:
                        await self._deploy()
                    elif chance < 0.75:
                        await self._go_back()
                    elif chance < 0.9:
                        await self._come_or_go()
                    else:
                        await self._keep_or_forget_a_secret()
            except (TimeoutError, httpx2.TimeoutException):
                self.end("hung", begun, "a deploy did not come to an end")
            except httpx2.ConnectError as error:
                self.end("refused", begun, str(error))
            except httpx2.HTTPError as error:
                self.end("reset", begun, repr(error))
            except RefusedError as error:
                outcome: Outcome = "unavailable" if '"draining"' in str(error) else "wrong"
                self.end(outcome, begun, str(error)[:300])
            else:
                self.well(begun)

    # What it does. `possible` editions are noted before the server can have begun.

    async def _deploy(self) -> None:
        known, number = self.functions[MOVING], self._next + 1
        self._next = number
        expected = max(known.versions | known.live) + 1
        self._may_serve({number} | self._serving())
        known.live = known.live | {expected}
        self._editions[expected] = number
        version = await self.control.deploy(MOVING, edition(number), PAGES)
        self._editions[version] = number
        known.versions.add(version)
        known.live = {version}
        self._may_serve({number})

    async def _go_back(self) -> None:
        known = self.functions[MOVING]
        recent = sorted(known.versions)[-4:]
        if len(known.live) != 1 or len(recent) < 2:
            return
        target = self.dice.choice(recent)
        self._may_serve(self._serving() | {self._editions[target]})
        known.live = known.live | {target}
        answer = await self.control.ask(
            "POST", f"functions/{MOVING}/rollback", json={"version": target}
        )
        if answer.status_code != 200:
            raise RefusedError(answer.text)
        known.live = {target}
        self._may_serve({self._editions[target]})

    async def _come_or_go(self) -> None:
        name = f"passing-{self.dice.randint(1, 3)}"
        known = self.functions.setdefault(name, Known(there=False))
        was, known.there = known.there, None
        if was:
            answer = await self.control.ask("DELETE", f"functions/{name}")
            if answer.status_code not in (200, 404):
                raise RefusedError(answer.text)
            self.functions[name] = Known(there=False)
        else:
            source, _ = STANDING["counter"]
            version = await self.control.deploy(name, source, PROGRAM)
            self.functions[name] = Known({version}, {version})

    async def _keep_or_forget_a_secret(self) -> None:
        name = f"SECRET_{self.dice.randint(1, 3)}"
        was, self.secrets[name] = self.secrets.get(name, False), None
        if was:
            answer = await self.control.ask("DELETE", f"secrets/{name}")
        else:
            body = {"value": f"value of {name} {self.dice.random()}"}
            answer = await self.control.ask("PUT", f"secrets/{name}", json=body)
        if answer.status_code not in (200, 404):
            raise RefusedError(answer.text)
        self.secrets[name] = not was

    # What a page may say.

    def _may_serve(self, editions: set[int]) -> None:
        self.possible.append((time.monotonic(), editions))

    def _serving(self) -> set[int]:
        return self.possible[-1][1]

    def editions(self, begun: float) -> set[int]:
        """What a page asked for at `begun` may say by now."""
        found: set[int] = set()
        for since, editions in reversed(self.possible):
            found |= editions
            if since <= begun:
                break
        return found

    # What must be there.

    async def check(self) -> None:
        """Compare with what the server has; what nobody knew is known from then on."""
        for name, known in list(self.functions.items()):
            await self._check(name, known)
        listed = (await self.control.ask("GET", "secrets")).json()["secrets"]
        kept = {secret["name"] for secret in listed}
        for name, there in self.secrets.items():
            if there is not None and there != (name in kept):
                self.tally.violation(f"secret {name}: acknowledged {there}, kept {name in kept}")
            self.secrets[name] = name in kept

    async def _check(self, name: str, known: Known) -> None:
        found = await self.control.describe(name)
        if known.there is not None and known.there != (found is not None):
            self.tally.violation(f"{name}: acknowledged {known.there}, there {found is not None}")
        if found is None:
            self.functions[name] = Known(there=False)
            return
        ready = {v["number"] for v in found["versions"] if v["state"] == "ready"}
        if lost := known.versions - ready:
            self.tally.violation(f"{name}: versions {sorted(lost)} were acknowledged and are gone")
        live = int(found["version"])
        if known.live and found["state"] == "ready" and live not in known.live:
            self.tally.violation(f"{name}: {live} is live, and not one of {sorted(known.live)}")
        starting = [v["number"] for v in found["versions"] if v["state"] == "starting"]
        if starting:
            self.tally.violation(f"{name}: versions {starting} are neither ready nor failed")
        there = found["state"] == "ready"
        self.functions[name] = Known(ready, {live} if there else set(), there=True)
        if name == MOVING:
            self._next = max(self._next, *self._editions.values())
            self._may_serve({self._editions[live]})


class Following(Client):
    """Asks the function that is deployed again and again which edition it is."""

    kind = "request during deploys"

    def __init__(self, deploying: Deploying, *given: Any) -> None:
        super().__init__(*given)
        self._deploying = deploying

    async def turn(self) -> None:
        begun = time.monotonic()
        answer = await self.tried(begun, self.http.get(self.url(f"{MOVING}/page")))
        if answer is None:
            return
        said, may = answer.text.split()[0], self._deploying.editions(begun)
        if said.isdigit() and int(said) in may:
            self.well(begun)
        else:
            self.end("wrong", begun, f"edition {said} answered, and not one of {sorted(may)}")
