"""Cursors of paged lists: opaque to clients, and refused when they were changed or come from another list."""

import base64
import binascii
import hashlib
import hmac
import struct

from runstead.model.errors import Invalid

_MAC_BYTES = 12
_PLACE = struct.Struct(">Q")


def make_cursor(key: bytes, scope: str, place: int) -> str:
    """Return the cursor for the page after `place` in the list `scope`."""
    packed = _PLACE.pack(place)
    return base64.urlsafe_b64encode(packed + _mac(key, scope, packed)).decode()


def read_cursor(key: bytes, scope: str, cursor: str) -> int:
    """Return the place. Raises Invalid for anything that `make_cursor` did not make for this list."""
    try:
        data = base64.b64decode(cursor.encode("ascii"), b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    packed, mac = data[: _PLACE.size], data[_PLACE.size :]
    if len(packed) != _PLACE.size or not hmac.compare_digest(mac, _mac(key, scope, packed)):
        raise Invalid("not a cursor of this list; begin again without one", "cursor")
    return _PLACE.unpack(packed)[0]


def _mac(key: bytes, scope: str, packed: bytes) -> bytes:
    return hmac.new(key, scope.encode() + b"\0" + packed, hashlib.sha256).digest()[:_MAC_BYTES]
