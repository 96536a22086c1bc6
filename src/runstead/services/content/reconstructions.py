"""Where the bytes of a file are, for clients that put them together themselves (wire-storage §8)."""

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from runstead.model.content import EMPTY_FILE
from runstead.model.errors import ContentDamaged, NotFound
from runstead.services.content.links import Links
from runstead.services.content.threads import Threads
from runstead.services.content.xorbs import Xorbs, damaged, tag_of
from runstead.stores.interface import ContentStore, StoredFile, StoredXorb
from runstead.xet.errors import InvalidTerms
from runstead.xet.hashes import hash_to_text
from runstead.xet.reconstruction import (
    FetchRange,
    Reconstruction,
    SignUrl,
    Span,
    many_answer,
    reconstruct,
    reconstruct_whole,
    span_of,
    v1_answer,
    v2_answer,
)
from runstead.xet.terms import Terms

_FEW_TERMS = 100
_SLACK_BYTES = 128 << 10  # read in vain rather than by another request


@dataclass(frozen=True, slots=True)
class Plan:
    """The part of a file that was asked for, trimmed to whole chunks, and the xorbs it is in."""

    reconstruction: Reconstruction
    xorbs: Mapping[bytes, StoredXorb]


class Reconstructions:
    """Finds out."""

    def __init__(self, store: ContentStore, xorbs: Xorbs, links: Links, threads: Threads, url_seconds: int) -> None:
        self._store = store
        self._xorbs = xorbs
        self._links = links
        self._threads = threads
        self._url_seconds = url_seconds

    async def find(self, file_hash: bytes, scope: str | None = None) -> StoredFile:
        """Return a file that is stored and, unless None, claimed by the scope. Raises NotFound."""
        if file_hash == EMPTY_FILE:
            return StoredFile(EMPTY_FILE, 0, Terms(b""), None)
        file = await self._store.file(file_hash, scope)
        if file is None:
            raise NotFound(f"this store does not hold the file {hash_to_text(file_hash)}, or not for this token")
        return file

    async def plan(self, file: StoredFile, byte_range: tuple[int, int] | None) -> Plan:
        """Return what is needed for the bytes from the first number up to the second, exclusive.

        Raises RangeNotSatisfiable for a range that starts behind the file; ContentDamaged if data is missing.
        """
        if file.size == 0 and byte_range is None:
            return Plan(Reconstruction(0, 0, (), {}), {})
        span = span_of(file.terms, byte_range)
        names = span.terms.xorb_hashes()
        xorbs = await self._xorbs.find(names)
        for name in names:
            if name not in xorbs:
                raise ContentDamaged(
                    f"what is stored is damaged: xorb {hash_to_text(name)} is lost or in quarantine; "
                    "uploading the file again puts it right"
                )
        if len(span.terms) <= _FEW_TERMS:
            return _plan(span, xorbs)
        return await self._threads.work(_plan, span, xorbs)

    async def answer_many(self, hashes: Collection[bytes], scope: str | None, cas_url: str) -> bytes:
        """Return the JSON text for several whole files; those that are not here are left out.

        Raises ContentDamaged if data is missing.
        """
        files = {name: file.terms for name, file in (await self._store.files(hashes, scope)).items()}
        xorbs = await self._xorbs.find({name for terms in files.values() for name in terms.xorb_hashes()})
        return await self._threads.work(self._answer_many, files, xorbs, cas_url)

    def _answer_many(self, files: Mapping[bytes, Terms], xorbs: Mapping[bytes, StoredXorb], cas_url: str) -> bytes:
        layouts = {name: xorb.facts.layout for name, xorb in xorbs.items()}
        try:
            found, fetches = reconstruct_whole(files, layouts, _SLACK_BYTES)
        except InvalidTerms as error:
            raise ContentDamaged(f"what is stored is damaged: {error}") from error
        return json.dumps(many_answer(found, fetches, self._signing(xorbs, cas_url)), separators=(",", ":")).encode()

    async def answer(self, plan: Plan, cas_url: str, version: int) -> bytes:
        """Return the JSON text of version 1 or 2; its URLs begin with `cas_url`."""
        if len(plan.reconstruction.terms) <= _FEW_TERMS:
            return self._answer(plan, cas_url, version)
        return await self._threads.work(self._answer, plan, cas_url, version)

    def _answer(self, plan: Plan, cas_url: str, version: int) -> bytes:
        make = v2_answer if version == 2 else v1_answer
        made = make(plan.reconstruction, self._signing(plan.xorbs, cas_url))
        return json.dumps(made, separators=(",", ":")).encode()

    def _signing(self, xorbs: Mapping[bytes, StoredXorb], cas_url: str) -> SignUrl:
        expires_at = int(time.time()) + self._url_seconds

        def url_of(xorb_hash: bytes, ranges: Sequence[FetchRange]) -> str:
            xorb = xorbs[xorb_hash]
            elsewhere = self._xorbs.url(xorb, self._url_seconds)
            if elsewhere is not None:
                return elsewhere
            name = link_name(xorb)
            query = self._links.read_query(name, [(r.first_byte, r.last_byte) for r in ranges], expires_at)
            return f"{cas_url}/{name}?{query}"

        return url_of


def link_name(xorb: StoredXorb) -> str:
    """Return the path, below the store's URL, at which clients read this object of a xorb."""
    return f"data/{hash_to_text(xorb.facts.xorb_hash)}/{tag_of(xorb)}"


def _plan(span: Span, xorbs: Mapping[bytes, StoredXorb]) -> Plan:
    layouts = {name: xorb.facts.layout for name, xorb in xorbs.items()}
    try:
        return Plan(reconstruct(span, layouts), xorbs)
    except InvalidTerms as error:
        raise damaged(next(iter(xorbs.values())), str(error)) from error
