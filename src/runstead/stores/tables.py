"""The tables and their indexes.

Instants are integer microseconds since 1970 (UTC), so that both databases keep and compare them alike. What only
a service reads, and only whole, is one JSON text column. Conditions that a partial index is made for are written
out as text here and used word for word in the queries: a planner matches them by their literal form.

A change here needs a migration beside it (`migrations/versions`) and its name in `schema.REVISIONS`.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Sorted by code point on both databases; PostgreSQL would use the language of its cluster otherwise.
STRING = Text().with_variant(Text(collation="C"), "postgresql")
INSTANT = BigInteger()
# SQLite gives numbers only to a column that is exactly INTEGER PRIMARY KEY.
SEQUENCE = BigInteger().with_variant(Integer(), "sqlite")

# The jobs in the queue; those the reconcile loop has work with; those it shall take out of the queue.
IN_QUEUE = "phase = 'waiting'"
IN_HAND = "phase IN ('starting', 'running', 'releasing')"
TO_BE_CANCELLED = "phase = 'waiting' AND cancel_requested_at IS NOT NULL"
HOLDING = "reservation IS NOT NULL"
FINISHED = "phase = 'done'"
KEYED = "idempotency_key IS NOT NULL"

NOBODY = ""  # the lease owner of a job that nobody holds

jobs = Table(
    "jobs",
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
    Column("stage", STRING, nullable=False),
    Column("phase", STRING, nullable=False),
    Column("message", STRING),
    Column("created_at", INSTANT, nullable=False),
    Column("initiator_type", STRING, nullable=False),
    Column("initiator_id", STRING, nullable=False),
    Column("initiator_name", STRING),
    Column("attempt", Integer, nullable=False),
    Column("failure_count", Integer, nullable=False),
    Column("failure_class", STRING),
    Column("exit_code", Integer),
    Column("started_at", INSTANT),
    Column("finished_at", INSTANT),
    Column("cancel_requested_at", INSTANT),
    Column("not_before", INSTANT),
    Column("executor", STRING),
    Column("handle", STRING),  # JSON
    Column("reservation", STRING),  # JSON
    Column("flavor", STRING, nullable=False),
    Column("version", Integer, nullable=False),  # counts the changes; numbers the history
    Column("lease_owner", STRING, nullable=False),
    Column("idempotency_key", STRING),
    Column("cancel_reason", STRING),  # NULL: somebody asked for it
    Column("price_micro_usd", BigInteger, nullable=False, server_default="0"),  # per minute
    Column("cost_micro_usd", BigInteger, nullable=False, server_default="0"),  # of the attempts that are over
    Column("reserved_micro_usd", BigInteger, nullable=False, server_default="0"),  # what it may still cost
    sqlite_autoincrement=True,  # a deleted job's number is never given again
)
Index("ix_jobs_newest", jobs.c.namespace, jobs.c.seq)
Index("ix_jobs_stage", jobs.c.namespace, jobs.c.stage, jobs.c.seq)
Index(
    "ix_jobs_queue",
    jobs.c.flavor,
    jobs.c.seq,
    jobs.c.not_before,
    jobs.c.cancel_requested_at,
    jobs.c.phase,  # always the same; without it SQLite would look up each row to see that
    sqlite_where=text(IN_QUEUE),
    postgresql_where=text(IN_QUEUE),
)
Index(
    "ix_jobs_in_hand",
    jobs.c.lease_owner,
    jobs.c.executor,
    jobs.c.seq,
    sqlite_where=text(IN_HAND),
    postgresql_where=text(IN_HAND),
)
Index(
    "ix_jobs_to_be_cancelled",
    jobs.c.lease_owner,
    jobs.c.seq,
    sqlite_where=text(TO_BE_CANCELLED),
    postgresql_where=text(TO_BE_CANCELLED),
)
Index("ix_jobs_holding", jobs.c.executor, sqlite_where=text(HOLDING), postgresql_where=text(HOLDING))
Index("ix_jobs_finished", jobs.c.finished_at, sqlite_where=text(FINISHED), postgresql_where=text(FINISHED))
Index(
    "ix_jobs_idempotency",
    jobs.c.namespace,
    jobs.c.idempotency_key,
    unique=True,
    sqlite_where=text(KEYED),
    postgresql_where=text(KEYED),
)

job_history = Table(
    "job_history",
    metadata,
    Column("seq", BigInteger, ForeignKey(jobs.c.seq, ondelete="CASCADE"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("at", INSTANT, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("stage", STRING, nullable=False),
    Column("phase", STRING, nullable=False),
    Column("message", STRING),
    Column("failure_class", STRING),
    PrimaryKeyConstraint("seq", "version"),
    sqlite_with_rowid=False,
)

job_secrets = Table(
    "job_secrets",
    metadata,
    Column("seq", SEQUENCE, ForeignKey(jobs.c.seq, ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("sealed", LargeBinary, nullable=False),
)

# When a sandbox was last used: its job's row has an empty id, a pooled one its own, and what is known of it.
sandboxes = Table(
    "sandboxes",
    metadata,
    Column("job_id", STRING, ForeignKey(jobs.c.id, ondelete="CASCADE"), nullable=False),
    Column("id", STRING, nullable=False),
    Column("active_at", INSTANT, nullable=False),
    Column("facts", STRING),  # JSON
    Column("sealed", LargeBinary),
    PrimaryKeyConstraint("job_id", "id"),
)

# One row per job and label, and per job and pair of labels: see `labels`. No foreign key: it would need an index.
job_labels = Table(
    "job_labels",
    metadata,
    Column("digest", LargeBinary, nullable=False),
    Column("stage", STRING, nullable=False),
    Column("seq", BigInteger, nullable=False),
    PrimaryKeyConstraint("digest", "stage", "seq"),
    sqlite_with_rowid=False,
)

# Until when an owner's leases hold. One row for all leases of an owner, so that renewing costs the same for one
# job and for ten thousand. The row of `NOBODY` is long past: its jobs are free.
leases = Table(
    "leases",
    metadata,
    Column("owner", STRING, primary_key=True),
    Column("until", INSTANT, nullable=False),
)

# Users and organizations are one table, and so their names are unique together.
accounts = Table(
    "accounts",
    metadata,
    Column("id", STRING, primary_key=True),
    Column("name", STRING, nullable=False, unique=True),
    Column("kind", STRING, nullable=False),
    Column("full_name", STRING, nullable=False),
    Column("created_at", INSTANT, nullable=False),
    Column("email", STRING),
    Column("is_admin", Boolean(create_constraint=False), nullable=False),
)

memberships = Table(
    "memberships",
    metadata,
    Column("user_id", STRING, ForeignKey(accounts.c.id, ondelete="CASCADE"), nullable=False),
    Column("organization_id", STRING, ForeignKey(accounts.c.id, ondelete="CASCADE"), nullable=False, index=True),
    Column("role", STRING, nullable=False),
    PrimaryKeyConstraint("user_id", "organization_id"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", STRING, primary_key=True),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("user_id", STRING, ForeignKey(accounts.c.id, ondelete="CASCADE"), nullable=False, index=True),
    Column("name", STRING, nullable=False),
    Column("role", STRING, nullable=False),
    Column("created_at", INSTANT, nullable=False),
    Column("hint", STRING, nullable=False),
    Column("expires_at", INSTANT),
    Column("scopes", STRING, nullable=False),  # JSON
)
