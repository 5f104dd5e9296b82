"""The id that a program gave its session; secrets that functions may name."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # In place, not by a copy of the table: SQLite adds a column with a default in one step.
    op.add_column(
        "sessions",
        sa.Column("remote", sa.LargeBinary, nullable=False, server_default=sa.text("x''")),
    )
    op.create_table(
        "sealed_secrets",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
    )
