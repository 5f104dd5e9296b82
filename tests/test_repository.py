"""What must never be in the repository: names of one machine, a registry, a secret."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Each pattern is written in two parts, so that this file does not hold what it looks for.
FORBIDDEN = {
    "a package registry's host": re.compile(
        r"\b(?:py" + r"pi\.(?:org|python\.org)|files\.python" + r"hosted\.org|registry\.npm" + r"js"
        r"|npm\.pkg\.git"
        + r"hub|conda\.ana"
        + r"conda|cra"
        + r"tes\.io|jf"
        + r"rog|artifa"
        + r"ctory)"
    ),
    "a home folder of one machine": re.compile(
        r"/(?:ho"
        + r"me|Us"
        + r"ers)/(?!user\b|you\b|me\b)[a-z][\w.-]*/|(?<![\w.])/ro"
        + r"ot/[.\w]"
    ),
    "a workplace's folder": re.compile(r"(?<![\w.}])/wo" + r"rk/\w|/opt/" + r"(?:wheels|pypi)"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIV" + r"ATE KEY-----"),
    "an unfinished end": re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b"),
    "a conflict marker": re.compile(r"^(?:<<<<<" + r"<<|>>>>>" + r">>) ", re.MULTILINE),
}
# The licence's text is not ours to change, and locks hold digests that may spell anything.
LOCKS = {"requirements.lock", "requirements-mcp1.lock", "package-lock.json"}


def tracked() -> list[Path]:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def found_in(text: str, *, lock: bool = False) -> list[str]:
    """What of the forbidden a text holds, with its line."""
    out = []
    for what, pattern in FORBIDDEN.items():
        if lock and what == "an unfinished end":
            continue
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            out.append(f"line {line}: {what}: {match[0]!r}")
    return out


def test_nothing_tracked_names_a_machine_a_registry_or_a_secret() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)} {each}" for each in found_in(text, lock=path.name in LOCKS)
        ]
    assert found == []


def test_lock_files_name_no_host_to_download_from() -> None:
    locks = [path for path in tracked() if path.name in LOCKS]
    assert {path.name for path in locks} == LOCKS
    for path in locks:
        text = path.read_text()
        # a package's funding page is metadata; `resolved` and `--index-url` are where from
        assert '"resolved"' not in text, path.name
        assert not re.search(r"^--(?:index|extra-index|find-links)", text, re.MULTILINE), path.name
        if path.suffix == ".lock":
            assert "://" not in text, path.name
            assert "--hash=sha256:" in text, path.name


def test_every_pin_of_the_build_agrees_with_the_lock() -> None:
    pin = re.search(r'requires = \["hatchling==([\d.]+)"\]', (ROOT / "pyproject.toml").read_text())
    assert pin
    assert f"hatchling=={pin[1]} \\" in (ROOT / "requirements.lock").read_text()


@pytest.mark.parametrize(
    "text",
    [
        "index-url = https://py" + "pi.org/simple",
        "https://registry.npm" + "js.org/",
        "cd /wo" + "rk/main",
        "/ro" + "ot/.pyenv/shims/python",
        "/ho" + "me/somebody/project",
        "-----BEGIN RSA PRIV" + "ATE KEY-----",
        "# TO" + "DO: later",
    ],
)
def test_the_search_finds_what_it_looks_for(text: str) -> None:
    assert found_in(text)


@pytest.mark.parametrize(
    "text", ["/".join(("https://example.com", "work", "x")), "$HOME/root", "the network"]
)
def test_the_search_leaves_the_innocent_alone(text: str) -> None:
    assert found_in(text) == []
