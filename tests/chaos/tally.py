"""What became of every request, by kind; and what must never be, in words."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, get_args

Outcome = Literal["ok", "refused", "unavailable", "reset", "wrong", "hung"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass
class Tally:
    """Counts by kind and outcome, and the violations: each a line that says what was seen.

    Between `down` and `up` a server is away, and for `_AFTER` seconds more what it was doing may
    still be told; only then may a request be refused, unavailable or reset.
    """

    counts: dict[str, Counter[Outcome]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    round: int = 0
    _away: list[tuple[float, float]] = field(default_factory=list)

    _AFTER = 2.0

    def down(self, now: float) -> None:
        self._away.append((now, math.inf))

    def up(self, now: float) -> None:
        """The last `down` is over."""
        begun, _ = self._away[-1]
        self._away[-1] = (begun, now + self._AFTER)

    def excused(self, begun: float, ended: float) -> bool:
        """Whether a server was away for some of that time."""
        return any(down <= ended and begun <= up for down, up in self._away[-4:])

    def count(
        self, kind: str, outcome: Outcome, begun: float, ended: float, said: str = ""
    ) -> None:
        """One request's end. What is no fault of a kill is a violation."""
        self.counts.setdefault(kind, Counter())[outcome] += 1
        if outcome in ("wrong", "hung"):
            self.violation(f"{kind} {outcome}: {said}")
        elif outcome != "ok" and not self.excused(begun, ended):
            self.violation(f"{kind} {outcome} while the server was up: {said}")

    def violation(self, what: str) -> None:
        self.violations.append(f"round {self.round}: {what}")
