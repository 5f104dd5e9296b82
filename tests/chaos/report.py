"""What a campaign has seen, as a table that a person reads."""

from __future__ import annotations

import statistics
from collections import Counter

from chaos.campaign import Result
from chaos.tally import OUTCOMES, Outcome

KINDS = (
    "process",
    "mount",
    "loop device",
    "cgroup",
    "network namespace",
    "socket",
    "folder",
    "file",
)


def report(result: Result) -> str:
    """Requests by kind and outcome, then what was kept, then what was left."""
    rows = [("requests", *OUTCOMES)]
    total: Counter[Outcome] = Counter()
    for kind, counts in sorted(result.tally.counts.items()):
        rows.append((kind, *(str(counts[outcome]) for outcome in OUTCOMES)))
        total += counts
    rows.append(("all", *(str(total[outcome]) for outcome in OUTCOMES)))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = [
        row[0].ljust(widths[0])
        + "".join(cell.rjust(w + 2) for cell, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    restarts = result.restarts or [0.0]
    ready = f"median {statistics.median(restarts):.2f} s, max {max(restarts):.2f} s"
    kept, lost = result.sessions_kept, result.sessions_lost
    leaks = ", ".join(f"{kind} {result.leaks[kind]}" for kind in KINDS)
    lines += [
        "",
        f"rounds               {result.rounds}, with {result.kills} kills",
        f"sessions             {kept} kept over a kill, {lost} lost",
        f"instances            {result.adopted} adopted, {result.replaced} replaced",
        f"restart to ready     {ready}",
        f"printed lines        {result.lines} in the log, each once; {result.taken} taken by kills",
        f"left behind          {leaks}",
        f"violations           {len(result.violations)}",
    ]
    return "\n".join(lines)
