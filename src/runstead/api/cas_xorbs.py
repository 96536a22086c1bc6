"""Xorbs on the wire: grant, put, commit, the older single request, and reading ranges (wire-storage §5.1, §8.2)."""

import secrets
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, cast

from runstead.api.cas_request import CasRequest
from runstead.api.ranges import parse_ranges, resolve_range
from runstead.model.accounts import Permission
from runstead.model.errors import Forbidden, Invalid, NotFound
from runstead.services.content.links import Grant
from runstead.services.content.serving import Opened
from runstead.xet.hashes import hash_from_text
from runstead.xet.xorb import MAX_FOOTER_BYTES, MAX_XORB_BYTES

_MOST_BODY_BYTES = MAX_XORB_BYTES + MAX_FOOTER_BYTES
_MOST_JSON_BYTES = 10_000
_CHECKSUM = "crc64nvme"
_DIRECT_BYTES = 128 * 1024
_BYTES = (b"content-type", b"application/octet-stream")


async def grant(request: CasRequest) -> None:
    """Say where a xorb may be put, 201, or that it is here already, 200."""
    request.caller(Permission.WRITE)
    xorb_hash = hash_from_text(request.parts[1])
    length, checksum = _announced(await request.exchange.json(_MOST_JSON_BYTES))
    if await request.content.xorbs.confirm([xorb_hash]):
        await request.exchange.answer(200)
        return
    expires_at = int(time.time()) + request.content.limits.grant_seconds
    grant_id = request.content.links.grant_id(Grant(xorb_hash, length, checksum, expires_at))
    url = f"{request.cas_url}/grants/{grant_id}"
    await request.exchange.answer_json(201, {"id": grant_id, "method": "PUT", "url": url, "headers": {}})


async def put(request: CasRequest) -> None:
    """Take in the body of a granted xorb; it is stored and proven when this answers."""
    granted = request.content.links.grant(request.parts[0])
    if request.exchange.content_length not in (None, granted.length):
        raise Invalid(f"the body has {request.exchange.content_length} bytes, {granted.length} were announced")
    await _receive(request, granted.xorb_hash, granted.length, granted)
    await request.exchange.answer(200)


async def commit(request: CasRequest) -> None:
    """Confirm a xorb that was put. 404 makes the client put it again."""
    request.caller(Permission.WRITE)
    if not await request.content.xorbs.confirm([hash_from_text(request.parts[1])]):
        raise NotFound(f"no xorb was put under this grant: {request.parts[1]}")
    await request.exchange.answer(200)


async def post(request: CasRequest) -> None:
    """Take in a xorb with a single request, as older clients send it."""
    request.caller(Permission.WRITE)
    xorb_hash = hash_from_text(request.parts[1])
    if (request.exchange.content_length or 0) > _MOST_BODY_BYTES:
        raise Invalid(f"the body of a xorb has at most {_MOST_BODY_BYTES} bytes")
    new = await _receive(request, xorb_hash, _MOST_BODY_BYTES, None)
    await request.exchange.answer_json(200, {"was_inserted": new})


async def _receive(request: CasRequest, xorb_hash: bytes, limit_bytes: int, granted: Grant | None) -> bool:
    """Take in the body, by a thread of its own if it is large and there is one; say whether it was new."""
    xorbs = request.content.xorbs
    length = None if granted is None else granted.length
    checksum = None if granted is None else granted.checksum
    if (request.exchange.content_length or 0) >= _DIRECT_BYTES and xorbs.can_receive_direct:
        with request.exchange.direct_body() as body:
            if body is not None:
                return await xorbs.receive_direct(
                    xorb_hash, body, limit_bytes=limit_bytes, length=length, checksum=checksum
                )
    return await xorbs.receive(
        xorb_hash, request.exchange.body(), limit_bytes=limit_bytes, length=length, checksum=checksum
    )


async def head(request: CasRequest) -> None:
    """Say how long a stored xorb is."""
    request.caller()
    xorb = await request.content.xorbs.get(hash_from_text(request.parts[1]))
    size = xorb.facts.layout.stored_bytes
    await request.exchange.start(200, (_BYTES, (b"content-length", b"%d" % size)))
    await request.exchange.send(b"", more=False)


async def get(request: CasRequest) -> None:
    """Give out ranges of a xorb that a signed URL allows."""
    hash_text, tag = request.parts
    name = f"data/{hash_text}/{tag}"
    opened = await request.content.serving.open(hash_from_text(hash_text), name, request.exchange.query())
    header = request.exchange.header(b"range")
    if header is None:
        raise Forbidden("this URL is for ranges: send a Range header")
    ranges = [resolve_range(wanted, opened.size) for wanted in parse_ranges(header)]
    found = [each for each in ranges if each is not None]
    if not found:
        await request.exchange.answer(416, headers=((b"content-range", b"bytes */%d" % opened.size),))
    elif len(ranges) == 1:
        await _send_one(request, opened, *found[0])
    else:
        await _send_several(request, opened, found)


async def _send_one(request: CasRequest, opened: Opened, start: int, end: int) -> None:
    headers = (
        _BYTES,
        (b"content-length", b"%d" % (end - start)),
        (b"content-range", b"bytes %d-%d/%d" % (start, end - 1, opened.size)),
        (b"accept-ranges", b"bytes"),
    )
    exchange = request.exchange
    pieces = opened.pieces(start, end - 1)
    if exchange.method == "HEAD":
        await exchange.start(206, headers)
        await exchange.send(b"", more=False)
        return
    left = end - start
    async with aclosing(pieces):
        async for piece in pieces:
            if not exchange.started:
                await exchange.start(206, headers)
            left -= len(piece)
            await exchange.send(piece, more=left > 0)


async def _send_several(request: CasRequest, opened: Opened, ranges: Sequence[tuple[int, int]]) -> None:
    """Answer a request for several ranges at once, which clients make only when told to."""
    boundary = secrets.token_hex(16).encode()
    heads = [
        b"\r\n--%s\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes %d-%d/%d\r\n\r\n"
        % (boundary, start, end - 1, opened.size)
        for start, end in ranges
    ]
    tail = b"\r\n--%s--\r\n" % boundary
    length = sum(map(len, heads)) + sum(end - start for start, end in ranges) + len(tail)
    parts = [opened.pieces(start, end - 1) for start, end in ranges]
    exchange = request.exchange
    await exchange.start(
        206,
        (
            (b"content-type", b"multipart/byteranges; boundary=" + boundary),
            (b"content-length", b"%d" % length),
        ),
    )
    for head_, pieces in zip(heads, parts, strict=True):
        await exchange.send(head_)
        async with aclosing(pieces):
            async for piece in pieces:
                await exchange.send(piece)
    await exchange.send(tail, more=False)


def _announced(body: Any) -> tuple[int, int]:
    """Return length and checksum of a request for a grant. Raises NotFound for a checksum of another kind.

    Clients then fall back to the older single request, which needs none.
    """
    fields: dict[str, Any] = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
    length, checksum = fields.get("length"), fields.get("checksum")
    if not isinstance(length, int) or isinstance(length, bool) or not 0 < length <= _MOST_BODY_BYTES:
        raise Invalid(f"should be a number of bytes, at most {_MOST_BODY_BYTES}: {str(length)[:40]}", "length")
    stated: dict[str, Any] = cast("dict[str, Any]", checksum) if isinstance(checksum, dict) else {}
    if stated.get("algo") != _CHECKSUM:
        raise NotFound(f"this store checks {_CHECKSUM} and nothing else: {str(stated.get('algo'))[:40]}")
    value = stated.get("value")
    if not isinstance(value, str) or not value.isascii() or not value.isdigit() or len(value) > 20:
        raise Invalid(f"should be a decimal number of 64 bits: {str(value)[:40]}", "checksum.value")
    if int(value) >= 1 << 64:
        raise Invalid(f"should be a decimal number of 64 bits: {value}", "checksum.value")
    return length, int(value)
