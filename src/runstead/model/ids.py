"""Identifiers: 24 lower-case hexadecimal characters, as on the Hub.

The first eight are the creation second, so that ids sort by age at a glance; the other sixteen are random.
They are usable as a DNS label, a file name and an SSH user name.
"""

import re
import secrets
from datetime import datetime

_ID = re.compile(r"[0-9a-f]{24}")


def new_id(now: datetime) -> str:
    """Return a fresh id for something created at `now` (aware)."""
    return f"{int(now.timestamp()) & 0xFFFFFFFF:08x}{secrets.token_hex(8)}"


def is_id(text: str) -> bool:
    """Say whether `text` has the form of an id; anything else cannot exist and never reaches a store."""
    return _ID.fullmatch(text) is not None
