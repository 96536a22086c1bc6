"""Jobs, their history, labels, secrets and leases; accounts, memberships and tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STRING = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the first tables."""
    _jobs()
    _beside_jobs()
    _accounts()


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("seq", SEQUENCE, nullable=False),
        sa.Column("id", STRING, nullable=False),
        sa.Column("namespace_id", STRING, nullable=False),
        sa.Column("namespace", STRING, nullable=False),
        sa.Column("namespace_kind", STRING, nullable=False),
        sa.Column("created_by_id", STRING, nullable=False),
        sa.Column("created_by", STRING, nullable=False),
        sa.Column("spec", STRING, nullable=False),
        sa.Column("labels", STRING, nullable=False),
        sa.Column("stage", STRING, nullable=False),
        sa.Column("phase", STRING, nullable=False),
        sa.Column("message", STRING),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("initiator_type", STRING, nullable=False),
        sa.Column("initiator_id", STRING, nullable=False),
        sa.Column("initiator_name", STRING),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failure_count", sa.Integer(), nullable=False),
        sa.Column("failure_class", STRING),
        sa.Column("exit_code", sa.Integer()),
        sa.Column("started_at", sa.BigInteger()),
        sa.Column("finished_at", sa.BigInteger()),
        sa.Column("cancel_requested_at", sa.BigInteger()),
        sa.Column("not_before", sa.BigInteger()),
        sa.Column("executor", STRING),
        sa.Column("handle", STRING),
        sa.Column("reservation", STRING),
        sa.Column("flavor", STRING, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("lease_owner", STRING, nullable=False),
        sa.Column("idempotency_key", STRING),
        sa.PrimaryKeyConstraint("seq", name="pk_jobs"),
        sa.UniqueConstraint("id", name="uq_jobs_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_newest", "jobs", ["namespace", "seq"])
    op.create_index("ix_jobs_stage", "jobs", ["namespace", "stage", "seq"])
    _partial_index(
        "ix_jobs_queue", ["flavor", "seq", "not_before", "cancel_requested_at", "phase"], "phase = 'waiting'"
    )
    _partial_index(
        "ix_jobs_in_hand", ["lease_owner", "executor", "seq"], "phase IN ('starting', 'running', 'releasing')"
    )
    _partial_index(
        "ix_jobs_to_be_cancelled",
        ["lease_owner", "seq"],
        "phase = 'waiting' AND cancel_requested_at IS NOT NULL",
    )
    _partial_index("ix_jobs_holding", ["executor"], "reservation IS NOT NULL")
    _partial_index("ix_jobs_finished", ["finished_at"], "phase = 'done'")
    _partial_index("ix_jobs_idempotency", ["namespace", "idempotency_key"], "idempotency_key IS NOT NULL", unique=True)


def _partial_index(name: str, columns: list[str], where: str, unique: bool = False) -> None:
    op.create_index(name, "jobs", columns, unique=unique, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def _beside_jobs() -> None:
    op.create_table(
        "job_history",
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("stage", STRING, nullable=False),
        sa.Column("phase", STRING, nullable=False),
        sa.Column("message", STRING),
        sa.Column("failure_class", STRING),
        sa.PrimaryKeyConstraint("seq", "version", name="pk_job_history"),
        sa.ForeignKeyConstraint(["seq"], ["jobs.seq"], name="fk_job_history_seq", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "job_secrets",
        sa.Column("seq", SEQUENCE, nullable=False, autoincrement=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_job_secrets"),
        sa.ForeignKeyConstraint(["seq"], ["jobs.seq"], name="fk_job_secrets_seq", ondelete="CASCADE"),
    )
    op.create_table(
        "job_labels",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("stage", STRING, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", "stage", "seq", name="pk_job_labels"),
        sqlite_with_rowid=False,
    )
    leases = op.create_table(
        "leases",
        sa.Column("owner", STRING, nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_leases"),
    )
    op.bulk_insert(leases, [{"owner": "", "until": 0}])


def _accounts() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", STRING, nullable=False),
        sa.Column("name", STRING, nullable=False),
        sa.Column("kind", STRING, nullable=False),
        sa.Column("full_name", STRING, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("email", STRING),
        sa.Column("is_admin", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_accounts"),
        sa.UniqueConstraint("name", name="uq_accounts_name"),
    )
    op.create_table(
        "memberships",
        sa.Column("user_id", STRING, nullable=False),
        sa.Column("organization_id", STRING, nullable=False),
        sa.Column("role", STRING, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "organization_id", name="pk_memberships"),
        sa.ForeignKeyConstraint(["user_id"], ["accounts.id"], name="fk_memberships_user_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["accounts.id"], name="fk_memberships_organization_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_memberships_organization_id", "memberships", ["organization_id"])
    op.create_table(
        "tokens",
        sa.Column("id", STRING, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", STRING, nullable=False),
        sa.Column("name", STRING, nullable=False),
        sa.Column("role", STRING, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("hint", STRING, nullable=False),
        sa.Column("expires_at", sa.BigInteger()),
        sa.Column("scopes", STRING, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("digest", name="uq_tokens_digest"),
        sa.ForeignKeyConstraint(["user_id"], ["accounts.id"], name="fk_tokens_user_id", ondelete="CASCADE"),
    )
    op.create_index("ix_tokens_user_id", "tokens", ["user_id"])
