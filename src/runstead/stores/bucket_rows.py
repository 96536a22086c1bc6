"""Buckets and their files as rows, rows as frozen values, and the ranges of paths that stand for folders."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column

from runstead.model.accounts import Namespace, NamespaceKind
from runstead.model.buckets import (
    MAX_PATH_BYTES,
    Batch,
    Bucket,
    BucketFile,
    Change,
    KeptFile,
    NewFile,
    Op,
    Output,
    behind_folder,
)
from runstead.stores.bucket_tables import bucket_files, bucket_history, buckets, job_outputs
from runstead.stores.database import Row
from runstead.stores.rows import instant_from, instant_to, json_to

# What `bucket_from` takes, in its order.
BUCKET_COLUMNS: tuple[Column[Any], ...] = (
    buckets.c.seq,
    buckets.c.id,
    buckets.c.namespace_id,
    buckets.c.namespace,
    buckets.c.namespace_kind,
    buckets.c.name,
    buckets.c.private,
    buckets.c.created_at,
    buckets.c.updated_at,
    buckets.c.size,
    buckets.c.total_files,
    buckets.c.version,
    buckets.c.resource_group_id,
    buckets.c.region,
    buckets.c.deleted_at,
)
# What `file_from` takes, in its order.
FILE_COLUMNS: tuple[Column[Any], ...] = (
    bucket_files.c.path,
    bucket_files.c.file_hash,
    bucket_files.c.size,
    bucket_files.c.mtime,
    bucket_files.c.uploaded_at,
    bucket_files.c.content_type,
)
# What `kept_from` takes, in its order.
KEPT_COLUMNS: tuple[Column[Any], ...] = (
    bucket_history.c.path,
    bucket_history.c.file_hash,
    bucket_history.c.size,
    bucket_history.c.mtime,
    bucket_history.c.uploaded_at,
    bucket_history.c.content_type,
    bucket_history.c.replaced_at,
    bucket_history.c.version,
)

# What `output_from` takes, in its order.
OUTPUT_COLUMNS: tuple[Column[Any], ...] = (
    job_outputs.c.bucket,
    job_outputs.c.path,
    job_outputs.c.file_hash,
    job_outputs.c.size,
    job_outputs.c.attempt,
    buckets.c.namespace,
    buckets.c.name,
)

# Behind every path: none has more than MAX_PATH_BYTES / 4 of this character.
LAST = chr(0x10FFFF) * (MAX_PATH_BYTES // 4 + 1)


def below(prefix: str) -> tuple[str, str]:
    """Return the first place of what is below `prefix`, and the first behind it; an empty prefix is everything."""
    return (prefix + "/", behind_folder(prefix)) if prefix else ("", LAST)


def bucket_from(row: Sequence[Any]) -> Bucket:
    """Return the bucket in a row of `BUCKET_COLUMNS`; further columns are ignored."""
    return Bucket(
        seq=row[0],
        id=row[1],
        namespace=Namespace(row[2], row[3], NamespaceKind(row[4])),
        name=row[5],
        private=bool(row[6]),
        created_at=instant_from(row[7]),
        updated_at=instant_from(row[8]),
        size=row[9],
        total_files=row[10],
        version=row[11],
        resource_group_id=row[12],
        region=row[13],
        deleted_at=None if row[14] is None else instant_from(row[14]),
    )


def bucket_to(bucket: Bucket) -> dict[str, Any]:
    """Return the columns of a bucket about to be stored."""
    return {
        "id": bucket.id,
        "namespace_id": bucket.namespace.id,
        "namespace": bucket.namespace.name,
        "namespace_kind": bucket.namespace.kind.value,
        "name": bucket.name,
        "private": bucket.private,
        "created_at": instant_to(bucket.created_at),
        "updated_at": instant_to(bucket.updated_at),
        "size": 0,
        "total_files": 0,
        "version": 0,
        "resource_group_id": bucket.resource_group_id,
        "region": bucket.region,
    }


def file_from(row: Sequence[Any]) -> BucketFile:
    """Return the file in a row of `FILE_COLUMNS`; further columns are ignored."""
    return BucketFile(row[0], row[1], row[2], instant_from(row[3]), instant_from(row[4]), row[5])


def new_file_from(row: Sequence[Any]) -> NewFile:
    """Return what a row of `FILE_COLUMNS` or `KEPT_COLUMNS` says of the file itself."""
    return NewFile(row[1], row[2], instant_from(row[3]), row[5])


def kept_from(row: Sequence[Any]) -> KeptFile:
    """Return the former file in a row of `KEPT_COLUMNS`."""
    return KeptFile(file_from(row), instant_from(row[6]), row[7])


def output_from(row: Sequence[Any]) -> Output:
    """Return the output in a row of `OUTPUT_COLUMNS`."""
    bucket = None if row[6] is None else f"{row[5]}/{row[6]}"
    return Output(row[0], bucket, row[1], bytes(row[2]), row[3], row[4])


def file_to(bucket: int, path: str, file: NewFile, uploaded_at: int) -> dict[str, Any]:
    """Return the columns of a file."""
    return {
        "bucket": bucket,
        "path": path,
        "file_hash": file.file_hash,
        "size": file.size,
        "mtime": instant_to(file.mtime),
        "uploaded_at": uploaded_at,
        "content_type": file.content_type,
    }


_OPS = tuple(Op)


def changes_to(changes: Sequence[Change]) -> str:
    """Return changes as they are stored: per path its operation and what it became."""
    return json_to(
        [
            [_OPS.index(change.op), change.path]
            if change.file is None
            else [
                _OPS.index(change.op),
                change.path,
                change.file.file_hash.hex(),
                change.file.size,
                instant_to(change.file.mtime),
                change.file.content_type,
            ]
            for change in changes
        ]
    )


def batch_from(row: Row) -> Batch:
    """Return the batch in a row of version, instant and changes."""
    return Batch(row[0], instant_from(row[1]), tuple(_change_from(*each) for each in json.loads(row[2])))


def _change_from(
    op: int, path: str, file_hash: str | None = None, size: int = 0, mtime: int = 0, content_type: str | None = None
) -> Change:
    if file_hash is None:
        return Change(path, _OPS[op], None)
    return Change(path, _OPS[op], NewFile(bytes.fromhex(file_hash), size, instant_from(mtime), content_type))
