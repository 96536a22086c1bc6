"""Keys for one purpose each, made from the one key of the server's key file; all of them outlive a restart."""

import hashlib
import hmac

_TAG_BYTES = 16


def derive(key: bytes, purpose: str) -> bytes:
    """Return the 32 bytes of the key for a purpose."""
    return hmac.digest(key, b"runstead content: " + purpose.encode(), hashlib.sha256)


def tag(key: bytes, message: bytes) -> bytes:
    """Return what proves that somebody with the key wrote the message."""
    return hmac.digest(key, message, hashlib.sha256)[:_TAG_BYTES]


def is_tag(key: bytes, message: bytes, stated: bytes) -> bool:
    """Say whether `stated` is the tag of the message, in a time that tells nothing."""
    return hmac.compare_digest(tag(key, message), stated)
