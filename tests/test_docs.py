"""Documentation is held to what the program does: commands, options, keys, links, targets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cove import config
from cove.config import parse_function

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
INLINE = re.compile(r"`((?:\.venv/bin/)?cove [a-z][^`]*)`")


def shell_lines(text: str) -> Iterator[str]:
    """Command lines of a page: in its shell blocks, and inline code that begins with cove."""
    for language, block in FENCE.findall(text):
        if language in ("sh", "bash", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                yield line.removeprefix("$ ").partition("  #")[0].strip()
    yield from INLINE.findall(FENCE.sub("", text))


def cove_lines(text: str) -> list[list[str]]:
    """Arguments of each `cove` command line."""
    out = []
    for line in shell_lines(text):
        for part in re.split(r"\s(?:\||&&|;)\s", line):
            words = shlex.split(part)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words and words[0] in ("cove", ".venv/bin/cove"):
                out.append([word for word in words[1:] if word != "&"])
    return out


def command() -> click.Group:
    cli = pytest.importorskip("cove.cli.main", reason="the CLI is not there yet")
    assert isinstance(cli.cove, click.Group)
    return cli.cove


def subcommands(group: click.Group) -> dict[str, click.Command]:
    """By name. Through the group's own methods, as it may import a command when asked for it."""
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: each for name, each in found.items() if each is not None}


def fault(root: click.Group, words: list[str]) -> str | None:
    """What is wrong with a documented command line, if anything."""
    here: click.Command = root
    path = ["cove"]
    for word in words:
        if isinstance(here, click.Group) and not word.startswith("-"):
            found = subcommands(here).get(word)
            if found is None:
                return f"{' '.join(path)} has no subcommand {word!r}"
            here = found
            path.append(word)
        elif word.startswith("--"):
            option = word.partition("=")[0]
            known = {name for each in here.params for name in each.opts + each.secondary_opts}
            if option not in known | {"--help"}:
                return f"{' '.join(path)} has no option {option}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_documented_command_exists(page: Path) -> None:
    root = command()
    faults = [
        f"{words}: {wrong}"
        for words in cove_lines(page.read_text())
        if (wrong := fault(root, words))
    ]
    assert faults == []


def test_every_command_and_option_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    missing = []

    def look(here: click.Command, path: str) -> None:
        if path not in text:
            missing.append(path)
        for each in here.params:
            shown = isinstance(each, click.Option) and not each.hidden
            if shown and not any(name in text for name in each.opts):
                missing.append(f"{path} {each.opts[0]}")
        if isinstance(here, click.Group):
            for name, inner in subcommands(here).items():
                if not inner.hidden:
                    look(inner, f"{path} {name}")

    look(command(), "cove")
    assert missing == []


def test_a_wrong_command_line_is_found() -> None:
    root = click.Group("cove", commands=[click.Command("list", params=[click.Option(["--json"])])])
    assert fault(root, ["list", "--json"]) is None
    assert fault(root, ["ls"]) == "cove has no subcommand 'ls'"
    assert fault(root, ["list", "--jsn"]) == "cove list has no option --jsn"
    assert cove_lines("say `cove list --json`\n```sh\n$ X=1 cove list | jq .\n```\n") == [
        ["list"],
        ["list", "--json"],
    ]


def function_keys() -> list[str]:
    return [".".join(path) for path in config.FUNCTION_KEYS]


def operator_keys() -> list[str]:
    return [".".join(path) for path in config.OPERATOR_KEYS]


@pytest.mark.parametrize("key", [*function_keys(), *operator_keys()])
def test_every_key_is_documented(key: str) -> None:
    assert f"| `{key}` |" in (ROOT / "docs" / "cove-toml.md").read_text()


def test_no_key_is_documented_that_is_not_accepted() -> None:
    text = (ROOT / "docs" / "cove-toml.md").read_text()
    built = text.partition("## Not built yet")[0]
    tables = re.findall(r"^\| key \|.*\n(?:\|.*\n)+", built, re.MULTILINE)
    documented = set(re.findall(r"^\| `([a-z_.]+)` \|", "".join(tables), re.MULTILINE))
    assert documented == {*function_keys(), *operator_keys()}


def test_the_documented_examples_are_accepted() -> None:
    text = (ROOT / "docs" / "cove-toml.md").read_text().partition("## config.toml")[0]
    examples = [block for language, block in FENCE.findall(text) if language == "toml"]
    assert examples
    for block in examples:
        parse_function(block, fallback_name="example")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{page.name} links to {target}"


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).strip().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert named <= targets


def test_every_file_that_a_page_names_exists() -> None:
    """`src/cove/…` and the like in code spans are where a reader goes next."""
    gone = []
    for page in PAGES:
        for name in re.findall(
            r"`((?:src/cove|tests|bench|examples|scripts)/[\w./-]+)`", page.read_text()
        ):
            if not (ROOT / name).exists():
                gone.append(f"{page.name}: {name}")
    assert gone == []


def test_the_changelog_knows_the_version() -> None:
    version = re.search(
        r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert version
    assert version[1] in (ROOT / "CHANGELOG.md").read_text()
