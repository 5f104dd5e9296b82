"""`cove doctor`: what this machine can do, with or without a server."""

from __future__ import annotations

import json
import subprocess
import sys

from cove.cli.options import Options, command, explained
from cove.cli.output import print_json, print_table, say
from cove.errors import CoveError
from cove.sdk.client import Json

PATIENCE = 120.0
LAST_LINES = 20


@command(name="doctor")
def doctor(options: Options) -> None:
    """Say what works here and what a lack costs."""
    client = options.client()
    server: Json = {"name": "server", "ok": True, "detail": f"running at {client.url}", "hint": ""}
    try:
        checks = client.doctor()
    except CoveError as error:
        # Without an answer the machine can still be looked at: it may be why there is none.
        error = explained(error, options, None)
        server |= {"ok": False, "detail": error.message, "hint": error.hint}
        checks = _here()
    checks = [server, *checks]
    if options.json:
        print_json(checks)
        return
    print_table(
        ["CHECK", "", "DETAIL"],
        [(check["name"], "ok" if check["ok"] else "NO", check["detail"]) for check in checks],
        empty="",
    )
    for check in checks:
        if not check["ok"] and check.get("hint"):
            say(f"hint: {check['name']}: {check['hint']}")


def _here() -> list[Json]:
    done = subprocess.run(
        [sys.executable, "-m", "cove.server", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    try:
        return list(json.loads(done.stdout))
    except ValueError as fault:
        raise CoveError(
            "internal",
            f"the checks of this machine ended with exit code {done.returncode}",
            lines=done.stderr.splitlines()[-LAST_LINES:],
        ) from fault
