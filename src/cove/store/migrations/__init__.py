"""Alembic's scripts. `apply` brings a database to the newest; it never touches logging."""

from __future__ import annotations

import threading

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

from cove.errors import CoveError

# Alembic keeps the running migration in module globals: one at a time in a process.
_one_at_a_time = threading.Lock()


def apply(connection: Connection) -> None:
    """Run what is missing, in the transaction that `connection` is in."""
    config = Config()
    config.set_main_option("script_location", "cove.store:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    with _one_at_a_time:
        try:
            command.upgrade(config, "head")
        except CommandError as fault:
            raise CoveError(
                "not_built",
                f"the records were written by a newer Cove: {fault}",
                hint="start the Cove that wrote them, or give another folder with --data",
            ) from fault
