"""The tables of schedules, of what jobs used, and of budgets. Instants as in `tables`; amounts are millionths."""

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, LargeBinary, PrimaryKeyConstraint, Table
from sqlalchemy import text as sql

from runstead.stores.bucket_tables import metadata
from runstead.stores.tables import INSTANT, SEQUENCE, STRING, jobs

TO_RUN = "next_run_at IS NOT NULL"
RUNS_IN_HAND = "initiator_type = 'scheduled-job' AND phase IN ('starting', 'running', 'releasing')"

schedules = Table(
    "schedules",
    metadata,
    Column("seq", SEQUENCE, primary_key=True),
    Column("id", STRING, nullable=False, unique=True),
    Column("namespace_id", STRING, nullable=False),
    Column("namespace", STRING, nullable=False),
    Column("namespace_kind", STRING, nullable=False),
    Column("created_by_id", STRING, nullable=False),
    Column("created_by", STRING, nullable=False),
    Column("spec", STRING, nullable=False),  # JSON, without the labels
    Column("labels", STRING, nullable=False),  # JSON
    Column("expression", STRING, nullable=False),
    Column("time_zone", STRING, nullable=False),
    Column("concurrency", Boolean(create_constraint=False), nullable=False),
    Column("suspended", Boolean(create_constraint=False), nullable=False),
    Column("suspend_reason", STRING),
    Column("next_run_at", INSTANT),
    Column("last_job_id", STRING),
    Column("last_run_at", INSTANT),
    Column("created_at", INSTANT, nullable=False),
    Column("version", Integer, nullable=False),  # counts the changes
    Column("events", Integer, nullable=False),  # numbers the events
    Column("runs", Integer, nullable=False),
    Column("cost_micro_usd", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)
Index("ix_schedules_newest", schedules.c.namespace, schedules.c.seq)
Index("ix_schedules_due", schedules.c.next_run_at, sqlite_where=sql(TO_RUN), postgresql_where=sql(TO_RUN))
Index("ix_jobs_runs_in_hand", jobs.c.initiator_id, sqlite_where=sql(RUNS_IN_HAND), postgresql_where=sql(RUNS_IN_HAND))

schedule_events = Table(
    "schedule_events",
    metadata,
    Column("seq", BigInteger, ForeignKey(schedules.c.seq, ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("at", INSTANT, nullable=False),
    Column("kind", STRING, nullable=False),
    Column("due_at", INSTANT),
    Column("job_id", STRING),
    Column("message", STRING),
    Column("count", Integer, nullable=False),
    PrimaryKeyConstraint("seq", "number"),
    sqlite_with_rowid=False,
)

schedule_secrets = Table(
    "schedule_secrets",
    metadata,
    Column("seq", SEQUENCE, ForeignKey(schedules.c.seq, ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("sealed", LargeBinary, nullable=False),
)

# One row per attempt and month, written when the attempt ends. No foreign key: jobs are swept, this stays.
usage = Table(
    "usage",
    metadata,
    Column("month", Integer, nullable=False),  # 202611
    Column("namespace", STRING, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("job_id", STRING, nullable=False),
    Column("created_by", STRING, nullable=False),
    Column("schedule_id", STRING),
    Column("flavor", STRING, nullable=False),
    Column("labels", STRING, nullable=False),  # JSON
    Column("used", BigInteger, nullable=False),  # microseconds
    Column("cost_micro_usd", BigInteger, nullable=False),
    PrimaryKeyConstraint("month", "namespace", "seq", "attempt"),
    sqlite_with_rowid=False,
)

# The sums of `usage`, and of what the jobs that are not over may still cost; only where something has a price.
spending = Table(
    "spending",
    metadata,
    Column("namespace", STRING, nullable=False),
    Column("month", Integer, nullable=False),
    Column("spent_micro_usd", BigInteger, nullable=False),
    PrimaryKeyConstraint("namespace", "month"),
    sqlite_with_rowid=False,
)
reservations = Table(
    "reservations",
    metadata,
    Column("namespace", STRING, primary_key=True),
    Column("reserved_micro_usd", BigInteger, nullable=False),
)
budgets = Table(
    "budgets",
    metadata,
    Column("namespace", STRING, primary_key=True),
    Column("limit_micro_usd", BigInteger, nullable=False),
    Column("set_at", INSTANT, nullable=False),
)
