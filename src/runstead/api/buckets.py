"""The routes under `/api/buckets` (wire-storage §10, §13)."""

import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import Path, Query, Request
from fastapi.responses import JSONResponse, Response

from runstead.api import bucket_wire as wire
from runstead.api.auth import BucketCallerOf, CallerOf, MaybeCallerOf
from runstead.api.context import base_url, context
from runstead.api.cursor import make_cursor, read_cursor, read_text_cursor
from runstead.api.raw_path import path_tail
from runstead.api.sse import EventStream
from runstead.model.accounts import Permission
from runstead.model.buckets import Batch, Bucket
from runstead.model.errors import Conflict, Invalid, RepoNotFound, TooLarge, Unsupported
from runstead.services.buckets.access import ME
from runstead.services.buckets.batches import MOST_OPERATIONS, Operation
from runstead.services.buckets.following import Ready, Reconnect, Reset, Told

Namespace = Annotated[str, Path(max_length=200)]
Name = Annotated[str, Path(max_length=200)]
Cursor = Annotated[str | None, Query(max_length=2_000)]

_TREE_SEGMENTS = 5  # api, buckets, the namespace, the name, tree
_CHANGES_PER_EVENT = 1000


async def create(
    request: Request, namespace: Namespace, name: Name, caller: CallerOf, body: wire.BucketCreate
) -> Response:
    """Make a bucket; one of that name that is there already is named in the refusal."""
    try:
        bucket = await context(request).buckets.create(
            caller,
            namespace,
            name,
            private=body.is_private,
            resource_group_id=body.resourceGroupId,
            region=body.region,
        )
    except Conflict as error:
        owner = caller.user.name if namespace == ME else namespace
        there = {"error": error.message, "url": _url(request, f"{owner}/{name}")}
        return JSONResponse(there, 409, {"X-Error-Code": Conflict.__name__, "X-Error-Message": error.message})
    return JSONResponse({"url": _url(request, bucket.path)} | wire.bucket_json(bucket))


async def page(
    request: Request,
    namespace: Namespace,
    caller: MaybeCallerOf,
    search: Annotated[str, Query(max_length=200)] = "",
    cursor: Cursor = None,
) -> Response:
    """List the buckets of a namespace by name."""
    found = context(request)
    after = "" if cursor is None else read_text_cursor(found.cursor_key, _list_scope(namespace), cursor)
    buckets, following = await found.buckets.page(caller, namespace, search, after)
    headers: dict[str, str] = {}
    if following is not None:
        query = {"search": search} if search else {}
        query["cursor"] = make_cursor(found.cursor_key, _list_scope(namespace), following)
        headers["Link"] = f'<{base_url(request)}/api/buckets/{quote(namespace)}?{urlencode(query)}>; rel="next"'
    return JSONResponse([wire.bucket_json(bucket) for bucket in buckets], headers=headers)


async def nameless(namespace: Namespace) -> Response:
    """Answer to whoever leaves out the namespace of a bucket."""
    raise RepoNotFound(f"a bucket is named namespace/name, not {namespace[:200]}")


async def inspect(request: Request, namespace: Namespace, name: Name, caller: BucketCallerOf) -> Response:
    """Return a bucket."""
    return JSONResponse(wire.bucket_json(await context(request).buckets.get(caller, namespace, name)))


async def settings(
    request: Request, namespace: Namespace, name: Name, caller: CallerOf, body: wire.BucketSettings
) -> Response:
    """Set who may see a bucket."""
    bucket = await context(request).buckets.set_private(caller, namespace, name, body.is_private)
    return JSONResponse(wire.bucket_json(bucket))


async def delete(request: Request, namespace: Namespace, name: Name, caller: CallerOf) -> dict[str, Any]:
    """Delete a bucket."""
    await context(request).buckets.delete(caller, namespace, name)
    return {}


async def move(request: Request, caller: CallerOf, body: wire.Move) -> Response:
    """Rename a bucket."""
    if body.type != "bucket":
        raise Unsupported(f"this version of Runstead does not have repositories: {body.type[:50]!r}")
    bucket = await context(request).buckets.move(caller, _pair(body.fromRepo, "fromRepo"), _pair(body.toRepo, "toRepo"))
    return JSONResponse({"url": _url(request, bucket.path)} | wire.bucket_json(bucket))


async def tree(
    request: Request,
    namespace: Namespace,
    name: Name,
    caller: BucketCallerOf,
    recursive: bool = True,
    limit: Annotated[int | None, Query(ge=1)] = None,
    cursor: Cursor = None,
) -> Response:
    """List files, or the files and folders of one level, at or below the prefix that the path ends with."""
    found = context(request)
    prefix = path_tail(request, _TREE_SEGMENTS)
    scope = f"tree {recursive} {namespace}/{name}/{prefix}"
    start = "" if cursor is None else read_text_cursor(found.cursor_key, scope, cursor)
    entries, following = await found.buckets.entries(
        caller, namespace, name, prefix, recursive=recursive, start=start, limit=limit
    )
    headers: dict[str, str] = {}
    if following is not None:
        query = {"recursive": str(recursive).lower(), "cursor": make_cursor(found.cursor_key, scope, following)}
        if limit is not None:
            query["limit"] = str(limit)
        path = request.scope["raw_path"].decode("ascii")
        headers["Link"] = f'<{base_url(request)}{path}?{urlencode(query)}>; rel="next"'
    return JSONResponse([wire.entry_json(entry) for entry in entries], headers=headers)


async def paths_info(
    request: Request, namespace: Namespace, name: Name, caller: BucketCallerOf, body: wire.PathsInfo
) -> Response:
    """Return the files among these paths."""
    files = await context(request).buckets.files(caller, namespace, name, body.paths)
    return JSONResponse([wire.entry_json(file) for file in files])


async def batch(request: Request, namespace: Namespace, name: Name, caller: BucketCallerOf) -> Response:
    """Add, copy and delete files."""
    found = context(request)
    await found.buckets.get(caller, namespace, name, Permission.WRITE)  # before reading what they have to say
    result = await found.batches.apply(caller, namespace, name, await _operations(request))
    failed_whole = bool(result.refused) and len(result.refused) == result.processed
    return JSONResponse(wire.result_json(result), 422 if failed_whole else 200)


async def read_token(request: Request, namespace: Namespace, name: Name, caller: BucketCallerOf) -> Response:
    """Return a token that reads the bucket's content."""
    token = await context(request).buckets.token(caller, namespace, name, Permission.READ, base_url(request))
    return JSONResponse(wire.token_json(token), headers=wire.token_headers(token))


async def write_token(request: Request, namespace: Namespace, name: Name, caller: BucketCallerOf) -> Response:
    """Return a token that uploads content for the bucket."""
    token = await context(request).buckets.token(caller, namespace, name, Permission.WRITE, base_url(request))
    return JSONResponse(wire.token_json(token), headers=wire.token_headers(token))


async def events(
    request: Request,
    namespace: Namespace,
    name: Name,
    caller: BucketCallerOf,
    cursor: Cursor = None,
    since: Annotated[str | None, Query(max_length=100)] = None,
) -> Response:
    """Stream changes: those after a cursor or an instant first, then as they happen."""
    found = context(request)
    bucket = await found.buckets.get(caller, namespace, name)
    scope = f"events {bucket.id}"
    point = None if since is None else _instant(since)
    resume = point if cursor is None else read_cursor(found.cursor_key, scope, cursor)

    async def blocks() -> AsyncGenerator[bytes | None]:
        async for told in found.following.follow(bucket, resume):
            yield None if told is None else _encode(told, found.cursor_key, scope)

    return EventStream(blocks())


def _encode(told: Told, key: bytes, scope: str) -> bytes:
    match told:
        case Ready():
            return _event("ready", {"cursor": make_cursor(key, scope, told.version)})
        case Batch():
            return b"".join(
                _event("changes", wire.changes_json(told, told.changes[at : at + _CHANGES_PER_EVENT], cursor))
                for at, cursor in _pieces(told, key, scope)
            )
        case Reconnect():
            return _event("reconnect", {"cursor": make_cursor(key, scope, told.version)})
        case Reset():
            return _event("reset", {"reason": "this point is too long ago"})
        case None:
            return b""


def _pieces(told: Batch, key: bytes, scope: str) -> list[tuple[int, str]]:
    """Return where each event of a batch begins, and its cursor: only the last one leads behind the batch."""
    starts = range(0, len(told.changes), _CHANGES_PER_EVENT)
    before, behind = (make_cursor(key, scope, version) for version in (told.version - 1, told.version))
    return [(at, behind if at == starts[-1] else before) for at in starts]


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode("ascii")


async def _operations(request: Request) -> list[Operation]:
    """Read the lines of a batch as they arrive."""
    operations: list[Operation] = []
    number, rest = 0, b""
    async for data in request.stream():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            number += 1
            _add(operations, line, number)
    _add(operations, rest, number + 1)
    return operations


def _add(operations: list[Operation], line: bytes, number: int) -> None:
    if line.strip():
        if len(operations) == MOST_OPERATIONS:
            raise TooLarge(f"a batch has at most {MOST_OPERATIONS} operations")
        operations.append(wire.operation_from(line, number))


def _instant(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Invalid(f"not an ISO 8601 time: {text!r}", "since") from error


def _pair(path: str, field: str) -> tuple[str, str]:
    namespace, separator, name = path.partition("/")
    if not separator or not namespace or not name or "/" in name:
        raise Invalid(f"should be namespace/name, not {path[:200]!r}", field)
    return namespace, name


def _list_scope(namespace: str) -> str:
    return f"buckets {namespace}"


def _url(request: Request, path: str) -> str:
    """Return where people see the bucket; it must have the host that the client knows this server by."""
    return f"{base_url(request)}/buckets/{path}"


def bucket_api_url(request: Request, bucket: Bucket) -> str:
    """Return the address of a bucket's routes."""
    return f"{base_url(request)}/api/buckets/{bucket.path}"
