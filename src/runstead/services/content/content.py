"""Stored content for the services above it: buckets and, later, repositories.

Files are named by their hash and never change. A *scope* is the id of whatever owns references to files, for
example `bucket:<id>`: it stays when the thing is renamed. A scope has a *claim* on a file when a shard under one
of its write tokens registered it, when `share` gave it one, or when `store` made the file for it; only with a claim
does a read token of the scope give out the file. Which names a file has is the caller's business.

The rule that keeps garbage collection safe: whoever is about to make a reference (add, copy, restore) first calls
`take`, `share` or `hold`, and makes the reference durable within the hour. What these answered stays for at least the
grace period, weeks; afterwards the references that `FileRoots` reports keep it.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Collection, Mapping

from runstead.model.accounts import Permission
from runstead.model.content import CasToken, ContentFile


class FileRoots(ABC):
    """Something that refers to files: all buckets together, all repositories together."""

    @abstractmethod
    def referenced(self) -> AsyncIterator[Collection[bytes]]:
        """Yield, in batches of some thousands, the hash of every file referred to, kept history included.

        Repetitions do no harm. It need not be one snapshot: a reference made while this runs is protected by the
        call of `take`, `share` or `hold` before it, one removed meanwhile may be reported or not.
        """


class Content(ABC):
    """What the other services may ask of stored content. Hashes are 32 bytes."""

    @abstractmethod
    async def cas_token(self, scope: str, permission: Permission, base_url: str) -> CasToken:
        """Return a token that reads what the scope has a claim on or, with WRITE, also uploads for it.

        `base_url` is how the client reached this server (`context.base_url`). The caller has checked that this
        client may do that in this scope.
        """

    @abstractmethod
    async def take(self, scope: str, file_hashes: Collection[bytes]) -> Mapping[bytes, int]:
        """Return the sizes of those files that the scope has a claim on and hold them; the others are left out.

        For `addFile`: what is missing in the answer was never uploaded for this scope. The empty file is always in
        the answer if asked for.
        """

    @abstractmethod
    async def share(self, scope: str, file_hashes: Collection[bytes]) -> Mapping[bytes, int]:
        """Give the scope a claim on these files, hold them, return the sizes of those that exist.

        For `copyFile`: the caller has checked that the client may read each file elsewhere.
        """

    @abstractmethod
    async def hold(self, file_hashes: Collection[bytes]) -> Mapping[bytes, int]:
        """Keep these files for the grace period from now on; return the sizes of those that exist."""

    @abstractmethod
    async def file(self, file_hash: bytes) -> ContentFile:
        """Return what is known of a file. Raises NotFound."""

    @abstractmethod
    def read(self, file_hash: bytes, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield the bytes of a file from `start` up to `end` (exclusive; None: its end; cut there if larger).

        Every piece is verified against its hashes before it is yielded; at most a few MiB are held. Stop early
        with `aclose`. Raises, when iterated: NotFound; Invalid if `start` is not in the file, unless both are 0
        and the file empty; ContentDamaged where what is stored is damaged.
        """

    @abstractmethod
    async def store(self, scope: str, pieces: AsyncIterable[bytes]) -> ContentFile:
        """Store a file that the server itself has the bytes of, for the scope, held; return it with its SHA-256."""

    @abstractmethod
    async def forget(self, scope: str) -> None:
        """Drop all claims of a scope that is no more."""
