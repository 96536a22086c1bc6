"""Amounts of bytes as people write them: `16 GB` is 16·10⁹, `16 GiB` is 16·2³⁰.

A bare `16 G` is refused: half of the world's tools read it the one way and half the other.
"""

import re

_UNITS = {
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KIB": 1024,
    "MIB": 1024**2,
    "GIB": 1024**3,
    "TIB": 1024**4,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
SPELLING = 'a number of bytes, or a number with kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB, as in "16 GB"'


def parse_size(text: str) -> int:
    """Return the number of bytes `text` stands for. Raises ValueError that says how sizes are written."""
    match = _SIZE.fullmatch(text)
    unit = match[2].upper() or "B" if match else ""
    if not match or unit not in _UNITS:
        raise ValueError(f"should be {SPELLING}")
    return round(float(match[1]) * _UNITS[unit]) if "." in match[1] else int(match[1]) * _UNITS[unit]


def format_size(count: int) -> str:
    """Return the shortest exact spelling in the largest unit that divides `count`, else plain bytes."""
    units = [("TB", 1000**4), ("TiB", 1024**4), ("GB", 1000**3), ("GiB", 1024**3)]
    units += [("MB", 1000**2), ("MiB", 1024**2), ("kB", 1000), ("KiB", 1024)]
    for name, factor in units:
        if count and count % factor == 0:
            return f"{count // factor} {name}"
    return f"{count} B"
