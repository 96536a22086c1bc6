"""Schedules, what jobs used and cost, and budgets."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

STRING = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables, and give jobs a price: none."""
    for name in ("price_micro_usd", "cost_micro_usd", "reserved_micro_usd"):
        op.add_column("jobs", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    _partial_index(
        "ix_jobs_runs_in_hand",
        "jobs",
        "initiator_id",
        "initiator_type = 'scheduled-job' AND phase IN ('starting', 'running', 'releasing')",
    )
    _schedules()
    _sums()


def _schedules() -> None:
    op.create_table(
        "schedules",
        sa.Column("seq", SEQUENCE, nullable=False),
        sa.Column("id", STRING, nullable=False),
        sa.Column("namespace_id", STRING, nullable=False),
        sa.Column("namespace", STRING, nullable=False),
        sa.Column("namespace_kind", STRING, nullable=False),
        sa.Column("created_by_id", STRING, nullable=False),
        sa.Column("created_by", STRING, nullable=False),
        sa.Column("spec", STRING, nullable=False),
        sa.Column("labels", STRING, nullable=False),
        sa.Column("expression", STRING, nullable=False),
        sa.Column("time_zone", STRING, nullable=False),
        sa.Column("concurrency", sa.Boolean(), nullable=False),
        sa.Column("suspended", sa.Boolean(), nullable=False),
        sa.Column("suspend_reason", STRING),
        sa.Column("next_run_at", sa.BigInteger()),
        sa.Column("last_job_id", STRING),
        sa.Column("last_run_at", sa.BigInteger()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("events", sa.Integer(), nullable=False),
        sa.Column("runs", sa.Integer(), nullable=False),
        sa.Column("cost_micro_usd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_schedules"),
        sa.UniqueConstraint("id", name="uq_schedules_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_schedules_newest", "schedules", ["namespace", "seq"])
    _partial_index("ix_schedules_due", "schedules", "next_run_at", "next_run_at IS NOT NULL")
    op.create_table(
        "schedule_events",
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("kind", STRING, nullable=False),
        sa.Column("due_at", sa.BigInteger()),
        sa.Column("job_id", STRING),
        sa.Column("message", STRING),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("seq", "number", name="pk_schedule_events"),
        sa.ForeignKeyConstraint(["seq"], ["schedules.seq"], name="fk_schedule_events_seq", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "schedule_secrets",
        sa.Column("seq", SEQUENCE, nullable=False, autoincrement=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_schedule_secrets"),
        sa.ForeignKeyConstraint(["seq"], ["schedules.seq"], name="fk_schedule_secrets_seq", ondelete="CASCADE"),
    )


def _sums() -> None:
    op.create_table(
        "usage",
        sa.Column("month", sa.Integer(), nullable=False),
        sa.Column("namespace", STRING, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("job_id", STRING, nullable=False),
        sa.Column("created_by", STRING, nullable=False),
        sa.Column("schedule_id", STRING),
        sa.Column("flavor", STRING, nullable=False),
        sa.Column("labels", STRING, nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("cost_micro_usd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("month", "namespace", "seq", "attempt", name="pk_usage"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "spending",
        sa.Column("namespace", STRING, nullable=False),
        sa.Column("month", sa.Integer(), nullable=False),
        sa.Column("spent_micro_usd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "month", name="pk_spending"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "reservations",
        sa.Column("namespace", STRING, nullable=False),
        sa.Column("reserved_micro_usd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", name="pk_reservations"),
    )
    op.create_table(
        "budgets",
        sa.Column("namespace", STRING, nullable=False),
        sa.Column("limit_micro_usd", sa.BigInteger(), nullable=False),
        sa.Column("set_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", name="pk_budgets"),
    )


def _partial_index(name: str, table: str, column: str, where: str) -> None:
    op.create_index(name, table, [column], sqlite_where=sa.text(where), postgresql_where=sa.text(where))
