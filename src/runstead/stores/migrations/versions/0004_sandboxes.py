"""When sandboxes were last used, the pooled ones, and why a job is to be ended."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

STRING = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create what sandboxes need."""
    op.add_column("jobs", sa.Column("cancel_reason", STRING))
    op.create_table(
        "sandboxes",
        sa.Column("job_id", STRING, sa.ForeignKey("jobs.id", ondelete="CASCADE", name="fk_sandboxes_job_id")),
        sa.Column("id", STRING, nullable=False),
        sa.Column("active_at", sa.BigInteger(), nullable=False),
        sa.Column("facts", STRING),
        sa.Column("sealed", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("job_id", "id", name="pk_sandboxes"),
    )
