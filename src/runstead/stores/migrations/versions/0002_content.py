"""Stored content: xorbs, files, claims, chunks to ask for, names of the store."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STRING = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create the tables of stored content."""
    op.create_table(
        "xorbs",
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("state", STRING, nullable=False),
        sa.Column("confirmed_at", sa.BigInteger(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("key", STRING, nullable=False),
        sa.Column("layout", sa.LargeBinary(), nullable=False),
        sa.Column("checksums", sa.LargeBinary(), nullable=False),
        sa.Column("chunk_hashes", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_xorbs"),
        sa.UniqueConstraint("key", name="uq_xorbs_key"),
    )
    op.create_table(
        "files",
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("confirmed_at", sa.BigInteger(), nullable=False),
        sa.Column("sha256", STRING),
        sa.Column("terms", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_files"),
    )
    op.create_table(
        "claims",
        sa.Column("scope", STRING, nullable=False),
        sa.Column("file_hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "file_hash", name="pk_claims"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_claims_file_hash", "claims", ["file_hash"])
    op.create_table(
        "dedup_chunks",
        sa.Column("chunk_hash", sa.LargeBinary(), nullable=False),
        sa.Column("xorb_hash", sa.LargeBinary(), nullable=False),
        sa.Column("file_hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("chunk_hash", name="pk_dedup_chunks"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_dedup_chunks_xorb_hash", "dedup_chunks", ["xorb_hash"])
    op.create_table(
        "store_ids",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", STRING, nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_store_ids"),
    )
