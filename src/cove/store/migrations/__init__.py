"""Alembic's scripts, and which of them a database has had. Nothing here touches logging."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

SCRIPTS = "cove.store:migrations"

# Alembic keeps the running migration in module globals: one at a time in a process.
_one_at_a_time = threading.Lock()


def revisions() -> Sequence[str]:
    """All that this Cove knows, the oldest first."""
    walked = ScriptDirectory.from_config(_config()).walk_revisions()
    return [script.revision for script in walked][::-1]


def revision(connection: Connection) -> str | None:
    """The one that a database has; None where no migration ever ran."""
    return MigrationContext.configure(connection).get_current_revision()


def apply(connection: Connection) -> None:
    """Run what is missing, in the transaction that `connection` is in."""
    config = _config()
    config.attributes["connection"] = connection
    with _one_at_a_time:
        command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", SCRIPTS)
    config.set_main_option("path_separator", "os")
    return config
