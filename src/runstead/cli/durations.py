"""Spans of time as people write them: `30d`, `12h`, `90m`, `2w`."""

import re
from datetime import timedelta

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_duration(text: str) -> timedelta:
    """Return the span. Raises ValueError that says how one is written."""
    match = re.fullmatch(r"\s*([1-9]\d{0,5})\s*([smhdw])\s*", text)
    if not match:
        raise ValueError(f"a span of time is a number with s, m, h, d or w, as in 30d; not {text!r}")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
