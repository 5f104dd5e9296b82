"""Changes of what is deployed, one call after another."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cove.sdk.archive import existing
from cove.sdk.ignore import FILE, Ignore

TICK_MS = 100


@contextmanager
def changes(path: Path) -> Iterator[Callable[[], bool]]:
    """While the block runs, a function that waits until the file or folder changes.

    It returns True for a change since it was last called or the block began, however long ago
    (a change during a deploy is not lost), and False where watching has ended. Files that a
    deploy leaves out do not count.
    """
    seen: queue.SimpleQueue[bool] = queue.SimpleQueue()
    armed, stop = threading.Event(), threading.Event()
    watcher = threading.Thread(target=_watch, args=(existing(path), seen, armed, stop), daemon=True)
    watcher.start()
    armed.wait()

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


def _watch(
    path: Path, seen: queue.SimpleQueue[bool], armed: threading.Event, stop: threading.Event
) -> None:
    from watchfiles import watch

    # Editors replace a file rather than write it: what is watched is the folder it is in.
    folder = path if path.is_dir() else path.parent
    try:
        for some in watch(
            folder,
            watch_filter=lambda change, name: counts(path, Path(name)),
            stop_event=stop,
            recursive=path.is_dir(),
            rust_timeout=TICK_MS,
            yield_on_timeout=True,  # the first thing it yields, if only that, says that it watches
        ):
            armed.set()
            if some:
                seen.put(True)
    finally:
        seen.put(False)
        armed.set()


def counts(path: Path, file: Path) -> bool:
    """Whether a change of `file` changes what deploying `path` sends."""
    if not path.is_dir():
        return file == path
    relative = file.relative_to(path).as_posix()
    return relative == FILE or not Ignore.of(path).leaves_out_below(relative)
