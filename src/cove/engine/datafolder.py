"""The data folder: one Cove at a time has it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from cove.config import OperatorConfig, read_operator
from cove.errors import CoveError

LOCK, CONFIG = "lock", "config.toml"
_ELSEWHERE = "choose another folder with --data or COVE_DATA"


@contextlib.contextmanager
def hold(data: Path) -> Iterator[None]:
    """Make the data folder and keep others off it.

    `conflict`, with the other's process id, where another Cove has it, by whatever path;
    `bad_config` where it cannot be used.
    """
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o755)
        lock = os.open(data / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(data, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CoveError(
                "conflict",
                f"another Cove runs on the data folder {data}{_whose(lock)}",
                hint="stop it, or choose another folder with --data",
            ) from error
        _sign(lock)
        yield
    finally:
        os.close(lock)


def configured(data: Path) -> OperatorConfig:
    """What DATA/config.toml says, if it is there; `bad_config` where it cannot be read."""
    file = data / CONFIG
    try:
        return read_operator(file.read_text("utf-8"), str(file))
    except (FileNotFoundError, NotADirectoryError):  # where that is wrong, `hold` says so
        return OperatorConfig()
    except UnicodeDecodeError as error:
        raise CoveError(
            "bad_config", f"{file} is not UTF-8: {error}", hint="save it as UTF-8"
        ) from error
    except OSError as error:
        raise CoveError(
            "bad_config",
            f"{file} cannot be read: {error.strerror}",
            hint=f"make it a file that user {os.geteuid()} may read, or remove it",
        ) from error


def _sign(lock: int) -> None:
    """Our process id, for whoever finds the folder taken; where it was before, on a full disk."""
    with contextlib.suppress(OSError):
        os.pwrite(lock, b"%-20d\n" % os.getpid(), 0)


def _whose(lock: int) -> str:
    pid = os.pread(lock, 20, 0).strip()
    return f": process {pid.decode()}" if pid.isdigit() else ""


def _unusable(data: Path, error: OSError) -> CoveError:
    """What is the matter with a data folder, and what may be done."""
    why, hint = error.strerror or str(error), _ELSEWHERE
    if isinstance(error, FileExistsError | NotADirectoryError):
        taken = next(path for path in (data, *data.parents) if path.exists())
        why = f"{taken} is a file"
    elif isinstance(error, PermissionError):
        why = f"user {os.geteuid()} may not write {error.filename or data}"
        hint = f"run Cove as the user whose it is, or {_ELSEWHERE}"
    return CoveError("bad_config", f"the data folder {data} cannot be used: {why}", hint=hint)
