"""docs/bounds.md says the figures that the code has, and all of them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from cove import model
from cove.gateway import head, http, listener, refusal, upstream

TEXT = (Path(__file__).parents[2] / "docs" / "bounds.md").read_text()
ROW = re.compile(r"^\| (?P<what>[^|]+) \| (?P<most>[^|]+) \| [^|]+ \| `(?P<name>[\w.]+)` \|$", re.M)
ROWS = {found["name"]: found["most"] for found in ROW.finditer(TEXT)}
NAMED = re.compile(r"_?[A-Z_]*(?:BYTES|SECONDS|COUNT|MOST|DIGITS|BACKLOG|OWN|LEAST)")


def constant(name: str) -> Any:
    """`http._X` of the gateway; `model.Limits.x`, a default."""
    module, *path = name.split(".")
    if module == "model":
        return getattr(getattr(model, path[0])(), path[1])
    return getattr(importlib.import_module(f"cove.gateway.{module}"), path[0])


def figure(value: float, like: str) -> str:
    """A constant in the unit that the page has it in."""
    unit = like.rpartition(" ")[2] if " " in like else ""
    size = {"KiB": 1024, "MiB": 1024**2, "s": 1, "": 1}[unit]
    return f"{value / size:.15g} {unit}".strip()


def test_the_page_has_its_tables() -> None:
    assert len(ROWS) > 20


@pytest.mark.parametrize("name", ROWS)
def test_each_figure_is_the_codes(name: str) -> None:
    assert figure(constant(name), ROWS[name]) == ROWS[name]


@pytest.mark.parametrize("module", [http, head, upstream, listener], ids=lambda m: m.__name__)
def test_each_bound_of_the_code_is_on_the_page(module: Any) -> None:
    short = module.__name__.rpartition(".")[2]
    bounds = [name for name in vars(module) if NAMED.fullmatch(name) and name != "_TCP_INFO_BYTES"]
    assert [name for name in bounds if f"`{short}.{name}`" not in TEXT] == []


def test_the_figures_in_prose_are_the_codes_too() -> None:
    assert f"{listener._OWN} stay for Cove itself" in TEXT
    assert f"never fewer than {listener._LEAST}" in TEXT


@pytest.mark.parametrize("text", [refusal.TOO_LARGE, refusal.TOO_MUCH_BETWEEN])
def test_the_words_have_the_figures_that_the_code_has(text: str) -> None:
    figures = {
        f"{http._HEAD_BYTES // 1024} KiB and {head.HEAD_COUNT} header fields",
        f"{http._BETWEEN_BYTES // 1024**2} MiB",
    }
    assert any(figure in text for figure in figures)


def test_every_single_header_is_named() -> None:
    single = {name.decode().lower() for name in head._SINGLE} - {"transfer-encoding"}
    (line,) = [line for line in TEXT.splitlines() if line.startswith("- a second ")]
    assert {name.lower() for name in re.findall(r"`([\w-]+)`", line)} == single
