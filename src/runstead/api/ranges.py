"""The Range header of HTTP, in bytes."""

import re

from runstead.model.errors import Invalid

_RANGE = re.compile(r"(\d{0,19})-(\d{0,19})", re.ASCII)
_MOST = 1000


def parse_ranges(header: str) -> list[tuple[int | None, int | None]]:
    """Return the first and last byte of each range, as written: None for what is left out.

    Raises Invalid for anything that is not `bytes=` and one or more ranges.
    """
    unit, _, listed = header.partition("=")
    texts = listed.split(",")
    if unit.strip().lower() != "bytes" or len(texts) > _MOST:
        raise Invalid(f"not a range of bytes: {header[:80]!r}", "Range")
    return [_pair(text.strip(), header) for text in texts]


def resolve_range(wanted: tuple[int | None, int | None], size: int) -> tuple[int, int] | None:
    """Return the half-open range that is meant in something of this size; None if it lies outside (416)."""
    first, last = wanted
    if first is None:
        return (max(0, size - (last or 0)), size) if last and size else None
    if first >= size:
        return None
    return first, size if last is None else min(last + 1, size)


def _pair(text: str, header: str) -> tuple[int | None, int | None]:
    found = _RANGE.fullmatch(text)
    if found is None or text == "-":
        raise Invalid(f"not a range of bytes: {header[:80]!r}", "Range")
    first, last = (int(part) if part else None for part in found.groups())
    if first is not None and last is not None and last < first:
        raise Invalid(f"a range ends before it begins: {header[:80]!r}", "Range")
    return first, last
