"""Writing xorbs: chunks with their headers, one after another (wire-storage §2)."""

from dataclasses import dataclass

from runstead.xet.compression import Scheme, compress, compress_smallest
from runstead.xet.errors import InvalidXorb
from runstead.xet.hashes import chunk_hash
from runstead.xet.merkle import merkle_root
from runstead.xet.xorb_layout import (
    CHUNK_HEADER_BYTES,
    MAX_CHUNK_BYTES,
    MAX_XORB_BYTES,
    MAX_XORB_CHUNKS,
    XorbFacts,
    layout_of_ends,
)


@dataclass(frozen=True, slots=True)
class BuiltXorb:
    """A serialized xorb and what is known of it."""

    body: bytes
    facts: XorbFacts


class XorbBuilder:
    """Puts chunks together to a serialized xorb, in the order they are added."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._hashes: list[bytes] = []
        self._stored_ends: list[int] = []
        self._unpacked_ends: list[int] = []

    @property
    def chunk_count(self) -> int:
        """How many chunks were added."""
        return len(self._hashes)

    def fits(self, length: int) -> bool:
        """Tell whether a chunk of this many bytes can still be added, even if it does not compress."""
        stored = self._stored_ends[-1] if self._stored_ends else 0
        return self.chunk_count < MAX_XORB_CHUNKS and stored + CHUNK_HEADER_BYTES + length <= MAX_XORB_BYTES

    def add(self, chunk: bytes | memoryview, scheme: Scheme | None = None) -> bytes:
        """Append a chunk and return its hash; without a scheme the smallest payload is chosen.

        Raises InvalidXorb for an empty or oversized chunk, or when it does not fit (see `fits`).
        """
        if not 1 <= len(chunk) <= MAX_CHUNK_BYTES:
            raise InvalidXorb(f"chunk {self.chunk_count} would have {len(chunk)} bytes, 1 to {MAX_CHUNK_BYTES} allowed")
        if scheme is None:
            scheme, payload = compress_smallest(chunk)
        else:
            payload = compress(chunk, scheme)
        if not self.fits(len(payload)):
            raise InvalidXorb(f"chunk {self.chunk_count} of {len(chunk)} bytes does not fit into this xorb")
        stored = self._stored_ends[-1] if self._stored_ends else 0
        unpacked = self._unpacked_ends[-1] if self._unpacked_ends else 0
        header = len(payload) << 8 | scheme << 32 | len(chunk) << 40
        name = chunk_hash(chunk)
        self._parts += (header.to_bytes(CHUNK_HEADER_BYTES, "little"), payload)
        self._stored_ends.append(stored + CHUNK_HEADER_BYTES + len(payload))
        self._unpacked_ends.append(unpacked + len(chunk))
        self._hashes.append(name)
        return name

    def finish(self) -> BuiltXorb:
        """Return the xorb. Raises InvalidXorb if nothing was added."""
        if not self._hashes:
            raise InvalidXorb("a xorb has at least one chunk, this one has 0")
        layout = layout_of_ends(self._stored_ends, self._unpacked_ends)
        hashes = b"".join(self._hashes)
        return BuiltXorb(b"".join(self._parts), XorbFacts(merkle_root(hashes, layout.chunk_lengths()), layout, hashes))
