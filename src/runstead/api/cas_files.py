"""Files and chunks on the wire: where their bytes are, and whether they are here (wire-storage §7 to §9)."""

import json
from typing import Any, cast

from runstead.api.cas_request import CasRequest
from runstead.api.exchange import JSON
from runstead.api.ranges import parse_ranges
from runstead.model.errors import Invalid, NotFound
from runstead.xet.errors import RangeNotSatisfiable
from runstead.xet.hashes import hash_from_text

_END = 1 << 63
_MOST_FILES = 1000
_MOST_JSON_BYTES = 200_000
_BYTES = (b"content-type", b"application/octet-stream")


async def find_chunk(request: CasRequest) -> None:
    """Answer a deduplication query with a shard, or 404."""
    request.caller()
    answer = await request.content.deduplication.answer(hash_from_text(request.parts[1]))
    if answer is None:
        await request.exchange.answer(404)
    else:
        await request.exchange.answer(200, answer, (_BYTES,))


async def reconstruct_v2(request: CasRequest) -> None:
    """Say where the bytes of a file, or of a range of it, are."""
    await _reconstruct(request, 2)


async def reconstruct_v1(request: CasRequest) -> None:
    """Say the same in the older form."""
    await _reconstruct(request, 1)


async def reconstruct_many(request: CasRequest) -> None:
    """Say where the bytes of several whole files are; those that are not here are left out."""
    scope = request.caller().scope
    body = await request.exchange.json(_MOST_JSON_BYTES)
    files: dict[str, Any] = {}
    fetch_info: dict[str, Any] = {}
    for name in _names(body):
        try:
            file = await request.content.reconstructions.find(hash_from_text(name), scope)
        except NotFound:
            continue
        plan = await request.content.reconstructions.plan(file, None)
        answer = json.loads(await request.content.reconstructions.answer(plan, request.cas_url, 1))
        files[name] = answer["terms"]
        for xorb, infos in answer["fetch_info"].items():
            known = fetch_info.setdefault(xorb, [])
            known += [info for info in infos if info["range"] not in [other["range"] for other in known]]
    await request.exchange.answer_json(200, {"files": files, "fetch_info": fetch_info})


async def reconstruct_together(request: CasRequest) -> None:
    """Say the same so that neighbours are read at once: terms of each file, and `xorbs` for all, as in version 2."""
    scope = request.caller().scope
    hashes = [hash_from_text(name) for name in _names(await request.exchange.json(_MOST_JSON_BYTES))]
    answer = await request.content.reconstructions.answer_many(hashes, scope, request.cas_url)
    await request.exchange.answer(200, answer, JSON)


async def head(request: CasRequest) -> None:
    """Say how long a file is."""
    scope = request.caller().scope
    file = await request.content.reconstructions.find(hash_from_text(request.parts[0]), scope)
    await request.exchange.start(200, (_BYTES, (b"content-length", b"%d" % file.size)))
    await request.exchange.send(b"", more=False)


async def _reconstruct(request: CasRequest, version: int) -> None:
    scope = request.caller().scope
    file = await request.content.reconstructions.find(hash_from_text(request.parts[0]), scope)
    try:
        plan = await request.content.reconstructions.plan(file, _wanted(request, file.size))
    except RangeNotSatisfiable as error:
        headers = (*JSON, (b"content-range", b"bytes */%d" % error.size))
        await request.exchange.answer(416, json.dumps({"error": str(error)}).encode(), headers)
        return
    await request.exchange.answer(
        200, await request.content.reconstructions.answer(plan, request.cas_url, version), JSON
    )


def _wanted(request: CasRequest, size: int) -> tuple[int, int] | None:
    header = request.exchange.header(b"range")
    if header is None:
        return None
    ranges = parse_ranges(header)
    if len(ranges) > 1:
        raise Invalid(f"one range at a time: {header[:80]!r}", "Range")
    first, last = ranges[0]
    if first is None:
        return max(0, size - (last or 0)), size
    return first, _END if last is None else last + 1


def _names(body: Any) -> list[str]:
    if not isinstance(body, list) or len(cast("list[Any]", body)) > _MOST_FILES:
        raise Invalid(f"should be a list of at most {_MOST_FILES} files")
    names: list[str] = []
    for item in cast("list[Any]", body):
        name = cast("dict[str, Any]", item).get("hash") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise Invalid('each file should be {"prefix": ..., "hash": ...}')
        names.append(name)
    return list(dict.fromkeys(names))
