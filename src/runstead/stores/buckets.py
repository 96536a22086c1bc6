"""Buckets and their files in SQL. One class for both databases.

A file is one row, sorted by bucket and path, so a page of a listing, a look at a path and a folder's beginning are
each one step into that order. Batches are written by `bucket_writing`.
"""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    Integer,
    Select,
    Text,
    bindparam,
    case,
    func,
    literal,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from runstead.model.accounts import Namespace
from runstead.model.buckets import (
    Batch,
    Bucket,
    BucketFile,
    Folder,
    NewFile,
    Writer,
    behind,
    behind_folder,
)
from runstead.model.errors import Conflict
from runstead.stores.bucket_rows import (
    BUCKET_COLUMNS,
    FILE_COLUMNS,
    below,
    bucket_from,
    bucket_to,
    file_from,
)
from runstead.stores.bucket_tables import (
    DELETED,
    LIVE,
    bucket_files,
    buckets,
)
from runstead.stores.bucket_writing import write_batch
from runstead.stores.database import Database, Row, Transaction, reject_unstorable
from runstead.stores.interface import BucketStore
from runstead.stores.portable import one_of, position, text_list
from runstead.stores.rows import instant_from, instant_to


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
        return await self._database.write(lambda t: write_batch(t, bucket, edits, paths, at, writer))


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

_of_bucket = bucket_files.c.bucket == bindparam("bucket")
_FILES = select(*FILE_COLUMNS).where(_of_bucket, one_of(bucket_files.c.path, "paths"))


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
