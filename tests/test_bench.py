"""The bench's own arithmetic: a wrong figure here would pass for a property of Cove."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parent.parent / "bench"

CHILD = "import subprocess, sys; print(subprocess.Popen(['cat'], stdin=0).pid, flush=True); input()"
BUSY = (
    "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\ninput()"
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(str(BENCH))
    import processes
    import rows

    yield {"processes": processes, "rows": rows}
    for name in ("processes", "rows"):
        sys.modules.pop(name, None)


def test_percentiles_are_values_that_were_measured(bench: dict[str, ModuleType]) -> None:
    percentile = bench["rows"].percentile
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1)] == [50, 95, 99, 100]
    assert percentile([3.0], 0.99) == 3.0


def test_a_row_over_budget_says_so(bench: dict[str, ModuleType]) -> None:
    assert "**over budget**" in bench["rows"].Budget("x", "1", "2", "", False).row()
    assert "over" not in bench["rows"].Budget("x", "2", "1", "", True).row()


def test_instances_are_not_counted_as_coves_own(bench: dict[str, ModuleType]) -> None:
    tree = bench["processes"].tree
    parent = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert tree(parent.pid) == {parent.pid, child}
        assert tree(parent.pid, without=[child]) == {parent.pid}
        assert parent.pid in tree(os.getpid())
    finally:
        parent.communicate()


def test_cpu_time_is_the_processes_own(bench: dict[str, ModuleType]) -> None:
    cpu = bench["processes"].cpu
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 30
        while cpu([process.pid]) < 0.3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert 0.3 <= cpu([process.pid]) < 5
        assert bench["processes"].pss([process.pid]) > 1024**2
    finally:
        process.communicate(b"\n")
    assert cpu([process.pid]) == 0
