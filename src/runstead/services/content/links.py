"""URLs that carry their own proof: where a granted xorb is put, and where ranges of a xorb are read.

Clients send no token with these (wire-storage §5.1, §8.2). A link to read names a set of ranges; any part of one of
them may be asked for.
"""

import base64
import binascii
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from urllib.parse import quote

from runstead.model.errors import Forbidden, NotFound
from runstead.services.content.keys import derive, is_tag, tag
from runstead.xet.hashes import HASH_BYTES

_GRANT = Struct(f"<{HASH_BYTES}sIQQ")
_TAG_BYTES = 16
RANGES = "X-Xet-Signed-Range"
EXPIRES = "Expires"
SIGNATURE = "Signature"

ByteRange = tuple[int, int]
"""First and last byte, both included."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave to put one body: this xorb, of this length in bytes, with this CRC-64/NVME, until then (unix seconds)."""

    xorb_hash: bytes
    length: int
    checksum: int
    expires_at: int


class Links:
    """Makes such URLs and checks them."""

    def __init__(self, key: bytes, now: Callable[[], float] = time.time) -> None:
        self._grants = derive(key, "grants")
        self._reads = derive(key, "reads")
        self._now = now

    def grant_id(self, grant: Grant) -> str:
        """Return the id that stands for a grant and proves it."""
        packed = _GRANT.pack(grant.xorb_hash, grant.length, grant.checksum, grant.expires_at)
        return base64.urlsafe_b64encode(packed + tag(self._grants, packed)).decode().rstrip("=")

    def grant(self, grant_id: str) -> Grant:
        """Return the grant behind an id. Raises NotFound for what is no id, Forbidden for one that is over."""
        data = _decode(grant_id)
        packed, stated = data[:-_TAG_BYTES], data[-_TAG_BYTES:]
        if len(packed) != _GRANT.size or not is_tag(self._grants, packed, stated):
            raise NotFound("there is no such grant")
        grant = Grant(*_GRANT.unpack(packed))
        if grant.expires_at <= self._now():
            raise Forbidden("this grant has expired; ask for a new one")
        return grant

    def read_query(self, name: str, ranges: Sequence[ByteRange], expires_at: int) -> str:
        """Return the query by which these ranges of what has that name may be read."""
        listed = "bytes=" + ",".join(f"{first}-{last}" for first, last in ranges)
        signature = tag(self._reads, _message(name, listed, str(expires_at))).hex()
        return f"{RANGES}={quote(listed, safe='')}&{EXPIRES}={expires_at}&{SIGNATURE}={signature}"

    def readable(self, name: str, query: Mapping[str, str]) -> list[ByteRange]:
        """Return the ranges that a query allows. Raises Forbidden if it is not ours, not for this, or over."""
        listed, expires = query.get(RANGES, ""), query.get(EXPIRES, "")
        try:
            stated = bytes.fromhex(query.get(SIGNATURE, ""))
        except ValueError:
            stated = b""
        if not is_tag(self._reads, _message(name, listed, expires), stated):
            raise Forbidden("the signature of this URL is wrong")
        if int(expires) <= self._now():
            raise Forbidden("this URL has expired; ask for the reconstruction again")
        return [_range(text) for text in listed.removeprefix("bytes=").split(",")]


def allows(ranges: Sequence[ByteRange], wanted: ByteRange) -> bool:
    """Say whether a range lies within one of those."""
    return any(first <= wanted[0] and wanted[1] <= last for first, last in ranges)


def _range(text: str) -> ByteRange:
    first, _, last = text.partition("-")
    return int(first), int(last)


def _message(name: str, listed: str, expires: str) -> bytes:
    return "\n".join((name, listed, expires)).encode()


def _decode(text: str) -> bytes:
    if len(text) > 2 * (_GRANT.size + _TAG_BYTES):
        return b""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return b""
