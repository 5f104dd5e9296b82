"""Changes of what is deployed, one call after another."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cove.sdk.ignore import FILE, Ignore

if TYPE_CHECKING:
    from watchfiles import Change


@contextmanager
def changes(path: Path) -> Iterator[Callable[[], bool]]:
    """While the block runs, a function that waits until the file or folder changes.

    It returns True for a change since it was last called, however long ago (a change during
    a deploy is not lost), and False where watching has ended. Files that a deploy leaves out
    do not count.
    """
    seen: queue.SimpleQueue[bool] = queue.SimpleQueue()
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(path.resolve(), seen, stop), daemon=True)
    watcher.start()

    def changed() -> bool:
        going_on = seen.get()
        while going_on and not seen.empty():
            going_on = seen.get()
        return going_on

    try:
        yield changed
    finally:
        stop.set()
        watcher.join()


def _watch(path: Path, seen: queue.SimpleQueue[bool], stop: threading.Event) -> None:
    from watchfiles import watch

    # Editors replace a file rather than write it: what is watched is the folder it is in.
    folder = path if path.is_dir() else path.parent
    try:
        for _ in watch(
            folder,
            watch_filter=lambda change, name: _counts(path, change, Path(name)),
            stop_event=stop,
            recursive=path.is_dir(),
            rust_timeout=200,
        ):
            seen.put(True)
    finally:
        seen.put(False)


def _counts(path: Path, change: Change, file: Path) -> bool:
    if not path.is_dir():
        return file == path
    relative = file.relative_to(path).as_posix()
    return relative == FILE or not Ignore.of(path).leaves_out_below(relative)
