"""`make bench`: measures every row in one run and writes docs/benchmarks.md.

A row over its budget is written as such. The exit code says whether the measuring worked, not
whether the figures please.
"""

from __future__ import annotations

import argparse
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import coldstart
import gateway
import machine

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"

HEAD = """\
# Benchmarks

Written by `make bench` on {date}; nothing here was edited by hand. Ratios against the peer in the
same run are what counts: absolute figures belong to the machine.

{machine}

## Budgets

| what | budget | found | beside it | |
|---|---|---|---|---|
{budgets}

Cold starts are over budget on purpose until functions start by fork (see what is not built yet
in the README): what is measured is a process that imports the MCP SDK.
"""

GATEWAY = """
## The gateway

An instant backend (uvloop and httptools, 209 bytes of JSON) behind nothing, behind nginx (one
worker, keep-alive, no log) and behind Cove (routing, session affinity, key auth and metrics on).
{rounds} rounds of {seconds} s each in alternation, medians. Each proxy is pinned to one core and
shares it with nobody; wrk and the backend share the other. The gateway's CPU is that of all of
Cove's processes but the instances. Cove's backend is an instance of tier {tier}; nginx's is a plain
process.

{table}
"""

STARTS = """
## Cold start and memory

examples/weather, legacy Streamable HTTP: connect, initialize, initialized, tools/call. `cove
describe --json` shows no instance before each of Cove's. Plain starts alternate with them.

{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure Cove beside nginx and plain starts.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each target")
    parser.add_argument("--seconds", type=int, default=4, help="length of a round")
    parser.add_argument("--cold", type=int, default=10, help="cold starts")
    parser.add_argument("--driver", default="auto", help="Cove's driver: auto, oci or process")
    parser.add_argument("--stdout", action="store_true", help="print the page, write no file")
    asked = parser.parse_args()
    about = machine.describe()
    with tempfile.TemporaryDirectory(prefix="cove-bench-") as name:
        folder = Path(name)
        print("bench: cold starts and memory", flush=True)
        starts = coldstart.measure(folder / "cold", asked.cold, asked.driver)
        print("bench: the gateway beside nginx", flush=True)
        served = gateway.measure(folder, asked.rounds, asked.seconds, asked.driver)
    budgets = [*gateway.budgets(served), *coldstart.budgets(starts)]
    page = HEAD.format(
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        machine="\n".join(about),
        budgets="\n".join(each.row() for each in budgets),
    )
    page += GATEWAY.format(
        rounds=asked.rounds,
        seconds=asked.seconds,
        tier=starts.tier,
        table="\n".join(gateway.table(served)),
    )
    page += STARTS.format(table="\n".join(coldstart.table(starts)))
    if asked.stdout:
        print(page)
    else:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page)
        print("\n".join(each.row() for each in budgets))
        print(f"bench: written to {PAGE.parent.name}/{PAGE.name}")


if __name__ == "__main__":
    main()
