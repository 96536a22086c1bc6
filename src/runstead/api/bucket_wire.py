"""The JSON of buckets: what clients send and what they need back (wire-storage §10, §13)."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from runstead.model.buckets import Batch, Bucket, BucketFile, Change, Folder
from runstead.model.content import CasToken
from runstead.model.errors import Invalid
from runstead.services.buckets.batches import AddFile, BatchResult, CopyFile, DeleteFile, Operation, Refused
from runstead.xet.errors import InvalidHash
from runstead.xet.hashes import hash_from_text, hash_to_text

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Years 1 to 9999, with a day to spare on either side for time zones.
_EARLIEST_MS = (datetime(1, 1, 2, tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
_LATEST_MS = (datetime(9999, 12, 30, tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore")


class BucketCreate(_Request):
    """The body of `POST /api/buckets/{namespace}/{name}`."""

    visibility: Literal["public", "private"] | None = None
    private: bool | None = None
    resourceGroupId: Annotated[str, Field(max_length=200)] | None = None  # noqa: N815
    region: Annotated[str, Field(max_length=50)] | None = None

    @property
    def is_private(self) -> bool:
        """Whether a private bucket is asked for; public where nothing is said, as on the Hub."""
        return self.visibility == "private" if self.visibility is not None else bool(self.private)


class BucketSettings(_Request):
    """The body of `PUT /api/buckets/{namespace}/{name}/settings`."""

    private: bool | None = None
    visibility: Literal["public", "private"] | None = None

    @property
    def is_private(self) -> bool:
        """Whether the bucket shall be private. Raises Invalid if the body does not say."""
        if self.private is None and self.visibility is None:
            raise Invalid("the one thing that can be set: true or false", "private")
        return self.private if self.private is not None else self.visibility == "private"


class PathsInfo(_Request):
    """The body of `POST /api/buckets/{namespace}/{name}/paths-info`."""

    paths: list[str]


class Move(_Request):
    """The body of `POST /api/repos/move`."""

    fromRepo: str  # noqa: N815
    toRepo: str  # noqa: N815
    type: str = "model"


def _instant(at: datetime) -> str:
    """Return a UTC time as the clients parse it: with milliseconds, and ending in `Z`."""
    return at.isoformat(timespec="milliseconds")[:-6] + "Z"


def bucket_json(bucket: Bucket) -> dict[str, Any]:
    """Return a bucket as `bucket_info` and `list_buckets` read it."""
    found: dict[str, Any] = {
        "_id": bucket.id,
        "id": bucket.path,
        "author": bucket.namespace.name,
        "private": bucket.private,
        "visibility": "private" if bucket.private else "public",
        "createdAt": _instant(bucket.created_at),
        "updatedAt": _instant(bucket.updated_at),
        "size": bucket.size,
        "totalFiles": bucket.total_files,
    }
    if bucket.resource_group_id is not None:
        found["resourceGroup"] = {"id": bucket.resource_group_id, "name": bucket.resource_group_id}
    if bucket.region is not None:
        found["region"] = bucket.region
    return found


def entry_json(entry: BucketFile | Folder) -> dict[str, Any]:
    """Return an entry of a tree."""
    if isinstance(entry, Folder):
        return {"type": "directory", "path": entry.path, "uploadedAt": _instant(entry.uploaded_at)}
    found: dict[str, Any] = {
        "type": "file",
        "path": entry.path,
        "size": entry.size,
        "xetHash": hash_to_text(entry.file_hash),
        "mtime": _instant(entry.mtime),
        "uploadedAt": _instant(entry.uploaded_at),
    }
    if entry.content_type is not None:
        found["contentType"] = entry.content_type
    return found


def token_json(token: CasToken) -> dict[str, Any]:
    """Return a token for stored content; some clients read the headers, some this, so both are sent."""
    return {"accessToken": token.access_token, "exp": token.expires_at, "casUrl": token.cas_url}


def token_headers(token: CasToken) -> dict[str, str]:
    """Return the same as headers."""
    return {
        "X-Xet-Access-Token": token.access_token,
        "X-Xet-Token-Expiration": str(token.expires_at),
        "X-Xet-Cas-Url": token.cas_url,
    }


def result_json(result: BatchResult) -> dict[str, Any]:
    """Return what became of a batch."""
    return {
        "success": not result.refused,
        "processed": result.processed,
        "succeeded": result.processed - len(result.refused),
        "failed": [{"path": _sendable(one.path), "error": _sendable(one.reason)} for one in result.refused],
    }


def changes_json(batch: Batch, changes: "tuple[Change, ...]", cursor: str) -> dict[str, Any]:
    """Return changes of a batch as a follower reads them."""
    return {"cursor": cursor, "changes": [_change_json(change, batch.at) for change in changes]}


def _change_json(change: Change, at: datetime) -> dict[str, Any]:
    found: dict[str, Any] = {"path": change.path, "op": change.op.value}
    if change.file is not None:
        found |= {
            "size": change.file.size,
            "xetHash": hash_to_text(change.file.file_hash),
            "uploadedAt": _instant(at),
            "mtime": _instant(change.file.mtime),
        }
    return found


def operation_from(line: bytes, number: int) -> Operation:
    """Return the operation in a line of a batch.

    What can be laid to a path becomes a refusal of that path. Raises Invalid, with the line's number, for the rest.
    """
    try:
        value: object = _DECODER.decode(line.decode())
    except (ValueError, RecursionError) as error:
        raise Invalid(f"not valid JSON: {error}", f"line {number}") from error
    if not isinstance(value, dict):
        raise Invalid(f"should be a JSON object, not {line[:50]!r}", f"line {number}")
    given = cast("Mapping[str, Any]", value)
    path, kind = given.get("path"), given.get("type")
    if not isinstance(path, str):
        raise Invalid(f"should be text, not {str(path)[:50]!r}", f"line {number}: path")
    if not path.isascii():
        try:
            path.encode()
        except UnicodeEncodeError:
            return Refused(path, "a path is valid Unicode")
    try:
        match kind:
            case "addFile":
                return AddFile(path, _hash(given), _mtime(given), _content_type(given))
            case "copyFile":
                source = _text(given, "sourceRepoType"), _text(given, "sourceRepoId")
                return CopyFile(path, _hash(given), *source, _mtime(given), _content_type(given))
            case "deleteFile":
                return DeleteFile(path)
            case _:
                raise Invalid(f"should be addFile, copyFile or deleteFile, not {str(kind)[:50]!r}", "type")
    except Invalid as error:
        return Refused(path, error.message)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _hash(given: Mapping[str, Any]) -> bytes:
    try:
        return hash_from_text(_text(given, "xetHash"))
    except InvalidHash as error:
        raise Invalid(str(error), "xetHash") from error


def _text(given: Mapping[str, Any], field: str) -> str:
    value = given.get(field)
    if not isinstance(value, str):
        raise Invalid(f"should be text, not {str(value)[:50]!r}", field)
    return value


def _content_type(given: Mapping[str, Any]) -> str | None:
    return None if given.get("contentType") is None else _text(given, "contentType")


def _mtime(given: Mapping[str, Any]) -> datetime | None:
    value = given.get("mtime")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Invalid(f"should be milliseconds since 1970, not {str(value)[:50]!r}", "mtime")
    if not _EARLIEST_MS <= value <= _LATEST_MS:
        raise Invalid(f"should be in the years 1 to 9999, in milliseconds since 1970, not {value}", "mtime")
    return _EPOCH + timedelta(milliseconds=value)


def _sendable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
