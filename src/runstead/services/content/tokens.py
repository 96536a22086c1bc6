"""Tokens of the content store: opaque to clients, and true without being stored (wire-storage §4)."""

import base64
import binascii
import time
from dataclasses import dataclass
from struct import Struct

from runstead.model.accounts import Permission
from runstead.model.errors import Forbidden, Unauthenticated
from runstead.services.content.keys import derive, is_tag, tag

_PREFIX = "xet1."
_HEAD = Struct("<BQ")
_TAG_BYTES = 16
_LONGEST = 2000


@dataclass(frozen=True, slots=True)
class CasCaller:
    """Who a token speaks for: a scope, and whether it may also be uploaded for."""

    scope: str
    permission: Permission

    def require_write(self) -> None:
        """Raise Forbidden if this may only read."""
        if self.permission is not Permission.WRITE:
            raise Forbidden("this token of the content store may only read; ask for a write token")


class CasTokens:
    """Makes tokens and recognizes them."""

    def __init__(self, key: bytes) -> None:
        self._key = derive(key, "tokens")

    def mint(self, caller: CasCaller, expires_at: int) -> str:
        """Return a token that holds until `expires_at`, in unix seconds."""
        head = _HEAD.pack(caller.permission is Permission.WRITE, expires_at) + caller.scope.encode()
        return _PREFIX + _encode(head + tag(self._key, head))

    def recognize(self, token: str | None) -> CasCaller:
        """Return who a token speaks for. Raises Unauthenticated if it is missing, foreign or expired."""
        if not token:
            raise Unauthenticated("the content store needs a token of its own: ask for one at an xet token route")
        data = _decode(token.removeprefix(_PREFIX)) if token.startswith(_PREFIX) and len(token) <= _LONGEST else b""
        head, stated = data[:-_TAG_BYTES], data[-_TAG_BYTES:]
        if len(head) <= _HEAD.size or not is_tag(self._key, head, stated):
            raise Unauthenticated("this is no token of this content store")
        writes, expires_at = _HEAD.unpack_from(head)
        if expires_at <= time.time():
            raise Unauthenticated("this token of the content store has expired")
        return CasCaller(head[_HEAD.size :].decode(), Permission.WRITE if writes else Permission.READ)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return b""
    # The last letter may hold bits that belong to no byte: only one spelling of a token is that token.
    return data if _encode(data) == text else b""
