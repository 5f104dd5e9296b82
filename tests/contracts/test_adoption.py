"""The contract of drivers: what one leaves running, the next one adopts.

`Rig.again` lets go of everything as a process does that is killed. Real kills are in
tests/drivers/test_killed.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from contracts.rig import BOUND, LITTER, MUTE, POLITE, STUBBORN, Rig, ask, gone
from cove.drivers.base import Exit
from cove.errors import CoveError
from cove.model import MIB


async def test_an_adopted_instance_is_the_same_and_goes_on(rig: Rig) -> None:
    launches = [rig.launch(version=number) for number in (1, 2)]
    before = {launch.id: (await rig.ready(launch))[0] for launch in launches}
    for running in before.values():
        assert (await ask(running))["count"] == 1
    adopted = {running.id: running for running in await rig.again()}
    assert set(adopted) == set(before)
    for ident, running in adopted.items():
        was = before[ident]
        assert running is not was
        assert (running.function, running.version) == (was.function, was.version)
        assert running.pid == was.pid
        assert (await ask(running))["count"] == 2
        assert len(running.ports()) == 1
        assert not running.exited.done()


async def test_it_is_adopted_as_often_as_there_is_a_next_driver(rig: Rig) -> None:
    await rig.ready(rig.launch())
    for count in range(1, 4):
        (running,) = await rig.again()
        assert (await ask(running))["count"] == count


async def test_an_adopted_instance_stops_and_leaves_nothing(rig: Rig) -> None:
    before = rig.footprint()
    await rig.ready(rig.launch())
    (running,) = await rig.again()
    one, two = await asyncio.gather(running.stop(1.0), running.stop(1.0))
    assert one == two == await gone(running)
    assert rig.footprint() == before
    with pytest.raises(ConnectionRefusedError):
        await running.connect()
    assert await rig.again() == []


async def test_nothing_is_adopted_where_nothing_was_left(rig: Rig) -> None:
    assert await rig.driver.adopt() == []
    running, _ = await rig.ready(rig.launch())
    await running.stop(0.0)
    assert await rig.again() == []


async def test_the_signal_that_ends_an_adopted_one_is_reported(programs: Rig) -> None:
    before = programs.footprint()
    await programs.ready(programs.launch())
    (running,) = await programs.again()
    os.kill(running.pid, signal.SIGKILL)
    assert await gone(running) == Exit(signal=9)
    assert programs.footprint() == before


async def test_the_exit_code_of_an_adopted_one_is_reported(programs: Rig) -> None:
    await programs.ready(programs.launch())
    (running,) = await programs.again()
    with pytest.raises((OSError, asyncio.IncompleteReadError)):
        await ask(running, "/exit")
    assert await gone(running) == Exit(code=7)


async def test_an_adopted_one_that_handles_term_ends_its_own_way(programs: Rig) -> None:
    await programs.ready(programs.launch(POLITE))
    (running,) = await programs.again()
    assert await asyncio.wait_for(running.stop(BOUND), BOUND) == Exit(code=5)


async def test_daemons_of_an_adopted_one_end_with_it(programs: Rig) -> None:
    await programs.ready(programs.launch(LITTER))
    (running,) = await programs.again()
    assert len(programs.alive()) == 3
    os.kill(running.pid, signal.SIGKILL)
    await gone(running)
    assert programs.alive() == []


async def test_what_an_adopted_one_uses_is_counted(programs: Rig) -> None:
    source = "x = sum(i * i for i in range(2_000_000))\n" + MUTE
    await programs.ready(programs.launch(source))
    (running,) = await programs.again()
    used = running.usage()
    assert used.cpu > 0.05
    assert MIB < used.memory < 64 * MIB
    running.throttle()
    await running.stop(0.0)
    assert (running.usage().cpu, running.usage().memory) == (0.0, 0)


async def test_what_is_started_beside_an_adopted_one_has_its_own_port_and_ids(
    programs: Rig,
) -> None:
    await programs.ready(programs.launch())
    (old,) = await programs.again()
    new, _ = await programs.ready(programs.launch())
    assert [(await ask(running))["count"] for running in (old, new)] == [1, 1]
    users = {os.stat(f"/proc/{running.pid}").st_uid for running in (old, new)}
    shared = programs.driver.isolation == "process"
    assert len(users) == (1 if shared else 2)
    assert len({*old.ports(), *new.ports()}) == (2 if shared else 1)


async def test_an_id_that_was_adopted_is_not_started_again(programs: Rig) -> None:
    launch = programs.launch()
    await programs.ready(launch)
    (running,) = await programs.again()
    with pytest.raises(CoveError, match=launch.id) as refused:
        await programs.start(launch)
    assert refused.value.code == "start_failed"
    assert (await ask(running))["count"] == 1


async def test_what_is_kept_survives_a_second_close(programs: Rig) -> None:
    await programs.ready(programs.launch())
    first = programs.driver
    await first.close(keep=True)
    await first.close()
    (running,) = await programs.again()
    assert (await ask(running))["count"] == 1


async def test_a_driver_that_has_not_adopted_leaves_what_it_found(programs: Rig) -> None:
    await programs.ready(programs.launch())
    await programs.again(adopt=False)
    mine, _ = await programs.ready(programs.launch())
    await programs.driver.close()
    assert mine.exited.done()
    (running,) = await programs.again()
    assert (await ask(running))["count"] == 1


async def test_what_is_being_stopped_is_not_kept(programs: Rig) -> None:
    running, lines = await programs.ready(programs.launch(STUBBORN))
    stopping = asyncio.create_task(running.stop(10 * BOUND))
    assert await asyncio.wait_for(lines.readline(), BOUND) == b"no\n"
    assert await asyncio.wait_for(programs.again(), BOUND) == []
    assert await asyncio.wait_for(stopping, BOUND) == Exit(signal=9)


async def test_one_that_died_meanwhile_is_cleaned(programs: Rig) -> None:
    before = programs.footprint()
    running, _ = await programs.ready(programs.launch(LITTER))
    await programs.again(adopt=False)
    pidfd = os.pidfd_open(running.pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert await asyncio.to_thread(os.waitid, os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)
    assert await programs.driver.adopt() == []
    assert programs.footprint() == before


def records(rig: Rig) -> list[Path]:
    return sorted(rig.state.rglob("record.json"))


@pytest.mark.parametrize("said", ["", "{", "[]", "{}", '{"id": 1}'])
async def test_one_whose_record_cannot_be_read_is_cleaned(programs: Rig, said: str) -> None:
    before = programs.footprint()
    await programs.ready(programs.launch())
    other, _ = await programs.ready(programs.launch())
    for record in records(programs):
        if record.parent.name != other.id:
            record.write_text(said)
    (running,) = await programs.again()
    assert running.id == other.id
    assert len(programs.alive()) == 1
    await running.stop(0.0)
    assert programs.footprint() == before


@pytest.mark.parametrize(
    "forged", [{"started": 1}, {"boot": "another"}, {"pid": 0}, {"id": "somebody-else"}]
)
async def test_one_whose_record_names_another_process_is_cleaned(
    programs: Rig, forged: dict[str, object]
) -> None:
    before = programs.footprint()
    await programs.ready(programs.launch())
    (record,) = records(programs)
    record.write_text(json.dumps({**json.loads(record.read_text()), **forged}))
    assert await programs.again() == []
    assert programs.footprint() == before


async def test_records_hold_no_environment_and_no_secrets(programs: Rig) -> None:
    launch = programs.launch(env={"TOKEN": "hidden-in-env"}, secrets={"KEY": "hidden-in-file"})
    await programs.start(launch)
    (record,) = records(programs)
    text = record.read_text()
    assert launch.id in text
    assert "hidden" not in text
    assert launch.code not in text


async def test_nothing_ties_an_instance_to_the_process_that_started_it(programs: Rig) -> None:
    running, _ = await programs.ready(programs.launch(MUTE))
    assert os.getsid(running.pid) == running.pid
    stat = Path(f"/proc/{running.pid}/stat").read_text().rpartition(") ")[2].split()
    assert stat[4] == "0"  # no controlling terminal
    held = {path.name: os.readlink(path) for path in Path(f"/proc/{running.pid}/fd").iterdir()}
    assert held.pop("0") == "/dev/null"
    assert held.keys() == {"1", "2"}  # what it was given to write to
