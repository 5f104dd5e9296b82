"""The contract of drivers (cove.drivers.base), run over every implementation."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
from pathlib import Path

import pytest

from contracts.rig import (
    BOUND,
    ELSEWHERE,
    LITTER,
    MUTE,
    ONE_CALLER,
    POLITE,
    STUBBORN,
    TWO_PORTS,
    Rig,
    ask,
    devnull,
    gone,
)
from cove.errors import CoveError
from cove.model import MIB


async def test_an_instance_answers_on_a_connected_nonblocking_socket(rig: Rig) -> None:
    running, _ = await rig.ready(rig.launch())
    assert await ask(running)
    made = await running.connect()
    assert made.getblocking() is False
    assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    made.close()
    assert len(running.ports()) == 1
    assert not running.exited.done()


async def test_connecting_is_refused_after_the_exit(rig: Rig) -> None:
    running, _ = await rig.ready(rig.launch())
    await running.stop(0.0)
    with pytest.raises(ConnectionRefusedError):
        await running.connect()
    assert running.ports() == []


async def test_connecting_is_refused_while_nothing_listens(programs: Rig) -> None:
    running, _ = await programs.ready(programs.launch(MUTE))
    with pytest.raises(ConnectionRefusedError):
        await running.connect()
    assert running.ports() == []


@pytest.mark.parametrize(
    ("address", "family"), [("127.0.0.1", "AF_INET"), ("0.0.0.0", "AF_INET"), ("::1", "AF_INET6")]
)
async def test_a_program_that_ignores_its_port_is_found(
    programs: Rig, address: str, family: str
) -> None:
    running, _ = await programs.ready(programs.launch(ELSEWHERE % (address, family)))
    assert await ask(running) == {}


async def test_a_program_that_closes_its_listener_with_the_first_caller_is_reached(
    programs: Rig,
) -> None:
    for _ in range(5):
        running, _ = await programs.ready(programs.launch(ONE_CALLER))
        assert (await ask(running))["argv"]


async def test_two_other_ports_are_one_too_many_to_guess(programs: Rig) -> None:
    running, _ = await programs.ready(programs.launch(TWO_PORTS))
    assert len(running.ports()) == 2
    with pytest.raises(ConnectionRefusedError):
        await running.connect()


async def test_the_exit_code_is_reported(programs: Rig) -> None:
    running, _ = await programs.start(programs.launch("raise SystemExit(7)"))
    how = await gone(running)
    assert (how.code, how.signal, how.oom) == (7, None, False)


async def test_the_signal_that_ended_it_is_reported(programs: Rig) -> None:
    running, _ = await programs.ready(programs.launch(MUTE))
    os.kill(running.pid, 9)
    how = await gone(running)
    assert (how.code, how.signal, how.oom) == (None, 9, False)


async def test_what_it_prints_reaches_the_descriptor(programs: Rig) -> None:
    source = "import sys; print('out', flush=True); print('err', file=sys.stderr, flush=True)"
    running, lines = await programs.start(programs.launch(source))
    await gone(running)
    assert await asyncio.wait_for(lines.read(), BOUND) == b"out\nerr\n"


async def test_stopping_twice_and_at_once_gives_one_exit(rig: Rig) -> None:
    running, _ = await rig.ready(rig.launch())
    one, two = await asyncio.gather(running.stop(1.0), running.stop(1.0))
    assert one == two == await running.stop(1.0) == await gone(running)


async def test_a_stopped_instance_leaves_nothing(rig: Rig) -> None:
    before = rig.footprint()
    running, _ = await rig.ready(rig.launch())
    assert rig.fake or rig.footprint() != before
    await running.stop(0.0)
    assert rig.footprint() == before


async def test_a_crashed_instance_leaves_nothing(programs: Rig) -> None:
    before = programs.footprint()
    running, _ = await programs.start(programs.launch("raise SystemExit(1)"))
    await gone(running)
    assert programs.footprint() == before


async def test_daemons_that_left_the_session_end_with_the_first_process(programs: Rig) -> None:
    running, _ = await programs.ready(programs.launch(LITTER))
    assert len(programs.alive()) == 3
    os.kill(running.pid, 9)
    await gone(running)
    assert programs.alive() == []


async def test_a_program_that_handles_term_ends_its_own_way(programs: Rig) -> None:
    running, _ = await programs.ready(programs.launch(POLITE))
    how = await asyncio.wait_for(running.stop(BOUND), BOUND)
    assert (how.code, how.signal) == (5, None)


async def test_a_program_that_ignores_term_is_killed_after_grace(programs: Rig) -> None:
    running, lines = await programs.ready(programs.launch(STUBBORN))
    how = await asyncio.wait_for(running.stop(0.2), BOUND)
    assert how.signal == 9
    assert await lines.readline() == b"no\n"


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.01, 0.03])
async def test_a_cancelled_start_leaves_nothing(rig: Rig, delay: float) -> None:
    before = rig.footprint()
    start = asyncio.ensure_future(
        rig.driver.start(rig.launch(MUTE, stdout=devnull(), stderr=devnull()))
    )
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(start), delay)
    start.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await (await start).stop(0.0)
    assert {**rig.footprint(), "held": ()} == {**before, "held": ()}


async def test_a_command_that_does_not_exist_fails_the_start(programs: Rig) -> None:
    before = programs.footprint()
    with pytest.raises(CoveError) as failed:
        await programs.driver.start(
            programs.launch(argv=("/no/such",), stdout=devnull(), stderr=devnull())
        )
    assert failed.value.code == "start_failed"
    assert "/no/such" in failed.value.message
    assert failed.value.hint
    assert programs.footprint() == before


async def test_a_place_that_the_launch_lacks_fails_the_start(programs: Rig) -> None:
    before = programs.footprint()
    with pytest.raises(CoveError, match="deps"):
        await programs.driver.start(
            programs.launch(argv=("{deps}/bin/python",), stdout=devnull(), stderr=devnull())
        )
    assert programs.footprint() == before


async def test_twenty_start_at_once_and_answer_each_for_itself(rig: Rig) -> None:
    launches = [rig.launch(env={"MARK": rig.mark[5:], "WHO": str(n)}) for n in range(20)]
    started = await asyncio.wait_for(asyncio.gather(*map(rig.ready, launches)), 3 * BOUND)
    answers = await asyncio.gather(*(ask(running) for running, _ in started))
    if rig.fake:
        assert [a["instance"] for a in answers] == [launch.id for launch in launches]
    else:
        assert [a["env"]["WHO"] for a in answers] == [str(n) for n in range(20)]
    await asyncio.wait_for(asyncio.gather(*(r.stop(0.0) for r, _ in started)), 3 * BOUND)


async def test_coves_own_environment_stays_outside(
    programs: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COVE_KEY", "secret")
    running, _ = await programs.ready(programs.launch())
    env = (await ask(running))["env"]
    # What Python itself adds when LANG is the C locale does not count as Cove's.
    expected = {"PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "LANG", "PORT", "MARK"}
    assert set(env) - {"LC_CTYPE"} == expected


async def test_places_are_filled_in_and_other_braces_survive(programs: Rig) -> None:
    deps = Path(programs.launch().code)
    base = programs.launch()
    args = ("{deps}/x", "{serve}", "{port}", '{"json": {}}', "{nope}")
    env = {**base.env, "PYTHONPATH": "{app}:{deps}", "J": "{a}"}
    launch = dataclasses.replace(base, argv=(*base.argv, *args), env=env, deps=str(deps))
    running, _ = await programs.ready(launch)
    said = await ask(running)
    program, deps_x, serve, port, *rest = said["argv"]
    assert rest == ['{"json": {}}', "{nope}"]
    assert program == f"{said['cwd']}/program.py"
    assert said["env"]["PYTHONPATH"] == f"{said['cwd']}:{deps_x.removesuffix('/x')}"
    assert said["env"]["J"] == "{a}"
    assert serve.endswith("/serve.py")
    assert port == said["env"]["PORT"]


async def test_usage_counts_while_it_runs_and_not_after(programs: Rig) -> None:
    source = "x = sum(i * i for i in range(2_000_000))\n" + MUTE
    running, _ = await programs.ready(programs.launch(source))
    used = running.usage()
    assert used.cpu > 0.05
    assert MIB < used.memory < 64 * MIB
    await running.stop(0.0)
    assert (running.usage().cpu, running.usage().memory) == (0.0, 0)


async def test_throttling_twice_or_after_the_exit_does_no_harm(rig: Rig) -> None:
    running, _ = await rig.ready(rig.launch())
    running.throttle()
    running.throttle()
    assert await ask(running)
    await running.stop(0.0)
    running.throttle()


async def test_closing_the_driver_ends_what_runs(rig: Rig) -> None:
    running, _ = await rig.ready(rig.launch())
    await asyncio.wait_for(rig.driver.close(), BOUND)
    assert running.exited.done()
    assert rig.alive() == []
