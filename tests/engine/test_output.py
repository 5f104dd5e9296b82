"""What instances print: kept whole, in order, bounded, and beyond the end of who reads it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cove.engine.output import LINE_BYTES, Output, Outputs, Printed
from cove.logs.keeper import Keeper, living

BOUND = 5.0


class Paper:
    """Outputs whose lines are collected."""

    def __init__(self, folder: Path, keeper: Keeper | None = None) -> None:
        self.printed: list[Printed] = []
        self.outputs = Outputs(folder, self.printed.append, keeper)

    def make(self, name: str = "fn-1-a") -> Output:
        return self.outputs.make("fn", 1, name)

    def lines(self, stream: str = "stdout") -> list[str]:
        return [line for some in list(self.printed) if some.stream == stream for line in some.lines]

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(BOUND):
            while not holds():
                await asyncio.sleep(0.005)


@pytest.fixture
def paper(tmp_path: Path) -> Iterator[Paper]:
    paper = Paper(tmp_path / "output")
    yield paper
    paper.outputs.close()


def say(output: Output, out: bytes, err: bytes = b"") -> None:
    for descriptor, data in zip(output.open(), (out, err), strict=True):
        if data:
            os.write(descriptor, data)
        os.close(descriptor)


async def test_lines_are_told_as_they_come(paper: Paper) -> None:
    output = paper.make()
    output.serving = lambda: ("session", "request")
    out, err = output.open()
    os.write(out, b"hello\nhalf")
    os.write(err, b"oh\n")
    await paper.until(lambda: paper.lines() and paper.lines("stderr"))
    first = paper.printed[0]
    assert (first.function, first.version, first.instance) == ("fn", 1, "fn-1-a")
    assert (first.session, first.request) == ("session", "request")
    os.write(out, b" and half\r\n")
    await paper.until(lambda: len(paper.lines()) == 2)
    assert (paper.lines(), paper.lines("stderr")) == (["hello", "half and half"], ["oh"])
    os.close(out)
    os.close(err)
    output.finish()


async def test_the_last_lines_are_kept(paper: Paper) -> None:
    output = paper.make()
    say(output, b"".join(b"line %d\n" % n for n in range(500)) + b"unfinished")
    await paper.until(lambda: output.tail(3) == ["line 498", "line 499", "unfinished"])
    output.finish()
    assert len(output.tail(1000)) == 200
    assert paper.lines()[-1] == "unfinished"


async def test_what_a_program_said_last_is_not_lost_with_it(paper: Paper) -> None:
    output = paper.make()
    say(output, b"", b"Traceback\nboom\n")
    output.finish()
    assert output.tail() == ["Traceback", "boom"]
    assert paper.lines("stderr") == ["Traceback", "boom"]
    assert not any(path.exists() for path in output.paths)


async def test_a_flood_waits_at_its_fifo_and_goes_on(
    paper: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cove.engine.output._EVERY", 0.05)
    monkeypatch.setattr("cove.engine.output._BUDGET", 64 * 1024)
    output = paper.make()
    out, err = output.open()
    os.set_blocking(out, False)
    sent = stuck = 0
    async with asyncio.timeout(BOUND):
        while sent < 4000 * 1000 or not stuck:
            try:
                sent += os.write(out, b"x" * 999 + b"\n")
            except BlockingIOError:
                stuck += 1
                await asyncio.sleep(0.001)
    await paper.until(lambda: sum(len(line) + 1 for line in paper.lines()) == sent)
    os.close(out)
    os.close(err)
    output.finish()


async def test_short_lines_cost_more_than_their_bytes(paper: Paper) -> None:
    output = paper.make()
    output._take("stdout", b"\n" * 4096)
    assert output._spent >= 4096 + 100 * 1000
    assert "\n".join(paper.lines()) == "\n" * 4095
    assert len(paper.lines()) <= 1024
    output.finish()


async def test_long_lines_come_in_pieces_and_odd_bytes_are_shown(paper: Paper) -> None:
    output = paper.make()
    say(output, b"a" * 20_000 + b"\n\xff\xfe\n")
    output.finish()
    assert "".join(paper.lines()) == "a" * 20_000 + "\ufffd\ufffd"
    assert max(len(line) for line in paper.lines()) == LINE_BYTES
    assert paper.lines()[-1] == "\ufffd\ufffd"


@pytest.mark.parametrize("secret", ["tiger-tiger", "first half\nother half"])
async def test_secrets_are_hidden_wherever_they_are_cut(paper: Paper, secret: str) -> None:
    output = paper.make()
    output.hide([secret])
    for pad in (0, LINE_BYTES - 3, LINE_BYTES, 2 * LINE_BYTES - 5):
        say(output, b"-" * pad + secret.encode() + b" end\n", secret.encode())
    output.finish()
    said = "".join(paper.lines() + paper.lines("stderr") + output.tail(1000))
    assert not any(part in said for part in secret.splitlines())
    assert said.count("[secret]") >= 8


# Beyond the end of the reader.


def spawn(folder: Path, source: str) -> subprocess.Popen[bytes]:
    """A program that has the fifos of `fn-1-a` for its output, as an instance has."""
    (folder / "output").mkdir(exist_ok=True)
    descriptors = [
        os.open(folder / "output" / f"fn-1-a.{s}", os.O_RDWR) for s in ("stdout", "stderr")
    ]
    try:
        return subprocess.Popen(
            [sys.executable, "-u", "-c", source], stdout=descriptors[0], stderr=descriptors[1]
        )
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@contextlib.contextmanager
def kept(folder: Path) -> Iterator[Keeper]:
    """A keeper as Cove has one; it must have ended by the end of the block."""
    with living(folder / "alive"):
        keeper = Keeper(folder / "output", folder / "alive")
        try:
            yield keeper
        finally:
            deadline = time.monotonic() + BOUND
            while keeper.lives() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not keeper.lives()


async def test_no_program_dies_of_its_reader_and_nothing_it_says_meanwhile_is_lost(
    tmp_path: Path,
) -> None:
    with kept(tmp_path) as keeper:
        first = Paper(tmp_path / "output", keeper)
        output = first.make()
        program = spawn(tmp_path, "for n in range(10000): print(n)\nprint('last words')\n")
        await first.until(lambda: first.lines())
        output.release()  # and from here on as if it had been killed
        first.outputs._reader.close()
        second = Paper(tmp_path / "output", keeper)
        adopted = second.outputs.adopt("fn", 1, "fn-1-a")
        assert program.wait(BOUND) == 0
        adopted.finish()
        said = first.lines() + second.lines()
        # The line that was being written at the change is there in two pieces.
        assert "".join(said) == "".join(map(str, range(10000))) + "last words"
        assert len(said) <= 10002
        second.outputs.close()


async def test_last_words_wait_for_the_next_reader(tmp_path: Path) -> None:
    with kept(tmp_path) as keeper:
        first = Paper(tmp_path / "output", keeper)
        output = first.make()
        await asyncio.to_thread(until_held, keeper, tmp_path)
        output.release()
        first.outputs._reader.close()
        program = spawn(tmp_path, "print('why I died')")
        assert program.wait(BOUND) == 0  # nobody but the keeper has its fifos open now
        second = Paper(tmp_path / "output", keeper)
        assert second.outputs.left() == ["fn-1-a"]
        second.outputs.adopt("fn", 1, "fn-1-a").finish()
        assert second.lines() == ["why I died"]
        second.outputs.close()


async def test_another_keeper_takes_over_from_one_that_was_killed(tmp_path: Path) -> None:
    with kept(tmp_path) as keeper:
        first = Paper(tmp_path / "output", keeper)
        output = first.make()
        await asyncio.to_thread(until_held, keeper, tmp_path)
        assert keeper._child is not None
        keeper._child.send_signal(signal.SIGKILL)
        keeper._child.wait()
        first.outputs.look()
        await asyncio.to_thread(until_held, keeper, tmp_path)
        output.finish()
        first.outputs.close()


async def test_a_keeper_does_not_outlive_its_folder(tmp_path: Path) -> None:
    with living(tmp_path / "alive"):
        keeper = Keeper(tmp_path / "output", tmp_path / "alive")
        paper = Paper(tmp_path / "output", keeper)
        output = paper.make()
        await asyncio.to_thread(until_held, keeper, tmp_path)
        output.release()
        say(output, b"unread\n")
        shutil.rmtree(tmp_path / "output")
        child = keeper._child
        assert child is not None
        assert await asyncio.to_thread(child.wait, BOUND) == 0
        paper.outputs._reader.close()


def until_held(keeper: Keeper, folder: Path) -> None:
    """Wait until the keeper has both fifos open."""
    deadline = time.monotonic() + BOUND
    child = keeper._child
    assert child is not None
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            held = [
                os.readlink(f"/proc/{child.pid}/fd/{n}")
                for n in os.listdir(f"/proc/{child.pid}/fd")
            ]
            if sum(path.startswith(f"{folder}/output/fn-") for path in held) == 2:
                return
        time.sleep(0.01)
    raise AssertionError("the keeper does not hold the fifos")
