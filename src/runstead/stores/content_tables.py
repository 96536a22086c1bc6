"""The tables of stored content. Hashes are 32 bytes; instants as in `tables`.

Rows say what was proven before they were written, and change in two ways only: `confirmed_at` moves on, and a
xorb that was lost or found damaged is replaced by a new upload. What is counted in bytes per chunk lies behind the
short columns, where both databases keep long values aside, so that going through all rows stays cheap.
"""

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, PrimaryKeyConstraint, Table

from runstead.stores.tables import INSTANT, STRING, metadata

STORED = "stored"
QUARANTINED = "quarantined"  # found damaged: not served, and the next upload replaces it
DOOMED = "doomed"  # its object is being deleted: as good as gone

xorbs = Table(
    "xorbs",
    metadata,
    Column("hash", LargeBinary, primary_key=True),
    Column("state", STRING, nullable=False),
    Column("confirmed_at", INSTANT, nullable=False),  # when a client was last told, by whatever answer, that it is here
    Column("stored_bytes", BigInteger, nullable=False),
    Column("key", STRING, nullable=False, unique=True),  # of its object
    Column("layout", LargeBinary, nullable=False),  # XorbLayout.pack
    Column("checksums", LargeBinary, nullable=False),  # see runstead.services.content.checksums
    Column("chunk_hashes", LargeBinary, nullable=False),
)

files = Table(
    "files",
    metadata,
    Column("hash", LargeBinary, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("confirmed_at", INSTANT, nullable=False),  # when somebody last said that they would refer to it
    Column("sha256", STRING),
    Column("terms", LargeBinary, nullable=False),  # 48 bytes each, as in a shard
)

# Which scope (a bucket, a repository) has proven that it has, or was given, which file.
claims = Table(
    "claims",
    metadata,
    Column("scope", STRING, nullable=False),
    Column("file_hash", LargeBinary, nullable=False),
    PrimaryKeyConstraint("scope", "file_hash"),
    sqlite_with_rowid=False,
)
Index("ix_claims_file_hash", claims.c.file_hash)

# The chunks that a client may ask for, with a xorb and a file they are in.
dedup_chunks = Table(
    "dedup_chunks",
    metadata,
    Column("chunk_hash", LargeBinary, primary_key=True),
    Column("xorb_hash", LargeBinary, nullable=False),
    Column("file_hash", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
Index("ix_dedup_chunks_xorb_hash", dedup_chunks.c.xorb_hash)

# The names this store has in its URL, newest last: clients remember by it what they think is here.
store_ids = Table(
    "store_ids",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("id", STRING, nullable=False),
    Column("since", INSTANT, nullable=False),
)
