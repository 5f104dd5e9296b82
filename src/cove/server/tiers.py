"""Which isolation tiers this machine has, and the drivers that make them."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import asdict
from pathlib import Path

from cove import runtimes
from cove.drivers import probe
from cove.drivers.base import Check, Driver
from cove.drivers.oci import OciDriver
from cove.drivers.process import ProcessDriver
from cove.errors import CoveError
from cove.model import Isolation
from cove.server.options import Options


async def drivers_of(options: Options) -> tuple[dict[Isolation, Driver], list[Check]]:
    """The driver of the best tier that is allowed here, and what was found out on the way."""
    state = options.data / "run"
    plain, contained = state / "process", state / "oci"
    works, runtime, checks = None, None, probe.machine()
    if options.driver != "process" or contained.exists():
        works, found = await probe.probe(state)
        if options.driver != "process":
            runtime = works
            checks += found
    if options.driver == "oci" and runtime is None:
        raise CoveError(
            "isolation_unavailable",
            "--driver oci: no OCI runtime passed the probe: "
            + "; ".join(f"{check.name}: {check.detail}" for check in checks if not check.ok),
            hint="`cove doctor` says more; --driver process needs none and isolates nothing",
        )
    parent = cgroup_parent(options.data)
    if runtime is None:
        if works is not None:
            await _end_all(OciDriver(works, contained, runtimes.SERVE, parent))
        return {"process": ProcessDriver(runtimes.SERVE, plain)}, checks
    if plain.exists():
        await _end_all(ProcessDriver(runtimes.SERVE, plain))
    # Not both: authors of functions are hostile, and cove.toml, which they write, may demand a
    # tier. What isolates nothing is for the operator to choose.
    return {"container": OciDriver(runtime, contained, runtimes.SERVE, parent)}, checks


async def _end_all(driver: Driver) -> None:
    """End what an earlier Cove left running in a tier that this one was not given."""
    await driver.adopt()
    await driver.close()


def cgroup_parent(data: Path) -> str:
    """The group that a data folder's instances are in, of which no other Cove has one.

    A path alone would not do: where Coves have file systems of their own and the host's groups in
    common, all of them may keep their data at the same one.
    """
    info = data.stat()
    proof = f"{data} {info.st_dev} {info.st_ino}"
    return "cove-" + hashlib.sha256(proof.encode()).hexdigest()[:12]


async def doctor() -> list[dict[str, object]]:
    """This machine's checks, as `cove doctor` shows them."""
    with tempfile.TemporaryDirectory(prefix="cove-doctor-") as folder:
        _, checks = await probe.probe(Path(folder))
    return [asdict(check) for check in [*probe.machine(), *checks]]
