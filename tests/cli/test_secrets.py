"""`cove secret`: how a value gets in, and that it is nowhere afterwards."""

from __future__ import annotations

import os
import pty
import select
import subprocess
from pathlib import Path

import pytest

from api.served import PATIENCE, MemoryControl
from cove.config import LARGEST_VALUE

from .conftest import COVE, Cove, Ran
from .test_commands import on_a_terminal

MARKER = "hunter2-marker"


def piped(cove: Cove, *args: str, text: bytes, code: int = 0) -> Ran:
    done = subprocess.run(
        [*COVE, *args], env=cove.env, input=text, capture_output=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def told(*runs: Ran) -> str:
    return "".join(ran.out + ran.err for ran in runs)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"hunter2-marker\n", MARKER),
        (b"hunter2-marker", MARKER),
        (b"hunter2-marker\n\n", MARKER + "\n"),
        (b"a\nb\n", "a\nb"),
        ("Ω ".encode(), "Ω "),
    ],
)
def test_a_value_comes_from_a_pipe_or_a_file_without_its_last_newline(
    cove: Cove, control: MemoryControl, tmp_path: Path, text: bytes, value: str
) -> None:
    (tmp_path / "value").write_bytes(text)
    runs = [
        piped(cove, "secret", "set", "A", text=text),
        cove("secret", "set", "B", "--file", tmp_path / "value"),
    ]
    assert control.kept == {"A": value, "B": value}
    assert MARKER not in told(*runs)


def answered(cove: Cove, *args: str, question: str, answer: str) -> tuple[int, str]:
    """The exit code and everything shown; the answer is typed when the question stands there."""
    leader, follower = pty.openpty()
    run = subprocess.Popen(
        [*COVE, *args],
        env=cove.env | {"TERM": "xterm"},
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    shown, asked = b"", False
    try:
        while select.select([leader], [], [], PATIENCE)[0]:
            try:
                shown += os.read(leader, 65536)
            except OSError:  # how Linux says that the last writer has closed
                break
            if not asked and question in shown.decode():
                asked = True
                os.write(leader, answer.encode())
        return run.wait(PATIENCE), shown.decode()
    finally:
        run.kill()
        run.wait()
        os.close(leader)


def test_a_terminal_is_asked_and_shows_nothing_of_it(cove: Cove, control: MemoryControl) -> None:
    code, shown = answered(
        cove, "secret", "set", "A", question="Value of A: ", answer=MARKER + "\n"
    )
    assert code == 0, shown
    assert control.kept == {"A": MARKER}
    assert MARKER not in shown
    assert "set A" in shown


@pytest.mark.parametrize(
    "args", [("A", MARKER), (f"A={MARKER}",), ("A", MARKER, "--json"), (f"A={MARKER}", "--json")]
)
def test_a_value_on_the_command_line_is_refused_with_the_way_to_do_it(
    cove: Cove, control: MemoryControl, args: tuple[str, ...]
) -> None:
    ran = cove("secret", "set", *args, code=1)
    assert "shells and lists of processes keep it" in told(ran)
    assert "--file" in told(ran)
    assert MARKER not in told(ran)
    assert control.kept == {}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a", b"x", "capital letters"),
        ("PATH", b"x", "Cove sets itself"),
        ("LD_PRELOAD", b"x", "how programs are run"),
        ("A", b"", "is empty"),
        ("A", b"\n", "is empty"),
        ("A", b"hunter2-marker\xff", "not UTF-8"),
        ("A", b"hunter2-marker\0", "NUL"),
        ("A", b"x" * (LARGEST_VALUE + 1), "more than 64 KiB"),
        ("A", b"x" + "日".encode() * LARGEST_VALUE, "more than 64 KiB"),
    ],
)
def test_what_cannot_be_one_is_refused_and_not_repeated(
    cove: Cove, control: MemoryControl, name: str, text: bytes, said: str
) -> None:
    ran = piped(cove, "secret", "set", name, text=text, code=1)
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert MARKER not in told(ran)
    assert control.kept == {}


def test_the_largest_value_comes_through_with_its_newline_taken_off(
    cove: Cove, control: MemoryControl
) -> None:
    piped(cove, "secret", "set", "A", text=b"x" * LARGEST_VALUE + b"\n")
    assert control.kept == {"A": "x" * LARGEST_VALUE}


def test_a_file_that_cannot_be_read_is_an_error_with_its_name(cove: Cove, tmp_path: Path) -> None:
    for file in (tmp_path / "none", tmp_path):
        ran = cove("secret", "set", "A", "--file", file, code=1)
        assert f"{file} cannot be read" in ran.err


def test_lists_have_names_and_who_names_them(cove: Cove, control: MemoryControl) -> None:
    assert "no secret is set" in cove("secret", "list").err
    piped(cove, "secret", "set", "A", text=MARKER.encode())
    ran = piped(cove, "secret", "set", "NAMED", text=MARKER.encode())
    assert ran.out == "set NAMED\n"
    assert ran.err == "instances of weather have it that start from now on\n"
    listed = cove("secret", "list")
    rows = [line.split() for line in listed.out.splitlines()]
    assert rows[0] == ["NAME", "SET", "FUNCTIONS"]
    assert [(row[0], row[-1]) for row in rows[1:]] == [("A", "-"), ("NAMED", "weather")]
    whole = cove("secret", "list", "--json")
    assert [each["name"] for each in whole.json] == ["A", "NAMED"]
    again = piped(cove, "--json", "secret", "set", "A", text=MARKER.encode())
    assert again.json["applies"] == "to instances that start from now on"
    assert MARKER not in told(ran, listed, whole, again)


def test_one_is_removed_after_a_question(cove: Cove, control: MemoryControl) -> None:
    control.kept = {"A": MARKER, "B": MARKER, "NAMED": MARKER}
    code, shown = on_a_terminal(cove, "secret", "rm", "A", typed="n\n")
    assert (code, set(control.kept)) == (1, {"A", "B", "NAMED"})
    assert "nothing was removed" in shown
    code, shown = on_a_terminal(cove, "secret", "rm", "A", typed="y\n")
    assert (code, set(control.kept)) == (0, {"B", "NAMED"})
    assert cove("secret", "rm", "B", "--json").json == {"removed": "B"}
    assert "NAMED is named by" in cove("secret", "rm", "NAMED", "--yes", code=1).err
    assert cove("secret", "rm", "B", "--json", code=1).json["error"]["code"] == "not_found"
    assert set(control.kept) == {"NAMED"}
