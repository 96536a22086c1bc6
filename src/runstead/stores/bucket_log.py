"""What happened in buckets, in SQL: the event log and the history of files. One class for both databases."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Table, Text, and_, bindparam, delete, func, or_, select, text, tuple_

from runstead.model.buckets import Batch, Bucket, KeptFile, NewFile, Output, behind
from runstead.stores.bucket_rows import (
    BUCKET_COLUMNS,
    FILE_COLUMNS,
    KEPT_COLUMNS,
    OUTPUT_COLUMNS,
    batch_from,
    below,
    bucket_from,
    kept_from,
    new_file_from,
    output_from,
)
from runstead.stores.bucket_tables import (
    DELETED,
    LIVE,
    bucket_batches,
    bucket_files,
    bucket_history,
    buckets,
    job_outputs,
)
from runstead.stores.database import Database, Row, Transaction
from runstead.stores.interface import BucketLog
from runstead.stores.rows import instant_to

_MILLISECOND = timedelta(milliseconds=1) // timedelta(microseconds=1)


class SqlBucketLog(BucketLog):
    """The log and the history in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def batches(self, bucket: int, after: int, limit: int) -> list[Batch]:
        """Return batches behind a version."""
        wanted = {"bucket": bucket, "after": after, "limit": limit}
        return [batch_from(row) for row in await self._database.read(lambda t: t.rows(_BATCHES, wanted))]

    async def reach(self, bucket: int) -> tuple[int, int] | None:
        """Return the versions between which one can go on."""
        row = await self._database.read(lambda t: t.row(_REACH, {"bucket": bucket}))
        return None if row is None else (row[0], row[0] if row[2] is None else row[2] - 1)

    async def version_at(self, bucket: int, at: datetime) -> int | None:
        """Return a version from which nothing later than the instant is missed."""
        since = instant_to(at) // _MILLISECOND * _MILLISECOND

        def work(transaction: Transaction) -> int | None:
            row = transaction.row(_REACH, {"bucket": bucket})
            if row is None:
                return None
            version, updated_at, oldest = row
            if oldest is None:
                return version if version == 0 or since >= updated_at // _MILLISECOND * _MILLISECOND else None
            first = transaction.row(_FIRST_SINCE, {"bucket": bucket, "since": since})
            if first is None:
                return version
            # What was forgotten is older than the oldest batch, and no later than the instant if that one is not.
            oldest_at = transaction.rows(_AT, {"bucket": bucket, "version": oldest})[0][0]
            known = oldest == 1 or oldest_at // _MILLISECOND * _MILLISECOND <= since
            return first[0] - 1 if known else None

        return await self._database.read(work, consistent=True)

    async def kept(self, bucket: int, prefix: str, after: tuple[str, int], limit: int) -> list[KeptFile]:
        """Return former files at or below a prefix."""
        wanted = {"bucket": bucket, "after_path": after[0], "after_version": after[1], "limit": limit}
        return [kept_from(row) for row in await self._database.read(lambda t: t.rows(_KEPT, wanted | _range(prefix)))]

    async def differences(
        self, bucket: int, prefix: str, at: datetime, start: str, limit: int
    ) -> tuple[dict[str, NewFile | None], str | None]:
        """Compare files with what they were."""
        wanted = {"bucket": bucket, "place": start, "at": instant_to(at), "limit": limit, **_range(prefix)}

        def work(transaction: Transaction) -> tuple[list[Row], list[Row]]:
            since = {"since": _first_version_after(transaction, bucket, instant_to(at))}
            return transaction.rows(_FILES_FROM, wanted), transaction.rows(_KEPT_AT, wanted | since)

        files, kept = await self._database.read(work, consistent=True)
        # Where one of the two lists was cut, nothing is known of the other one's paths behind it.
        last = min((rows[-1][0] for rows in (files, kept) if len(rows) == limit), default=None)
        now = {row[0]: new_file_from(row) for row in files}
        then = {row[0]: new_file_from(row) for row in kept}
        edits: dict[str, NewFile | None] = {
            row[0]: None for row in files if row[4] > wanted["at"] and row[0] not in then
        }
        edits |= {path: file for path, file in then.items() if now.get(path) != file}
        if last is not None:
            edits = {path: file for path, file in edits.items() if path <= last}
        return edits, None if last is None else behind(last)

    async def outputs(self, job_id: str, after: tuple[int, str], limit: int) -> list[Output]:
        """Return files that a job wrote."""
        wanted = {"job_id": job_id, "after_bucket": after[0], "after_path": after[1], "limit": limit}
        return [output_from(row) for row in await self._database.read(lambda t: t.rows(_OUTPUTS, wanted))]

    async def forget_kept(self, before: datetime, limit: int) -> int:
        """Delete old rows of the history."""

        def work(transaction: Transaction) -> int:
            found = transaction.row(_WITH_OLD_KEPT, {"before": instant_to(before)})
            if found is None:
                return 0
            oldest = transaction.rows(_OLDEST_KEPT, {"bucket": found[0], "limit": limit})
            old = [row for row in oldest if row[2] < instant_to(before)]
            if not old:
                return 0  # another server was faster
            return transaction.run(_FORGET_KEPT, {"bucket": found[0], "version": old[-1][0], "path": old[-1][1]})

        return await self._database.write(work)

    async def forget_batches(self, before: datetime, limit: int) -> int:
        """Delete old rows of the event log."""
        wanted = {"before": instant_to(before), "limit": limit}
        return await self._database.write(lambda t: t.run(_FORGET_BATCHES, wanted))

    async def empty_deleted(self, before: datetime, limit: int) -> tuple[Bucket, bool] | None:
        """Delete rows of a deleted bucket: its files first, then what they were, then its batches."""

        def work(transaction: Transaction) -> tuple[Bucket, bool] | None:
            row = transaction.row(_LONGEST_DELETED, {"before": instant_to(before)})
            if row is None:
                return None
            bucket, left = bucket_from(row), limit
            for statement in _EMPTY:
                left -= transaction.run(statement, {"bucket": bucket.seq, "limit": left})
                if left <= 0:
                    return bucket, False
            return bucket, True

        return await self._database.write(work)

    async def remove_deleted(self, bucket_id: str) -> None:
        """Delete the bucket's row."""
        await self._database.write(lambda t: t.run(_REMOVE, {"id": bucket_id}))

    async def hashes(self, after: tuple[int, str], limit: int) -> tuple[list[bytes], tuple[int, str] | None]:
        """Return hashes of files."""
        wanted = {"bucket": after[0], "path": after[1], "limit": limit}
        rows = await self._database.read(lambda t: t.rows(_HASHES, wanted))
        return [row[0] for row in rows], (rows[-1][1], rows[-1][2]) if len(rows) == limit else None

    async def kept_hashes(
        self, after: tuple[int, int, str], limit: int
    ) -> tuple[list[bytes], tuple[int, int, str] | None]:
        """Return hashes of former files."""
        wanted = {"bucket": after[0], "version": after[1], "path": after[2], "limit": limit}
        rows = await self._database.read(lambda t: t.rows(_KEPT_HASHES, wanted))
        return [row[0] for row in rows], (rows[-1][1], rows[-1][2], rows[-1][3]) if len(rows) == limit else None


def _first_version_after(transaction: Transaction, bucket: int, at: int) -> int:
    """Return a version before which the history has nothing that was replaced after the instant.

    Nothing is sorted by instants, but they grow with the versions: this halves what is between the first and the last.
    """
    low, high = 0, transaction.rows(_LAST_KEPT, {"bucket": bucket})[0][0] or 0
    while low < high:
        middle = (low + high) // 2
        [(version, replaced_at)] = transaction.rows(_FIRST_KEPT, {"bucket": bucket, "from": middle})
        if replaced_at > at:
            high = middle
        else:
            low = version + 1
    return low


def _range(prefix: str) -> dict[str, Any]:
    first, end = below(prefix)
    return {"prefix": prefix, "first": first, "end": end}


def _oldest(table: Table, *condition: Any) -> Any:
    """Return a statement that deletes the first rows that meet a condition, up to a limit, by their keys."""
    key = tuple_(*table.primary_key.columns)
    some = select(*table.primary_key.columns).where(*condition).limit(bindparam("limit"))
    return delete(table).where(key.in_(some))


_of_bucket = bucket_batches.c.bucket == bindparam("bucket")
_BATCHES = (
    select(bucket_batches.c.version, bucket_batches.c.at, bucket_batches.c.changes)
    .where(_of_bucket, bucket_batches.c.version > bindparam("after"))
    .order_by(bucket_batches.c.version)
    .limit(bindparam("limit"))
)
_REACH = select(
    buckets.c.version,
    buckets.c.updated_at,
    select(func.min(bucket_batches.c.version)).where(bucket_batches.c.bucket == buckets.c.seq).scalar_subquery(),
).where(buckets.c.seq == bindparam("bucket"), text(LIVE))
_FIRST_SINCE = (
    select(bucket_batches.c.version)
    .where(_of_bucket, bucket_batches.c.at >= bindparam("since"))
    .order_by(bucket_batches.c.at)
    .limit(1)
)
_AT = select(bucket_batches.c.at).where(_of_bucket, bucket_batches.c.version == bindparam("version"))

_kept_of_bucket = bucket_history.c.bucket == bindparam("bucket")


def _in_range(table: Table) -> Any:
    path = table.c.path
    return or_(path == bindparam("prefix"), and_(path >= bindparam("first"), path < bindparam("end")))


_KEPT = (
    select(*KEPT_COLUMNS)
    .where(_kept_of_bucket, _in_range(bucket_history))
    .where(
        tuple_(bucket_history.c.path, bucket_history.c.version)
        > tuple_(bindparam("after_path", type_=Text), bindparam("after_version", type_=BigInteger))
    )
    .order_by(bucket_history.c.path, bucket_history.c.version)
    .limit(bindparam("limit"))
)
_OUTPUTS = (
    select(*OUTPUT_COLUMNS)
    .outerjoin(buckets, buckets.c.seq == job_outputs.c.bucket)
    .where(job_outputs.c.job_id == bindparam("job_id"))
    .where(
        tuple_(job_outputs.c.bucket, job_outputs.c.path)
        > tuple_(bindparam("after_bucket", type_=BigInteger), bindparam("after_path", type_=Text))
    )
    .order_by(job_outputs.c.bucket, job_outputs.c.path)
    .limit(bindparam("limit"))
)
_FILES_FROM = (
    select(*FILE_COLUMNS)
    .where(bucket_files.c.bucket == bindparam("bucket"), bucket_files.c.path >= bindparam("place"))
    .where(_in_range(bucket_files))
    .order_by(bucket_files.c.path)
    .limit(bindparam("limit"))
)
_LAST_KEPT = select(func.max(bucket_history.c.version)).where(_kept_of_bucket)
_FIRST_KEPT = (
    select(bucket_history.c.version, bucket_history.c.replaced_at)
    .where(_kept_of_bucket, bucket_history.c.version >= bindparam("from"))
    .order_by(bucket_history.c.version)
    .limit(1)
)
_KEPT_AT = (
    select(*KEPT_COLUMNS)
    .where(_kept_of_bucket, bucket_history.c.version >= bindparam("since"))
    .where(bucket_history.c.path >= bindparam("place"), _in_range(bucket_history))
    .where(bucket_history.c.uploaded_at <= bindparam("at"), bucket_history.c.replaced_at > bindparam("at"))
    .order_by(bucket_history.c.path)
    .limit(bindparam("limit"))
)
_first_replaced_at = (
    select(bucket_history.c.replaced_at)
    .where(bucket_history.c.bucket == buckets.c.seq)
    .order_by(bucket_history.c.version)
    .limit(1)
    .correlate(buckets)
    .scalar_subquery()
)
_WITH_OLD_KEPT = select(buckets.c.seq).where(_first_replaced_at < bindparam("before")).limit(1)
_OLDEST_KEPT = (
    select(bucket_history.c.version, bucket_history.c.path, bucket_history.c.replaced_at)
    .where(_kept_of_bucket)
    .order_by(bucket_history.c.version, bucket_history.c.path)
    .limit(bindparam("limit"))
)
_FORGET_KEPT = delete(bucket_history).where(
    _kept_of_bucket,
    tuple_(bucket_history.c.version, bucket_history.c.path)
    <= tuple_(bindparam("version", type_=BigInteger), bindparam("path", type_=Text)),
)
_FORGET_BATCHES = _oldest(bucket_batches, bucket_batches.c.at < bindparam("before"))

_LONGEST_DELETED = (
    select(*BUCKET_COLUMNS)
    .where(text(DELETED), buckets.c.deleted_at < bindparam("before"))
    .order_by(buckets.c.deleted_at)
    .limit(1)
)
_EMPTY = (
    _oldest(bucket_files, bucket_files.c.bucket == bindparam("bucket")),
    _oldest(bucket_history, bucket_history.c.bucket == bindparam("bucket")),
    _oldest(bucket_batches, bucket_batches.c.bucket == bindparam("bucket")),
)
_REMOVE = delete(buckets).where(buckets.c.id == bindparam("id"), text(DELETED))

_HASHES = (
    select(bucket_files.c.file_hash, bucket_files.c.bucket, bucket_files.c.path)
    .where(
        tuple_(bucket_files.c.bucket, bucket_files.c.path)
        > tuple_(bindparam("bucket", type_=BigInteger), bindparam("path", type_=Text))
    )
    .order_by(bucket_files.c.bucket, bucket_files.c.path)
    .limit(bindparam("limit"))
)
_KEPT_HASHES = (
    select(bucket_history.c.file_hash, bucket_history.c.bucket, bucket_history.c.version, bucket_history.c.path)
    .where(
        tuple_(bucket_history.c.bucket, bucket_history.c.version, bucket_history.c.path)
        > tuple_(
            bindparam("bucket", type_=BigInteger),
            bindparam("version", type_=BigInteger),
            bindparam("path", type_=Text),
        )
    )
    .order_by(bucket_history.c.bucket, bucket_history.c.version, bucket_history.c.path)
    .limit(bindparam("limit"))
)
