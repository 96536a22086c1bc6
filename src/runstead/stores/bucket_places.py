"""Files of a batch by their place in PostgreSQL's table (`ctid`), where to look them up by path is most of the work.

A place is read and used in one transaction that holds the lock on the bucket's row, without which nobody changes a
file of the bucket: no row moves in between. Should one be missed all the same, nothing is written.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Insert,
    Text,
    any_,
    bindparam,
    cast,
    delete,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import UserDefinedType

from runstead.model.buckets import Change
from runstead.model.errors import BackendFailure
from runstead.stores.bucket_rows import FILE_COLUMNS
from runstead.stores.bucket_tables import bucket_files, bucket_history
from runstead.stores.database import Row, Transaction
from runstead.stores.portable import items, list_of_rows, one_of

_PLACE = len(FILE_COLUMNS)


def write(
    transaction: Transaction,
    present: Mapping[str, Row],
    changes: Sequence[Change],
    rows: Sequence[Mapping[str, Any]],
    version: int,
    at: int,
) -> None:
    """Keep what the changes replace and put the new rows; `present` are rows of `PRESENT` by path."""
    former = [present[change.path] for change in changes if change.path in present]
    if former:
        _exactly(
            len(former), transaction.run(_KEEP, {"places": _places(former), "version": version, "replaced_at": at})
        )
    gone = [present[change.path] for change in changes if change.file is None]
    if gone:
        _exactly(len(gone), transaction.run(_REMOVE, {"places": _places(gone)}))
    new = [row for row in rows if row["path"] not in present]
    if new:
        transaction.run(_ADD, list_of_rows(bucket_files, new))
    other = [row for row in rows if row["path"] in present]
    if other:
        places = _places([present[row["path"]] for row in other])
        _exactly(len(other), transaction.run(_REPLACE, list_of_rows(bucket_files, other) | {"places": places}))


def _places(rows: Sequence[Row]) -> str:
    return "{" + ",".join([f'"{row[_PLACE]}"' for row in rows]) + "}"


def _exactly(wanted: int, touched: int) -> None:
    if touched != wanted:
        raise BackendFailure(f"files of a bucket moved under a batch; send it again: {touched} of {wanted} were found")


class _Place(UserDefinedType[str]):
    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "tid"


def keep(*those: ColumnElement[bool]) -> Insert:
    """Return the statement that puts some files into the history, with `version` and `replaced_at`."""
    return insert(bucket_history).from_select(
        ["bucket", *(column.name for column in FILE_COLUMNS), "version", "replaced_at"],
        select(
            bucket_files.c.bucket,
            *FILE_COLUMNS,
            bindparam("version", type_=BigInteger),
            bindparam("replaced_at", type_=BigInteger),
        ).where(*those),
    )


_place: ColumnElement[str] = literal_column("bucket_files.ctid", _Place())
_listed = cast(bindparam("places", type_=Text), ARRAY(_Place()))
PRESENT = select(*FILE_COLUMNS, _place).where(
    bucket_files.c.bucket == bindparam("bucket"), one_of(bucket_files.c.path, "paths")
)
_there = _place == any_(_listed)
_KEEP = keep(_there)
_REMOVE = delete(bucket_files).where(_there)
_ADD = insert(bucket_files).from_select(
    list(bucket_files.c), select(*(items(column, column.name) for column in bucket_files.c))
)
_new_columns = [column for column in bucket_files.c if column not in set(bucket_files.primary_key.columns)]
_new = select(
    func.unnest(_listed, type_=_Place()).label("place"),
    *(items(column, column.name).label(column.name) for column in _new_columns),
).subquery("new")
_REPLACE = (
    update(bucket_files)
    .where(_place == _new.c.place)
    .values({column.name: _new.c[column.name] for column in _new_columns})
)
