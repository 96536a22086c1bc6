"""Files of a sandbox."""

import re

from runstead.model.errors import Invalid
from runstead.sandbox import wire
from runstead.sandbox.exchange import Exchange
from runstead.services.sandboxes.sandboxes import Room

_READ_BYTES = 1 << 20
_WRITE_BYTES = 1 << 20
_PAGE = 10_000
_LARGEST_PAGE = 50_000
_MODE = re.compile(r"(?:0o?)?([0-7]{1,4})")


async def read(exchange: Exchange, room: Room) -> None:
    """Send a file, or a range of it."""
    path = _path(exchange)
    offset, length = exchange.number("offset") or 0, exchange.number("length")
    file = await room.inside.open_file(path)
    try:
        left = max(await file.size() - offset, 0)
        if length is not None:
            left = min(left, length)
        await exchange.start(
            [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % left)],
        )
        while left:
            data = await file.read(offset, min(left, _READ_BYTES))
            if not data:
                break  # it became shorter meanwhile: the connection is cut, for the length was announced
            offset += len(data)
            left -= len(data)
            await exchange.send(data, more=left > 0)
            if not left:
                return
        await exchange.send(b"", more=False)
    finally:
        await file.close()


async def write(exchange: Exchange, room: Room) -> None:
    """Replace a file, or write a range of it. Ranges come in any order and at the same time."""
    path = _path(exchange)
    offset, size = exchange.number("offset"), exchange.number("truncate_to")
    parents = exchange.query("mkdir") not in ("0", "false")
    file = await room.inside.open_file(
        path, write=True, mode=_mode(exchange.query("mode")), parents=parents, replace=offset is None
    )
    written = 0
    try:
        if size is not None:
            await file.truncate(size)
        pieces: list[bytes] = []
        held = 0
        async for data in exchange.body():
            pieces.append(data)
            held += len(data)
            if held >= _WRITE_BYTES:
                await file.write((offset or 0) + written, b"".join(pieces))
                written += held
                pieces, held = [], 0
        if pieces:
            await file.write((offset or 0) + written, b"".join(pieces))
            written += held
    except BaseException:
        await file.close()
        raise
    await file.close()
    await exchange.answer_json({"path": path, "size": written})


async def stat(exchange: Exchange, room: Room) -> None:
    """Describe one name."""
    await exchange.answer_json(wire.entry_json(await room.inside.stat(_path(exchange))))


async def listing(exchange: Exchange, room: Room) -> None:
    """List a folder, a page at a time."""
    limit = exchange.number("limit") or _PAGE
    if limit > _LARGEST_PAGE:
        raise Invalid(f"at most {_LARGEST_PAGE}, not {limit}", "limit")
    entries = await room.inside.list_folder(_path(exchange), exchange.query("after") or None, limit + 1)
    shown = entries[:limit]
    more = len(entries) > limit
    await exchange.answer_json(
        {
            "entries": [wire.entry_json(entry) for entry in shown],
            "truncated": more,
            "next": shown[-1].name if more else None,
        }
    )


async def delete(exchange: Exchange, room: Room) -> None:
    """Remove one name."""
    path = _path(exchange)
    await room.inside.delete(path, recursive=exchange.query("recursive") in ("1", "true"))
    await exchange.answer_json({"deleted": path})


async def make_folder(exchange: Exchange, room: Room) -> None:
    """Make a folder and its parents."""
    path = _path(exchange)
    await room.inside.make_folder(path)
    await exchange.answer_json({"created": path})


def _path(exchange: Exchange) -> str:
    path = exchange.query("path")
    if not path:
        raise Invalid("is missing: the file or folder that is meant", "path")
    if "\0" in path:
        raise Invalid("contains a NUL character, which no path has", "path")
    return path


def _mode(text: str | None) -> int | None:
    if not text:
        return None
    found = _MODE.fullmatch(text)
    if found is None:
        raise Invalid(f"should be permission bits in octal, like 644, not {text[:20]!r}", "mode")
    return int(found[1], 8)
