"""The history of buckets in the order in which it is written."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

STRING = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
COLUMNS = "bucket, version, path, file_hash, size, mtime, uploaded_at, content_type, replaced_at"


def upgrade() -> None:
    """Sort what files were by version and path, so that a batch writes it in one place."""
    op.drop_index("ix_bucket_history_replaced_at", "bucket_history")
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint("pk_bucket_history", "bucket_history")
        op.create_primary_key("pk_bucket_history", "bucket_history", ["bucket", "version", "path"])
        op.execute("ALTER TABLE bucket_files SET (fillfactor = 85)")
        return
    op.rename_table("bucket_history", "bucket_history_by_path")
    op.create_table(
        "bucket_history",
        sa.Column("bucket", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("path", STRING, nullable=False),
        sa.Column("file_hash", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime", sa.BigInteger(), nullable=False),
        sa.Column("uploaded_at", sa.BigInteger(), nullable=False),
        sa.Column("content_type", STRING),
        sa.Column("replaced_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("bucket", "version", "path", name="pk_bucket_history"),
        sqlite_with_rowid=False,
    )
    op.execute(
        f"INSERT INTO bucket_history ({COLUMNS}) "  # noqa: S608
        f"SELECT {COLUMNS} FROM bucket_history_by_path ORDER BY bucket, version, path"
    )
    op.drop_table("bucket_history_by_path")
