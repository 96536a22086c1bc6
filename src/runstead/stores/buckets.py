"""Buckets and their files in SQL. One class for both databases.

A file is one row, sorted by bucket and path, so a page of a listing, a look at a path and a folder's beginning are
each one step into that order. A batch locks its bucket's row first: batches of one bucket come one after the other,
on either database, and so do the versions that they make of it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    BigInteger,
    Integer,
    Select,
    Table,
    Text,
    bindparam,
    case,
    delete,
    func,
    literal,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import Insert, insert

from runstead.model.accounts import Namespace
from runstead.model.buckets import (
    Batch,
    Bucket,
    BucketFile,
    Change,
    Folder,
    NewFile,
    Op,
    Writer,
    behind,
    behind_folder,
)
from runstead.model.errors import Conflict, NotFound
from runstead.stores.bucket_rows import (
    BUCKET_COLUMNS,
    FILE_COLUMNS,
    below,
    bucket_from,
    bucket_to,
    changes_to,
    file_from,
    file_to,
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
from runstead.stores.database import Database, Row, Transaction, reject_unstorable
from runstead.stores.interface import BucketStore
from runstead.stores.portable import items, one_of, position, text_list, value_list
from runstead.stores.rows import instant_from, instant_to

_MILLISECOND = 1000
"""Clients see instants in milliseconds; the instant of a batch has no more, so that they can name it exactly."""


class SqlBucketStore(BucketStore):
    """Buckets in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, bucket: Bucket) -> Bucket:
        """Store an empty bucket."""
        row = bucket_to(bucket)
        reject_unstorable(row)
        try:
            return bucket_from(await self._database.write(lambda t: t.rows(_ADD, row)[0]))
        except Conflict as error:
            raise Conflict(f"there is a bucket of that name already: {bucket.path}") from error

    async def find(self, namespace: str, name: str) -> Bucket | None:
        """Return the bucket of that name."""
        row = await self._database.read(lambda t: t.row(_NAMED, {"namespace": namespace, "name": name}))
        return None if row is None else bucket_from(row)

    async def page(self, namespace: str, search: str, after: str, limit: int, *, with_private: bool) -> list[Bucket]:
        """Return a page of the buckets of a namespace."""
        pattern = "".join("\\" + each if each in "\\%_" else each for each in search.lower())
        wanted = {
            "namespace": namespace,
            "after": after,
            "pattern": f"%{pattern}%",
            "limit": limit,
            "with_private": with_private,
        }
        return [bucket_from(row) for row in await self._database.read(lambda t: t.rows(_PAGE, wanted))]

    async def set_private(self, bucket_id: str, private: bool) -> bool:
        """Set who may see the bucket."""
        change = {"which": bucket_id, "private": private}
        return await self._database.write(lambda t: t.run(_SET_PRIVATE, change)) > 0

    async def move(self, bucket_id: str, namespace: Namespace, name: str) -> bool:
        """Rename the bucket."""
        change = {
            "which": bucket_id,
            "namespace_id": namespace.id,
            "namespace": namespace.name,
            "namespace_kind": namespace.kind.value,
            "name": name,
        }
        try:
            return await self._database.write(lambda t: t.run(_MOVE, change)) > 0
        except Conflict as error:
            raise Conflict(f"there is a bucket of that name already: {namespace.name}/{name}") from error

    async def delete(self, bucket_id: str, at: datetime) -> bool:
        """Mark the bucket deleted."""
        change = {"which": bucket_id, "deleted_at": instant_to(at)}
        return await self._database.write(lambda t: t.run(_DELETE, change)) > 0

    async def deleted(self, namespace: str, name: str) -> list[Bucket]:
        """Return the deleted buckets of that name."""
        named = {"namespace": namespace, "name": name}
        return [bucket_from(row) for row in await self._database.read(lambda t: t.rows(_DELETED, named))]

    async def undelete(self, bucket_id: str) -> bool:
        """Take the mark off again."""
        try:
            return await self._database.write(lambda t: t.run(_UNDELETE, {"which": bucket_id})) > 0
        except Conflict as error:
            raise Conflict(f"another bucket has its name now; move that one first: {bucket_id}") from error

    async def files(self, bucket: int, paths: Collection[str]) -> list[BucketFile]:
        """Return the files with these paths."""
        wanted = {"bucket": bucket, "paths": text_list(paths)}
        return sorted(map(file_from, await self._database.read(lambda t: t.rows(_FILES, wanted))), key=_path)

    async def find_file(self, namespace: str, name: str, path: str) -> tuple[Bucket, BucketFile | None] | None:
        """Return a bucket with one of its files."""
        wanted = {"namespace": namespace, "name": name, "path": path}
        row = await self._database.read(lambda t: t.row(_NAMED_WITH_FILE, wanted))
        if row is None:
            return None
        file = row[len(BUCKET_COLUMNS) :]
        return bucket_from(row), None if file[0] is None else file_from(file)

    async def tree(self, bucket: int, prefix: str, start: str, limit: int) -> list[BucketFile]:
        """Return files at or below a prefix."""
        rows = await self._database.read(lambda t: _at_or_below(t, _from_here, bucket, prefix, start, limit))
        return [file_from(row) for row in rows]

    async def level(self, bucket: int, prefix: str, start: str, limit: int) -> list[BucketFile | Folder]:
        """Return files and folders of one level."""
        rows = await self._database.read(
            lambda t: _at_or_below(t, _of_level, bucket, prefix, start, limit), consistent=True
        )
        skip = len(below(prefix)[0])
        return [_entry(row, skip) for row in rows]

    async def apply(
        self, bucket: int, edits: Mapping[str, NewFile | None], at: datetime, writer: Writer | None = None
    ) -> Batch:
        """Make paths what they shall be."""
        paths = text_list(edits)

        def work(transaction: Transaction) -> Batch:
            locked = transaction.row(_LOCK, {"seq": bucket})
            if locked is None:
                raise NotFound("the bucket was deleted meanwhile")
            version, updated_at = locked[0] + 1, _instant_after(locked[1], instant_to(at))
            present = {row[0]: row for row in transaction.rows(_FILES, {"bucket": bucket, "paths": paths})}
            changes = [change for path, file in edits.items() if (change := _change(path, file, present.get(path)))]
            if not changes:
                return Batch(locked[0], instant_from(locked[1]), ())
            _write(transaction, bucket, present, changes, version, updated_at)
            if writer is not None:
                _note_outputs(transaction, bucket, changes, writer)
            return Batch(version, instant_from(updated_at), tuple(changes))

        return await self._database.write(work)


def _instant_after(last: int, now: int) -> int:
    """Return the present, or the next instant if the last batch was not before; in whole milliseconds."""
    return max(now // _MILLISECOND, last // _MILLISECOND + 1) * _MILLISECOND


def _path(file: BucketFile) -> str:
    return file.path


def _at_or_below(
    transaction: Transaction, rest: "_Rest", bucket: int, prefix: str, start: str, limit: int
) -> list[Row]:
    """Return rows of what is below a prefix, after that of a file that has the prefix itself as its path."""
    first, end = below(prefix)
    rows: list[Row] = []
    if prefix and start <= prefix:
        rows = transaction.rows(_FILES, {"bucket": bucket, "paths": text_list([prefix])})
    if len(rows) < limit:
        wanted = {
            "bucket": bucket,
            "start": max(first, start),
            "end": end,
            "limit": limit - len(rows),
            "name_at": len(first) + 1,
        }
        rows += rest(transaction, wanted)
    return rows


_Rest = Callable[[Transaction, dict[str, Any]], list[Row]]


def _from_here(transaction: Transaction, wanted: dict[str, Any]) -> list[Row]:
    return transaction.rows(_TREE, wanted)


def _of_level(transaction: Transaction, wanted: dict[str, Any]) -> list[Row]:
    paths = [row[0] for row in transaction.rows(_LEVEL, wanted) if row[0] is not None]
    found = transaction.rows(_FILES, {"bucket": wanted["bucket"], "paths": text_list(paths)}) if paths else []
    return sorted(found, key=itemgetter(0))


def _entry(row: Row, skip: int) -> BucketFile | Folder:
    slash = row[0].find("/", skip)
    return file_from(row) if slash < 0 else Folder(row[0][:slash], instant_from(row[4]))


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
    if replaced:
        paths = text_list(row[0] for row in replaced)
        transaction.run(_KEEP, {"bucket": bucket, "paths": paths, "version": version, "replaced_at": at})
    if len(added) < len(changes):
        paths = text_list(change.path for change in changes if change.file is None)
        transaction.run(_REMOVE, {"bucket": bucket, "paths": paths})
    rows = [file_to(bucket, change.path, change.file, at) for change in changes if change.file is not None]
    if transaction.takes_lists and rows:
        transaction.run(_PUT_ALL, _lists(bucket_files, rows))
    else:
        transaction.run_many(_PUT, rows)
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
        transaction.run(_PUT_ALL_OUTPUTS, _lists(job_outputs, rows))
    else:
        transaction.run_many(_PUT_OUTPUT, rows)


def _lists(table: Table, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {column.name: value_list(column, [row[column.name] for row in rows]) for column in table.c}


def _binds(*names: str) -> dict[str, Any]:
    return {name: bindparam(name) for name in names}


_LIVE, _GONE = text(LIVE), text(DELETED)
_which = buckets.c.id == bindparam("which")

_ADD = (
    insert(buckets)
    .values(_binds(*(name for name in buckets.c.keys() if name not in ("seq", "deleted_at"))))  # noqa: SIM118
    .returning(*BUCKET_COLUMNS)
)
_by_name = (buckets.c.namespace == bindparam("namespace"), buckets.c.name == bindparam("name"))
_NAMED = select(*BUCKET_COLUMNS).where(*_by_name, _LIVE)
_NAMED_WITH_FILE = (
    select(*BUCKET_COLUMNS, *FILE_COLUMNS)
    .outerjoin(bucket_files, (bucket_files.c.bucket == buckets.c.seq) & (bucket_files.c.path == bindparam("path")))
    .where(*_by_name, _LIVE)
)
_PAGE = (
    select(*BUCKET_COLUMNS)
    .where(buckets.c.namespace == bindparam("namespace"), buckets.c.name > bindparam("after"), _LIVE)
    .where(func.lower(buckets.c.name).like(bindparam("pattern"), escape="\\"))
    .where(or_(bindparam("with_private", type_=buckets.c.private.type) == true(), buckets.c.private != true()))
    .order_by(buckets.c.name)
    .limit(bindparam("limit"))
)
_DELETED = select(*BUCKET_COLUMNS).where(*_by_name, _GONE).order_by(buckets.c.deleted_at.desc())
_SET_PRIVATE = update(buckets).where(_which, _LIVE).values(_binds("private"))
_MOVE = update(buckets).where(_which, _LIVE).values(_binds("namespace_id", "namespace", "namespace_kind", "name"))
_DELETE = update(buckets).where(_which, _LIVE).values(_binds("deleted_at"))
_UNDELETE = update(buckets).where(_which, _GONE).values(deleted_at=None)

_LOCK = (
    update(buckets)
    .where(buckets.c.seq == bindparam("seq"), _LIVE)
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

_of_bucket = bucket_files.c.bucket == bindparam("bucket")
_FILES = select(*FILE_COLUMNS).where(_of_bucket, one_of(bucket_files.c.path, "paths"))


def _put(new: Insert, table: Table) -> Insert:
    key = table.primary_key.columns
    return new.on_conflict_do_update(
        index_elements=list(key),
        set_={column.name: new.excluded[column.name] for column in table.c if column not in set(key)},
    )


def _put_one(table: Table) -> Insert:
    """Return the statement that puts a row in the place of one with its key."""
    return _put(insert(table).values(_binds(*table.c.keys())), table)


def _put_all(table: Table) -> Insert:
    """Return the same for lists, one per column."""
    return _put(insert(table).from_select(list(table.c), select(*(items(c, c.name) for c in table.c))), table)


_PUT, _PUT_ALL = _put_one(bucket_files), _put_all(bucket_files)
_PUT_OUTPUT, _PUT_ALL_OUTPUTS = _put_one(job_outputs), _put_all(job_outputs)
_DROP_OUTPUTS = delete(job_outputs).where(
    job_outputs.c.job_id == bindparam("job_id"),
    job_outputs.c.bucket == bindparam("bucket"),
    one_of(job_outputs.c.path, "paths"),
)
_REMOVE = delete(bucket_files).where(_of_bucket, one_of(bucket_files.c.path, "paths"))
_KEEP = insert(bucket_history).from_select(
    ["bucket", *(column.name for column in FILE_COLUMNS), "version", "replaced_at"],
    select(
        bucket_files.c.bucket,
        *FILE_COLUMNS,
        bindparam("version", type_=BigInteger),
        bindparam("replaced_at", type_=BigInteger),
    ).where(_of_bucket, one_of(bucket_files.c.path, "paths")),
)
_LOG = insert(bucket_batches).values(_binds(*bucket_batches.c.keys()))

_TREE = (
    select(*FILE_COLUMNS)
    .where(_of_bucket, bucket_files.c.path >= bindparam("start"), bucket_files.c.path < bindparam("end"))
    .order_by(bucket_files.c.path)
    .limit(bindparam("limit"))
)


def _first_from(place: Any) -> Any:
    """Return the first path at or behind a place."""
    file = bucket_files.alias()
    return (
        select(file.c.path)
        .where(file.c.bucket == bindparam("bucket"), file.c.path >= place, file.c.path < bindparam("end"))
        .order_by(file.c.path)
        .limit(1)
        .scalar_subquery()
    )


def _level() -> Select[Any]:
    """Return the statement that walks one level: from each path to the first behind it, or behind its folder."""
    walk = select(_first_from(bindparam("start", type_=Text)).label("path"), literal(1, Integer).label("number")).cte(
        "walk", recursive=True
    )
    name_at = bindparam("name_at", type_=Integer)
    slash = position(func.substr(walk.c.path, name_at), literal("/"))
    following = case(
        (slash > 0, func.substr(walk.c.path, 1, name_at + slash - 2).concat(behind_folder(""))),
        else_=walk.c.path.concat(behind("")),
    )
    walk = walk.union_all(
        select(_first_from(following), walk.c.number + 1).where(
            walk.c.path.is_not(None), walk.c.number < bindparam("limit", type_=Integer)
        )
    )
    return select(walk.c.path)


_LEVEL = _level()
