"""What jobs wrote to their volumes."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

STRING = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create the table of outputs."""
    op.create_table(
        "job_outputs",
        sa.Column(
            "job_id",
            STRING,
            sa.ForeignKey("jobs.id", ondelete="CASCADE", name="fk_job_outputs_job_id"),
            nullable=False,
        ),
        sa.Column("bucket", sa.BigInteger(), nullable=False),
        sa.Column("path", STRING, nullable=False),
        sa.Column("file_hash", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "bucket", "path", name="pk_job_outputs"),
        sqlite_with_rowid=False,
    )
