"""Layers are whole or not there, and equal trees are one."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from cove.errors import CoveError
from cove.runtimes.layers import Layers


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path / "layers")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/a.py").write_text("a")
    (folder / "run").write_text("r")
    (folder / "run").chmod(0o700)
    (folder / "link").symlink_to("sub/a.py")
    return folder


def test_equal_trees_are_one_layer(layers: Layers, tree: Path) -> None:
    first = layers.add_tree(tree)
    os.utime(tree / "sub/a.py", (0, 0))
    assert layers.add_tree(tree) == first
    assert (Path(first) / "sub/a.py").read_text() == "a"
    assert os.readlink(Path(first) / "link") == "sub/a.py"
    assert (Path(first) / "run").stat().st_mode & 0o777 == 0o755
    assert os.listdir(layers.root) == [Path(first).name]


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "sub/a.py").write_text("b"),
        lambda tree: (tree / "sub/a.py").rename(tree / "sub/b.py"),
        lambda tree: (tree / "sub/a.py").chmod(0o755),
        lambda tree: (tree / "new").mkdir(),
        lambda tree: ((tree / "link").unlink(), (tree / "link").symlink_to("run")),
    ],
    ids=["content", "name", "mode", "folder", "link"],
)
def test_any_change_is_another_layer(layers: Layers, tree: Path, change: object) -> None:
    first = layers.add_tree(tree)
    change(tree)  # type: ignore[operator]
    assert layers.add_tree(tree) != first


def test_a_tree_with_a_fifo_is_refused_and_leaves_nothing(layers: Layers, tree: Path) -> None:
    os.mkfifo(tree / "fifo")
    with pytest.raises(CoveError) as caught:
        layers.add_tree(tree)
    assert caught.value.code == "bad_source"
    assert os.listdir(layers.root) == []


async def test_two_builds_of_one_key_build_once(layers: Layers) -> None:
    made: list[Path] = []
    go = asyncio.Event()

    async def make(into: Path) -> None:
        made.append(into)
        await go.wait()
        (into / "x").write_text("x")

    builds = [asyncio.create_task(layers.build("k", make)) for _ in range(2)]
    while not made:
        await asyncio.sleep(0)
    go.set()
    (path, fresh), (other, other_fresh) = await asyncio.gather(*builds)
    assert path == other
    assert (fresh, other_fresh) == (True, False)
    assert len(made) == 1
    assert (Path(path) / "x").read_text() == "x"
    assert os.listdir(layers.root) == ["k"]


async def test_a_failed_build_leaves_nothing_and_the_next_one_builds(layers: Layers) -> None:
    async def fail(into: Path) -> None:
        (into / "half").write_text("")
        raise RuntimeError

    async def succeed(into: Path) -> None:
        (into / "whole").write_text("")

    with pytest.raises(RuntimeError):
        await layers.build("k", fail)
    assert os.listdir(layers.root) == []
    path, fresh = await layers.build("k", succeed)
    assert fresh
    assert os.listdir(path) == ["whole"]


async def test_a_cancelled_build_leaves_nothing_and_its_waiter_builds(layers: Layers) -> None:
    began = asyncio.Event()

    async def hang(into: Path) -> None:
        (into / "half").write_text("")
        began.set()
        await asyncio.Event().wait()

    async def succeed(into: Path) -> None:
        (into / "whole").write_text("")

    first = asyncio.create_task(layers.build("k", hang))
    await began.wait()
    second = asyncio.create_task(layers.build("k", succeed))
    await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(10):
        path, fresh = await second
    assert fresh
    assert os.listdir(path) == ["whole"]
    assert os.listdir(layers.root) == ["k"]
    assert first.cancelled()


def test_what_an_interrupted_process_left_is_cleared(layers: Layers, tree: Path) -> None:
    kept = layers.add_tree(tree)
    layers._unfinished().joinpath("half").write_text("")
    again = Layers(layers.root)
    assert os.listdir(again.root) == [Path(kept).name]


def test_pruning_keeps_what_is_named_and_what_is_yet_to_be(layers: Layers, tree: Path) -> None:
    old = layers.add_tree(tree)
    (tree / "sub/a.py").write_text("b")
    live = layers.add_tree(tree)
    assert layers.prune({old, live}) == []
    (tree / "sub/a.py").write_text("c")
    deploying = layers.add_tree(tree)
    assert layers.prune({live}) == [old]
    assert {str(layers.root / name) for name in os.listdir(layers.root)} == {live, deploying}
    assert set(Layers(layers.root).prune(set())) == {live, deploying}
    assert os.listdir(layers.root) == []
