"""`make chaos`: kills a loaded Cove again and again, and says what was kept."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

from chaos.campaign import Campaign
from chaos.report import report

_SHOWN, _LONGEST = 40, 4000


def main() -> int:
    """The exit code: 1 where anything that must never be was seen."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--driver", default="auto", choices=["auto", "oci", "process"])
    parser.add_argument("--keep", action="store_true", help="keep the data and the server's log")
    given = parser.parse_args()
    seed = int(time.time()) if given.seed is None else given.seed
    print(f"chaos: {given.rounds} rounds from seed {seed}", flush=True)
    # Instances' users must be able to walk down to it, which rules out a private folder.
    folder = Path(tempfile.mkdtemp(prefix="cove-chaos-"))
    folder.chmod(0o755)
    campaign = Campaign(folder, given.rounds, seed, given.driver)
    try:
        result = asyncio.run(campaign.run())
    except KeyboardInterrupt:
        print("chaos: interrupted", file=sys.stderr)
        result = campaign.result
    finally:
        if given.keep:
            print(f"chaos: kept {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(report(result))
    for violation in result.violations[:_SHOWN]:
        print(f"\n{violation[:_LONGEST]}")
    if result.violations:
        print(f"\nround N alone: make chaos ROUNDS=1 SEED={seed}+N, added up")
    return 1 if result.violations or result.rounds < given.rounds else 0


if __name__ == "__main__":
    sys.exit(main())
