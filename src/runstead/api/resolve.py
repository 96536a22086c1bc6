"""Plain reads of files: `/buckets/{namespace}/{name}/resolve/{path}` (wire-storage §11)."""

import mimetypes
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated
from urllib.parse import quote

from fastapi import Path, Request
from fastapi.responses import Response, StreamingResponse

from runstead.api.auth import BucketCallerOf
from runstead.api.buckets import bucket_api_url
from runstead.api.conditions import http_date, is_unchanged, range_counts
from runstead.api.context import context
from runstead.api.errors import error_response
from runstead.api.ranges import parse_ranges, resolve_range
from runstead.api.raw_path import path_tail
from runstead.model.buckets import Bucket, BucketFile
from runstead.model.errors import Invalid
from runstead.xet.hashes import hash_to_text

Namespace = Annotated[str, Path(max_length=200)]
Name = Annotated[str, Path(max_length=200)]

_SEGMENTS = 4  # buckets, the namespace, the name, resolve
_SENT_WHOLE_BYTES = 1 << 20


async def resolve(request: Request, namespace: Namespace, name: Name, caller: BucketCallerOf) -> Response:
    """Return a file or a range of it; to a HEAD, where its content is to be had."""
    bucket, file = await context(request).buckets.file(caller, namespace, name, path_tail(request, _SEGMENTS))
    headers = _headers(request, bucket, file)
    etag = headers["ETag"]
    if is_unchanged(request.headers, etag, file.uploaded_at):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        return Response(headers=headers | {"Content-Length": str(file.size)})
    wanted = _wanted(request) if range_counts(request.headers, etag, file.uploaded_at) else None
    if wanted is None:
        return await _content(request, file, 0, file.size, 200, headers)
    found = resolve_range(wanted, file.size)
    if found is None:
        message = f"the file has {file.size} bytes, and none in this range: {request.headers['range'][:100]}"
        return error_response(416, "RangeNotSatisfiable", message, {"Content-Range": f"bytes */{file.size}"})
    start, end = found
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    return await _content(request, file, start, end, 206, headers)


def _wanted(request: Request) -> tuple[int | None, int | None] | None:
    """Return the one range that is asked for; a header that is not understood, or names several, is as none."""
    header = request.headers.get("range")
    if header is None:
        return None
    try:
        ranges = parse_ranges(header)
    except Invalid:
        return None
    return ranges[0] if len(ranges) == 1 else None


async def _content(
    request: Request, file: BucketFile, start: int, end: int, status: int, headers: dict[str, str]
) -> Response:
    headers["Content-Length"] = str(end - start)
    if start == end:
        return Response(status_code=status, headers=headers)
    pieces = context(request).content.read(file.file_hash, start, end)
    if end - start <= _SENT_WHOLE_BYTES:
        return Response(b"".join([piece async for piece in pieces]), status, headers)
    first = await anext(pieces)  # what is damaged at once is an error, not half a file
    return StreamingResponse(_following(first, pieces), status, headers)


async def _following(first: bytes, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    try:
        yield first
        async for piece in pieces:
            yield piece
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()


def _headers(request: Request, bucket: Bucket, file: BucketFile) -> dict[str, str]:
    text = hash_to_text(file.file_hash)
    name = file.path.rpartition("/")[2]
    return {
        "X-Xet-Hash": text,
        "X-Linked-Size": str(file.size),
        "X-Linked-Etag": f'"{text}"',
        "Link": f'<{bucket_api_url(request, bucket)}/xet-read-token>; rel="xet-auth"',
        "ETag": f'"{text}"',
        "Last-Modified": http_date(file.uploaded_at),
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache" if bucket.private else "no-cache",
        "Content-Type": file.content_type or mimetypes.guess_type(name)[0] or "application/octet-stream",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(name, safe='')}; filename=\"{_ascii(name)}\"",
        # Whoever wrote the file chose its type: a page in it must not run with the rights of this origin.
        "Content-Security-Policy": "sandbox",
        "X-Content-Type-Options": "nosniff",
    }


def _ascii(name: str) -> str:
    return "".join(c if " " <= c <= "~" and c not in '"\\' else "_" for c in name)
