"""A file of a bucket, to keep. A browser that was interrupted goes on where it was."""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse

from runstead.web.visit import Visit
from runstead.xet.hashes import hash_to_text

_REST = re.compile(r"bytes=(\d{1,19})-(\d{1,19})?", re.ASCII)


async def download(visit: Visit) -> Response:
    """Send a file, or a range of it."""
    found = visit.request.path_params
    _, file = await visit.context.buckets.file(visit.caller, found["namespace"], found["name"], found["path"])
    etag = f'"{hash_to_text(file.file_hash)}"'
    name = file.path.rpartition("/")[2]
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cache-Control": "private, no-cache",
    }
    start, end = 0, file.size
    wanted = _range(visit.request.headers, etag, file.size)
    if wanted is not None:
        start, end = wanted
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    headers["Content-Length"] = str(end - start)
    pieces = visit.context.content.read(file.file_hash, start, end) if start < end else _nothing()
    status = 200 if wanted is None else 206
    return StreamingResponse(_sent(pieces), status, headers, "application/octet-stream")


def _range(headers: Headers, etag: str, size: int) -> tuple[int, int] | None:
    """Return the half-open range that is asked for; all other forms of the header mean the whole file."""
    found = _REST.fullmatch(headers.get("range", ""))
    if found is None or headers.get("if-range", etag) != etag:
        return None
    start, end = int(found[1]), min(int(found[2]) + 1, size) if found[2] else size
    return (start, end) if start < end else None


async def _sent(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    try:
        async for piece in pieces:
            yield piece
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()


async def _nothing() -> AsyncGenerator[bytes]:
    return
    yield b""
