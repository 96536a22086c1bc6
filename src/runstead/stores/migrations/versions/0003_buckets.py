"""Buckets, their files, what the files were, and the event log."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

STRING = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables of buckets."""
    _buckets()
    op.create_table(
        "bucket_files",
        *_file(),
        sa.PrimaryKeyConstraint("bucket", "path", name="pk_bucket_files"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "bucket_history",
        *_file(sa.Column("version", sa.BigInteger(), nullable=False)),
        sa.Column("replaced_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("bucket", "path", "version", name="pk_bucket_history"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_bucket_history_replaced_at", "bucket_history", ["replaced_at"])
    op.create_table(
        "bucket_batches",
        sa.Column("bucket", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("changes", STRING, nullable=False),
        sa.PrimaryKeyConstraint("bucket", "version", name="pk_bucket_batches"),
    )
    op.create_index("ix_bucket_batches_at", "bucket_batches", ["at"])
    op.create_index("ix_bucket_batches_since", "bucket_batches", ["bucket", "at"])


def _buckets() -> None:
    op.create_table(
        "buckets",
        sa.Column("seq", SEQUENCE, nullable=False),
        sa.Column("id", STRING, nullable=False),
        sa.Column("namespace_id", STRING, nullable=False),
        sa.Column("namespace", STRING, nullable=False),
        sa.Column("namespace_kind", STRING, nullable=False),
        sa.Column("name", STRING, nullable=False),
        sa.Column("private", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("total_files", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("resource_group_id", STRING),
        sa.Column("region", STRING),
        sa.Column("deleted_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("seq", name="pk_buckets"),
        sa.UniqueConstraint("id", name="uq_buckets_id"),
        sqlite_autoincrement=True,
    )
    _partial_index("ix_buckets_live", ["namespace", "name"], "deleted_at IS NULL", unique=True)
    _partial_index("ix_buckets_deleted", ["deleted_at"], "deleted_at IS NOT NULL")


def _file(*after_path: "sa.Column[Any]") -> "list[sa.Column[Any]]":
    return [
        sa.Column("bucket", sa.BigInteger(), nullable=False),
        sa.Column("path", STRING, nullable=False),
        *after_path,
        sa.Column("file_hash", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime", sa.BigInteger(), nullable=False),
        sa.Column("uploaded_at", sa.BigInteger(), nullable=False),
        sa.Column("content_type", STRING),
    ]


def _partial_index(name: str, columns: list[str], where: str, unique: bool = False) -> None:
    op.create_index(
        name, "buckets", columns, unique=unique, sqlite_where=sa.text(where), postgresql_where=sa.text(where)
    )
