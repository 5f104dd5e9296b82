"""A measured row, its budget, and how both are told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class Round:
    """What one run of wrk against one target showed. Times in microseconds."""

    rps: float
    p50: float
    p95: float
    p99: float
    cpu: float
    """CPU of the proxy's own processes per request; 0 for the bare backend."""
    least: float = 0.0
    """Of several rounds, the one that cost the least CPU: what other load disturbs least."""


def middle(rounds: Sequence[Round]) -> Round:
    """The median of each figure over rounds, and the least CPU."""

    def of(name: str) -> float:
        return float(median(getattr(each, name) for each in rounds))

    least = min(each.cpu for each in rounds)
    return Round(of("rps"), of("p50"), of("p95"), of("p99"), of("cpu"), least)


@dataclass(frozen=True, slots=True)
class Budget:
    """One promise of the design, and what was found. `met` is for people to see, never hidden."""

    what: str
    promised: str
    found: str
    beside: str
    met: bool

    def row(self) -> str:
        verdict = "met" if self.met else "**over budget**"
        return f"| {self.what} | {self.promised} | {self.found} | {self.beside} | {verdict} |"
