"""Stored content as the rest of the server sees it: files by hash, who may use them, tokens for the Xet protocol.

A hash is 32 bytes here, as everywhere inside the server; `runstead.xet.hashes` turns it into text and back.
"""

from dataclasses import dataclass

EMPTY_FILE = bytes(32)
"""The hash of the file without bytes. It is always there and stored nowhere."""


@dataclass(frozen=True, slots=True)
class ContentFile:
    """A stored file; `sha256` is lower case hex, known only where the uploader said it."""

    file_hash: bytes
    size: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class CasToken:
    """What a client needs to talk to the content store: wire-storage §4."""

    access_token: str
    expires_at: int  # unix seconds
    cas_url: str


@dataclass(frozen=True, slots=True)
class Collected:
    """What a garbage collection removed, or would remove."""

    files: int = 0
    xorbs: int = 0
    objects: int = 0  # that no row knew: left by a crash
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that a check of the store found wrong."""

    what: str  # "xorb", "file", "object"
    name: str  # the hash as text, or the key of an object
    problem: str
