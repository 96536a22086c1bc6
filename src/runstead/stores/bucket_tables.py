"""The tables of buckets. Instants as in `tables`; hashes are 32 bytes."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    text,
)

from runstead.stores.content_tables import metadata
from runstead.stores.tables import INSTANT, SEQUENCE, STRING

LIVE = "deleted_at IS NULL"
DELETED = "deleted_at IS NOT NULL"

buckets = Table(
    "buckets",
    metadata,
    Column("seq", SEQUENCE, primary_key=True),
    Column("id", STRING, nullable=False, unique=True),
    Column("namespace_id", STRING, nullable=False),
    Column("namespace", STRING, nullable=False),
    Column("namespace_kind", STRING, nullable=False),
    Column("name", STRING, nullable=False),
    Column("private", Boolean(create_constraint=False), nullable=False),
    Column("created_at", INSTANT, nullable=False),
    Column("updated_at", INSTANT, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("total_files", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),  # counts the batches that changed a file
    Column("resource_group_id", STRING),
    Column("region", STRING),
    Column("deleted_at", INSTANT),
    sqlite_autoincrement=True,  # what is left of a bucket in other tables never becomes another's
)
Index(
    "ix_buckets_live",
    buckets.c.namespace,
    buckets.c.name,
    unique=True,
    sqlite_where=text(LIVE),
    postgresql_where=text(LIVE),
)
Index(
    "ix_buckets_deleted",
    buckets.c.deleted_at,
    sqlite_where=text(DELETED),
    postgresql_where=text(DELETED),
)

# No foreign keys to `buckets` here and below: a bucket's rows are deleted long after it, a few at a time.
bucket_files = Table(
    "bucket_files",
    metadata,
    Column("bucket", BigInteger, nullable=False),
    Column("path", STRING, nullable=False),
    Column("file_hash", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("mtime", INSTANT, nullable=False),
    Column("uploaded_at", INSTANT, nullable=False),
    Column("content_type", STRING),
    PrimaryKeyConstraint("bucket", "path"),
    sqlite_with_rowid=False,
    postgresql_with={"fillfactor": 85},  # an overwritten row stays in its page, and the index as it is
)

# What paths were: from `uploaded_at` until `replaced_at`, which grows with the version. In the order in which it comes
# about: a batch anywhere in a bucket writes one place here, and there is no other index to be written anywhere.
bucket_history = Table(
    "bucket_history",
    metadata,
    Column("bucket", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),  # of the batch that replaced it
    Column("path", STRING, nullable=False),
    Column("file_hash", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("mtime", INSTANT, nullable=False),
    Column("uploaded_at", INSTANT, nullable=False),
    Column("content_type", STRING),
    Column("replaced_at", INSTANT, nullable=False),
    PrimaryKeyConstraint("bucket", "version", "path"),
    sqlite_with_rowid=False,
)

# What jobs wrote to their volumes: each path as the job left it, whatever became of it later.
job_outputs = Table(
    "job_outputs",
    metadata,
    Column("job_id", STRING, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("bucket", BigInteger, nullable=False),
    Column("path", STRING, nullable=False),
    Column("file_hash", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    PrimaryKeyConstraint("job_id", "bucket", "path"),
    sqlite_with_rowid=False,
)

# The event log: one row per batch, its changes in one text.
bucket_batches = Table(
    "bucket_batches",
    metadata,
    Column("bucket", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("at", INSTANT, nullable=False),
    Column("changes", STRING, nullable=False),  # JSON
    PrimaryKeyConstraint("bucket", "version"),
)
Index("ix_bucket_batches_at", bucket_batches.c.at)
Index("ix_bucket_batches_since", bucket_batches.c.bucket, bucket_batches.c.at)
