"""`make fuzz`: hostile input for the gateway's two wires, from a seed, on every core.

make fuzz                             a million inputs of a seed that stays
make fuzz SEED=7 COUNT=50000          others
make fuzz SEED=7 CASE=front/123       one case of them, as it was
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence

from fuzz.campaign import KINDS, Result, again
from fuzz.workers import WORKERS, campaign


def main() -> int:
    options = _options()
    if options.case:
        kind, _, number = options.case.partition("/")
        one = again(kind, options.seed, int(number))
        print(one.failure or f"{options.case} of seed {options.seed}: {one.inputs} inputs, well")
        return 1 if one.failure else 0
    print(f"seed {options.seed}: {options.count:,} inputs, {WORKERS} processes", flush=True)
    started = time.monotonic()
    results = campaign(options.seed, options.count)
    seconds = time.monotonic() - started
    _report(results, seconds)
    failures = [result.failure for result in results if result.failure is not None]
    for failure in failures:
        print(failure)
    done = sum(result.inputs for result in results)
    if done < options.count and not failures:
        print(f"stopped after {seconds:.0f} s with {done:,} of {options.count:,} inputs")
    return 1 if failures or done < options.count else 0


def _report(results: Sequence[Result], seconds: float) -> None:
    print(f"{'':9} {'inputs':>9} {'cases':>8} {'us each':>8}  objects alive, first to last")
    for kind in KINDS:
        parts = [result for result in results if result.kind == kind]
        inputs = sum(part.inputs for part in parts)
        cases = sum(part.cases for part in parts)
        each = sum(part.seconds for part in parts) / max(1, inputs) * 1e6
        alive = "; ".join(f"{p.blocks[0]:,} to {p.blocks[-1]:,}" for p in parts if p.blocks)
        print(f"{kind:9} {inputs:9,} {cases:8,} {each:8.0f}  {alive}")
        outcomes = sum((part.outcomes for part in parts), Counter[str]())
        print(" " * 10 + ", ".join(f"{name} {number:,}" for name, number in outcomes.most_common()))
    total = sum(result.inputs for result in results)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(f"{total:,} inputs in {seconds:.0f} s, {total / seconds:,.0f} a second;", end=" ")
    print(f"at most {peak} MiB in a process")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make fuzz")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--case", default="", help="KIND/NUMBER: this one alone")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
