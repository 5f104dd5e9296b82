"""From nothing to a tool's result: through Cove at zero, and by starting the same file plainly."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import peers
from installation import Installation
from mcp_wire import Client
from processes import pss, tree
from rows import Budget, percentile

WEATHER = Path(__file__).parent.parent / "examples" / "weather"
TOOL, ARGUMENTS = "forecast", {"city": "Bergen"}
MIB = 1024**2

PLAIN = "import sys; from server import mcp; mcp.run('streamable-http', port=int(sys.argv[1]))"


@dataclass(frozen=True, slots=True)
class Starts:
    """Seconds of each start, and bytes at rest."""

    cove: Sequence[float]
    plain: Sequence[float]
    cove_bytes: int
    instance_bytes: int
    plain_bytes: int
    tier: str


def measure(folder: Path, count: int, driver: str) -> Starts:
    """`count` cold starts of each, in turns. Each of Cove's begins with no instance, as proved."""
    source = folder / "weather"
    source.mkdir(parents=True)
    for each in WEATHER.iterdir():
        if each.is_file() and each.name != "cove.toml":
            (source / each.name).write_bytes(each.read_bytes())
    (source / "cove.toml").write_text('[scale]\nidle = "500ms"\n')
    cove_times, plain_times = [], []
    instance_bytes = plain_bytes = 0
    with Installation(folder, driver) as cove:
        time.sleep(2)
        resting = pss(cove.own_pids())
        path = cove.deploy(source, "weather")
        for _ in range(count):
            cove.wait_for_zero("weather")
            seconds, instance_bytes = through_cove(cove, path)
            cove_times.append(seconds)
            seconds, plain_bytes = plainly()
            plain_times.append(seconds)
        tier = cove.cli("describe", "weather")["isolation"]
    return Starts(cove_times, plain_times, resting, instance_bytes, plain_bytes, tier)


def through_cove(cove: Installation, path: str) -> tuple[float, int]:
    begun = time.perf_counter()
    client = Client(cove.port, path)
    client.initialize()
    client.call(TOOL, ARGUMENTS)
    seconds = time.perf_counter() - begun
    [instance] = cove.instances("weather")
    held = pss(tree(instance["pid"]))
    client.close()
    return seconds, held


def plainly() -> tuple[float, int]:
    port = peers.free_port()
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", PLAIN, str(port)],
        cwd=WEATHER,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        peers.wait_for_port(port, process)
        client = Client(port, "/mcp")
        client.initialize()
        client.call(TOOL, ARGUMENTS)
        seconds = time.perf_counter() - begun
        held = pss([process.pid])
        client.close()
    finally:
        peers.stop(process)
    return seconds, held


def table(starts: Starts) -> list[str]:
    lines = ["| start to first tool result | n | p50 | p95 | p99 |", "|---|--:|--:|--:|--:|"]
    for name, times in (
        (f"through Cove, from no instance ({starts.tier})", starts.cove),
        ("the same file, started plainly", starts.plain),
    ):
        figures = " | ".join(f"{percentile(times, q) * 1000:.0f} ms" for q in (0.5, 0.95, 0.99))
        lines.append(f"| {name} | {len(times)} | {figures} |")
    return [
        *lines,
        "",
        "| memory (PSS) | |",
        "|---|--:|",
        f"| Cove's own processes, nothing deployed | {starts.cove_bytes / MIB:.1f} MiB |",
        f"| one idle instance of examples/weather | {starts.instance_bytes / MIB:.1f} MiB |",
        f"| the same file, started plainly | {starts.plain_bytes / MIB:.1f} MiB |",
    ]


def budgets(starts: Starts) -> list[Budget]:
    mine, theirs = percentile(starts.cove, 0.5) * 1000, percentile(starts.plain, 0.5) * 1000
    worst = percentile(starts.cove, 0.99) * 1000
    return [
        Budget(
            "cold start to a tool's result, p50 / p99",
            "≤ 30 / ≤ 60 ms",
            f"{mine:.0f} / {worst:.0f} ms",
            f"plain start {theirs:.0f} ms ({theirs / mine:.1f}x)",
            mine <= 30 and worst <= 60,
        ),
        Budget(
            "Cove at rest",
            "≤ 80 MiB",
            f"{starts.cove_bytes / MIB:.1f} MiB",
            f"plain server {starts.plain_bytes / MIB:.1f} MiB",
            starts.cove_bytes <= 80 * MIB,
        ),
    ]
