"""Cursors of paged lists: opaque to clients, and refused when they were changed or come from another list.

A place is a number or a text; which of the two, the list knows that made the cursor.
"""

import base64
import binascii
import hashlib
import hmac
import struct

from runstead.model.errors import Invalid

_MAC_BYTES = 12
_NUMBER = struct.Struct(">Q")


def make_cursor(key: bytes, scope: str, place: int | str) -> str:
    """Return the cursor for the page after `place` in the list `scope`."""
    packed = _NUMBER.pack(place) if isinstance(place, int) else place.encode()
    return base64.urlsafe_b64encode(packed + _mac(key, scope, packed)).decode()


def read_cursor(key: bytes, scope: str, cursor: str) -> int:
    """Return the number. Raises Invalid for anything that `make_cursor` did not make for this list."""
    packed = _open(key, scope, cursor)
    if len(packed) != _NUMBER.size:
        raise _foreign()
    return _NUMBER.unpack(packed)[0]


def read_text_cursor(key: bytes, scope: str, cursor: str) -> str:
    """Return the text. Raises Invalid as `read_cursor` does."""
    return _open(key, scope, cursor).decode()


def _open(key: bytes, scope: str, cursor: str) -> bytes:
    try:
        data = base64.b64decode(cursor.encode("ascii"), b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    packed, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
    if len(mac) != _MAC_BYTES or not hmac.compare_digest(mac, _mac(key, scope, packed)):
        raise _foreign()
    return packed


def _foreign() -> Invalid:
    return Invalid("not a cursor of this list; begin again without one", "cursor")


def _mac(key: bytes, scope: str, packed: bytes) -> bytes:
    return hmac.new(key, scope.encode("utf-8", "surrogatepass") + b"\0" + packed, hashlib.sha256).digest()[:_MAC_BYTES]
