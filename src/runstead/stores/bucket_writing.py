"""A batch of a bucket in SQL: what there was goes into the history, what shall be takes its place, the log tells.

A batch locks its bucket's row first: batches of one bucket come one after the other, on either database, and so do
the versions that they make of it. Files are looked up by their paths; PostgreSQL finds each of them again by its
place (`bucket_places`), where SQLite has the page at hand.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Table, bindparam, delete, select, text, update
from sqlalchemy.dialects.postgresql import Insert, insert

from runstead.model.buckets import Batch, Change, NewFile, Op, Writer
from runstead.model.errors import NotFound
from runstead.stores import bucket_places
from runstead.stores.bucket_rows import FILE_COLUMNS, changes_to, file_to
from runstead.stores.bucket_tables import LIVE, bucket_batches, bucket_files, buckets, job_outputs
from runstead.stores.database import Row, Transaction
from runstead.stores.portable import items, list_of_rows, one_of, text_list
from runstead.stores.rows import instant_from, instant_to

_MILLISECOND = 1000
"""Clients see instants in milliseconds; the instant of a batch has no more, so that they can name it exactly."""


def write_batch(
    transaction: Transaction,
    bucket: int,
    edits: Mapping[str, NewFile | None],
    paths: str,
    at: datetime,
    writer: Writer | None,
) -> Batch:
    """Make paths what they shall be, `paths` being all of them as `text_list` lists them. See `BucketStore.apply`."""
    locked = transaction.row(_LOCK, {"seq": bucket})
    if locked is None:
        raise NotFound("the bucket was deleted meanwhile")
    version, updated_at = locked[0] + 1, _instant_after(locked[1], instant_to(at))
    statement = bucket_places.PRESENT if transaction.takes_lists else _PRESENT
    present = {row[0]: row for row in transaction.rows(statement, {"bucket": bucket, "paths": paths})}
    changes = [change for path, file in edits.items() if (change := _change(path, file, present.get(path)))]
    if not changes:
        return Batch(locked[0], instant_from(locked[1]), ())
    _write(transaction, bucket, present, changes, version, updated_at)
    if writer is not None:
        _note_outputs(transaction, bucket, changes, writer)
    return Batch(version, instant_from(updated_at), tuple(changes))


def _instant_after(last: int, now: int) -> int:
    """Return the present, or the next instant if the last batch was not before; in whole milliseconds."""
    return max(now // _MILLISECOND, last // _MILLISECOND + 1) * _MILLISECOND


def _change(path: str, file: NewFile | None, present: Row | None) -> Change | None:
    if present is None:
        return None if file is None else Change(path, Op.ADD, file)
    if file is None:
        return Change(path, Op.DELETE, None)
    return None if _is(present, file) else Change(path, Op.UPDATE, file)


def _is(row: Row, file: NewFile) -> bool:
    """Say whether a row of `FILE_COLUMNS` has this file, without making one of it: batches do it a thousand times."""
    return (
        row[1] == file.file_hash
        and row[2] == file.size
        and row[3] == instant_to(file.mtime)
        and row[5] == file.content_type
    )


def _write(
    transaction: Transaction, bucket: int, present: Mapping[str, Row], changes: list[Change], version: int, at: int
) -> None:
    replaced = [present[change.path] for change in changes if change.op is not Op.ADD]
    added = [change.file for change in changes if change.file is not None]
    rows = [file_to(bucket, change.path, change.file, at) for change in changes if change.file is not None]
    if transaction.takes_lists:
        bucket_places.write(transaction, present, changes, rows, version, at)
    else:
        _write_by_path(transaction, bucket, replaced, changes, rows, version, at)
    transaction.run(
        _UPDATE,
        {
            "seq": bucket,
            "version": version,
            "updated_at": at,
            "more_bytes": sum(file.size for file in added) - sum(row[2] for row in replaced),
            "more_files": len(added) - len(replaced),
        },
    )
    transaction.run(_LOG, {"bucket": bucket, "version": version, "at": at, "changes": changes_to(changes)})


def _write_by_path(
    transaction: Transaction,
    bucket: int,
    replaced: Iterable[Row],
    changes: Iterable[Change],
    rows: Sequence[Mapping[str, Any]],
    version: int,
    at: int,
) -> None:
    former = [row[0] for row in replaced]
    if former:
        keep = {"bucket": bucket, "paths": text_list(former), "version": version, "replaced_at": at}
        transaction.run(_KEEP, keep)
    gone = [change.path for change in changes if change.file is None]
    if gone:
        transaction.run(_REMOVE, {"bucket": bucket, "paths": text_list(gone)})
    transaction.run_many(_PUT, rows)


def _note_outputs(transaction: Transaction, bucket: int, changes: list[Change], writer: Writer) -> None:
    which = {"job_id": writer.job_id, "bucket": bucket}
    gone = [change.path for change in changes if change.file is None]
    if gone:
        transaction.run(_DROP_OUTPUTS, which | {"paths": text_list(gone)})
    rows = [
        which | {"path": c.path, "file_hash": c.file.file_hash, "size": c.file.size, "attempt": writer.attempt}
        for c in changes
        if c.file is not None
    ]
    if transaction.takes_lists and rows:
        transaction.run(_PUT_ALL_OUTPUTS, list_of_rows(job_outputs, rows))
    else:
        transaction.run_many(_PUT_OUTPUT, rows)


def _binds(table: Table) -> dict[str, Any]:
    return {column.name: bindparam(column.name) for column in table.c}


_LOCK = (
    update(buckets)
    .where(buckets.c.seq == bindparam("seq"), text(LIVE))
    .values(version=buckets.c.version)
    .returning(buckets.c.version, buckets.c.updated_at)
)
_UPDATE = (
    update(buckets)
    .where(buckets.c.seq == bindparam("seq"))
    .values(
        version=bindparam("version"),
        updated_at=bindparam("updated_at"),
        size=buckets.c.size + bindparam("more_bytes", type_=BigInteger),
        total_files=buckets.c.total_files + bindparam("more_files", type_=BigInteger),
    )
)
_LOG = insert(bucket_batches).values(_binds(bucket_batches))


def _put(new: Insert, table: Table) -> Insert:
    key = table.primary_key.columns
    return new.on_conflict_do_update(
        index_elements=list(key),
        set_={column.name: new.excluded[column.name] for column in table.c if column not in set(key)},
    )


_these = bucket_files.c.bucket == bindparam("bucket"), one_of(bucket_files.c.path, "paths")
_PRESENT = select(*FILE_COLUMNS).where(*_these)
_KEEP = bucket_places.keep(*_these)
_REMOVE = delete(bucket_files).where(*_these)
_PUT = _put(insert(bucket_files).values(_binds(bucket_files)), bucket_files)

_PUT_OUTPUT = _put(insert(job_outputs).values(_binds(job_outputs)), job_outputs)
_PUT_ALL_OUTPUTS = _put(
    insert(job_outputs).from_select(list(job_outputs.c), select(*(items(c, c.name) for c in job_outputs.c))),
    job_outputs,
)
_DROP_OUTPUTS = delete(job_outputs).where(
    job_outputs.c.job_id == bindparam("job_id"),
    job_outputs.c.bucket == bindparam("bucket"),
    one_of(job_outputs.c.path, "paths"),
)
