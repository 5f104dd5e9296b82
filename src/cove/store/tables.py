"""The records' tables. Migrations make them; a test compares the two."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)


class CallerText(TypeDecorator[str]):
    """Text that a stranger sent, kept as bytes: databases refuse some (NUL, lone surrogates),
    and one odd header must not make a whole batch of sessions unwritable."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:
        return None if value is None else value.encode("utf-8", "surrogatepass")

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else bytes(value).decode("utf-8", "surrogatepass")


metadata = MetaData()

functions = Table(
    "functions",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("created_at", Float, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("function", ForeignKey("functions.name", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("spec", JSON, nullable=False),
    Column("plan", JSON, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("isolation", String(16), nullable=False),
    Column("driver", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("error", Text, nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("function", String(63), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("number", Integer, nullable=False),
    ForeignKeyConstraint(
        ["function", "number"], ["versions.function", "versions.number"], ondelete="CASCADE"
    ),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("subject", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("function", ForeignKey("functions.name", ondelete="CASCADE"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("principal", CallerText, nullable=False),
    Column("affinity", Text, nullable=False),
    Column("key", CallerText, nullable=False),
    Column("instance", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("last_at", Float, nullable=False),
    Column("remote", CallerText, nullable=False, server_default=text("x''")),
    Index("sessions_by_function", "function"),
)

secrets = Table(
    "secrets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

sealed_secrets = Table(
    "sealed_secrets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
)
