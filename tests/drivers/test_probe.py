"""The probe: a real container per candidate, and words for whoever runs `cove doctor`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cove.drivers.oci import OciDriver
from cove.drivers.probe import machine, probe
from cove.drivers.runtime import Runtime

ROOT = os.geteuid() == 0


def probing() -> set[Path]:
    """Cgroups of probes, also of other Coves on this machine."""
    return {path for path in Path("/sys/fs/cgroup").glob("**/cove-probe-*") if path.is_dir()}


async def test_each_runtime_found_is_reported_and_the_first_that_works_chosen(
    tmp_path: Path,
) -> None:
    before = probing()
    chosen, checks = await probe(tmp_path / "state")
    if not ROOT:
        assert chosen is None
        assert "root" in checks[0].detail
        return
    assert [check.name for check in checks] == ["crun", "runc"]
    working = [check.name for check in checks if check.ok]
    assert (chosen.name if chosen else None) == (working[0] if working else None)
    assert all(check.detail and (check.ok or check.hint) for check in checks)
    assert list((tmp_path / "state").iterdir()) == []
    assert probing() <= before


@pytest.mark.skipif(not ROOT, reason="only root may look for runtimes")
async def test_a_runtime_that_fails_says_why_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "crun"
    broken.write_text(
        "#!/bin/sh\n"
        'while [ $# -gt 0 ]; do [ "$1" = --log ] && log=$2; shift; done\n'
        '[ -n "$log" ] && echo \'{"level":"error","msg":"out of cheese"}\' > "$log"\n'
        "exit 1\n"
    )
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    chosen, checks = await probe(tmp_path / "state")
    assert (checks[0].name, checks[0].ok) == ("crun", False)
    assert "out of cheese" in checks[0].detail
    assert chosen is None or chosen.name == "runc"


@pytest.mark.skipif(not ROOT, reason="only root may look for runtimes")
async def test_a_runtime_that_builds_no_walls_is_not_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Runtime
) -> None:
    # A runtime that works, but for one wall: it drops the seccomp filter from the config.
    weak = tmp_path / "crun"
    weak.write_text(
        "#!/bin/sh\n"
        'for a in "$@"; do case $p in --bundle) b=$a;; esac; p=$a; done\n'
        '[ -n "$b" ] && python3 - "$b/config.json" <<\'X\'\n'
        "import json, sys\n"
        "c = json.load(open(sys.argv[1])); del c['linux']['seccomp']\n"
        "c['process']['noNewPrivileges'] = True\n"
        "json.dump(c, open(sys.argv[1], 'w'))\n"
        "X\n"
        f'exec {runtime.path} "$@"\n'
    )
    weak.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    _, checks = await probe(tmp_path / "state")
    assert not checks[0].ok
    assert "seccomp" in checks[0].detail


def test_the_machines_facts_each_say_something() -> None:
    checks = machine()
    assert {"user", "kernel", "cgroups", "user namespaces", "seccomp"} == {c.name for c in checks}
    assert all(check.detail and (check.ok or check.hint) for check in checks)


async def test_closing_an_unused_driver_leaves_nothing(tmp_path: Path) -> None:
    if not ROOT or not shutil.which("true"):
        pytest.skip("the folders it makes need root")
    driver = OciDriver(Runtime("none", "/bin/true"), tmp_path / "state", None, "cove-unused")
    await driver.close()
    assert not (tmp_path / "state").exists()
