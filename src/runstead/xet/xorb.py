"""Xorbs: chunks stored one after another, each behind a header of eight bytes (wire-storage §2, §6).

Three ways to look at the bytes of a xorb, from cheap to thorough: `walk_xorb` reads the headers alone and gives
the offsets by which ranges are served; `XorbVerifier` also unpacks and hashes every chunk and proves the name,
and can do so while the body is still arriving; `unpack_chunks` gives the content back. A body uploaded today ends
after its last chunk; a footer that older clients append (`xorb_footer`) is recognised and never counted as stored.
"""

from collections.abc import Iterator
from typing import NamedTuple

from runstead.xet.compression import Decompressor, Scheme
from runstead.xet.errors import InvalidChunk, InvalidXorb
from runstead.xet.hashes import Buffer, chunk_hash, hash_to_text
from runstead.xet.merkle import merkle_root
from runstead.xet.xorb_layout import (
    CHUNK_HEADER_BYTES,
    MAX_CHUNK_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_XORB_BYTES,
    MAX_XORB_CHUNKS,
    XorbFacts,
    XorbLayout,
    layout_of_ends,
)

FOOTER_MARK = b"XETBLOB"
"""What stands at the place of a chunk header where a footer begins."""
MAX_FOOTER_BYTES = 96 + 40 * MAX_XORB_CHUNKS

_U24 = 0xFFFFFF


class ChunkHeader(NamedTuple):
    """What stands before a payload; lengths in bytes."""

    scheme: int
    payload_bytes: int
    unpacked_bytes: int


def walk_xorb(data: Buffer) -> XorbLayout:
    """Read every chunk header and return where the chunks lie; payloads are not looked at.

    A footer after the last chunk is left out: `stored_bytes` of the result is where the chunks end. Raises
    InvalidXorb for a header that breaks a rule, a chunk that is cut short, bytes after the last chunk that are no
    footer, no chunk at all, or more than a xorb may hold.
    """
    walk = _Walk()
    with memoryview(data) as view:
        while walk.offset < len(view):
            if walk.header(view, walk.offset) is None:
                walk.check_footer_size(len(view) - walk.offset)
                break
            walk.advance()
        if walk.offset > len(view):
            raise InvalidXorb(f"chunk {walk.count - 1} ends at byte {walk.offset}, the xorb has {len(view)}")
    return walk.layout()


def unpack_chunks(data: Buffer) -> Iterator[memoryview]:
    """Yield the content of one chunk after another from serialized chunks, for example a fetched range.

    What is yielded may be a view of `data`. Raises InvalidXorb where a header or a payload is broken; hashes are
    not checked.
    """
    walk, decompressor = _Walk(), Decompressor()
    with memoryview(data) as view:
        while walk.offset < len(view):
            header = walk.header(view, walk.offset)
            if header is None:
                return
            payload = view[walk.offset + CHUNK_HEADER_BYTES :][: header.payload_bytes]
            yield memoryview(_unpack(payload, header, walk, decompressor))
            walk.advance()


class XorbVerifier:
    """Unpacks and hashes the chunks of a xorb as its bytes come in, and proves its name at the end.

    `feed` takes pieces of any size, in order, from any thread but one at a time; whole chunks are worked on in
    place, only a chunk that straddles two pieces is copied, so at most one chunk is held. Most of the work runs
    without the interpreter lock. After an error the verifier is of no further use.
    """

    def __init__(self) -> None:
        self._walk = _Walk()
        self._decompressor = Decompressor()
        self._hashes: list[bytes] = []
        self._straddling = bytearray()
        self._footer_bytes = 0

    def feed(self, data: Buffer) -> None:
        """Take the next bytes of the body. Raises InvalidXorb as soon as one cannot be part of a xorb."""
        with memoryview(data) as view:
            used = self._complete(view) if self._straddling else 0
            used = self._take_chunks(view, used)
            if self._footer_bytes:
                self._footer_bytes += len(view) - used
                self._walk.check_footer_size(self._footer_bytes)
            else:
                self._straddling += view[used:]

    def finish(self, xorb_hash: bytes) -> XorbFacts:
        """Return what was found. Raises InvalidXorb if the body is cut short or is not the xorb of this name."""
        if self._straddling:
            header = self._walk.header(self._straddling, 0)
            raise InvalidXorb(
                f"chunk {self._walk.count} at byte {self._walk.offset}: payload is cut short after "
                f"{len(self._straddling) - CHUNK_HEADER_BYTES} of {header.payload_bytes if header else 0} bytes"
            )
        layout, hashes = self._walk.layout(), b"".join(self._hashes)
        root = merkle_root(hashes, layout.chunk_lengths())
        if root != xorb_hash:
            raise InvalidXorb(
                f"content of {layout.chunk_count} chunks has the hash {hash_to_text(root)}, "
                f"not {hash_to_text(xorb_hash)}"
            )
        return XorbFacts(xorb_hash, layout, hashes)

    def _complete(self, view: memoryview) -> int:
        """Fill up the chunk begun by earlier pieces, take it once it is whole, return how much it needed."""
        used = self._fill_up(CHUNK_HEADER_BYTES, view, 0)
        if len(self._straddling) < CHUNK_HEADER_BYTES:
            return used
        header = self._walk.header(self._straddling, 0)
        size = CHUNK_HEADER_BYTES + (header.payload_bytes if header else 0)
        used = self._fill_up(size, view, used)
        if len(self._straddling) == size:
            whole, self._straddling = self._straddling, bytearray()
            self._take_chunks(memoryview(whole), 0)
        return used

    def _fill_up(self, size: int, view: memoryview, at: int) -> int:
        end = min(len(view), at + max(0, size - len(self._straddling)))
        self._straddling += view[at:end]
        return end

    def _take_chunks(self, view: memoryview, at: int) -> int:
        """Take every whole chunk from `at` on and return where the first one that is not whole begins."""
        walk = self._walk
        while not self._footer_bytes and len(view) - at >= CHUNK_HEADER_BYTES:
            header = walk.header(view, at)
            if header is None:
                self._footer_bytes = len(view) - at
                return len(view)
            end = at + CHUNK_HEADER_BYTES + header.payload_bytes
            if end > len(view):
                break
            payload = view[at + CHUNK_HEADER_BYTES : end]
            self._hashes.append(chunk_hash(_unpack(payload, header, walk, self._decompressor)))
            walk.advance()
            at = end
        return at


def verify_xorb(data: Buffer, xorb_hash: bytes) -> XorbFacts:
    """Unpack and hash every chunk of a whole body. Raises InvalidXorb unless it is the xorb of this name."""
    verifier = XorbVerifier()
    verifier.feed(data)
    return verifier.finish(xorb_hash)


class _Walk:
    """Goes from header to header and holds every limit on the way."""

    __slots__ = ("_next", "_stored_ends", "_unpacked_ends", "offset", "unpacked")

    def __init__(self) -> None:
        self.offset = 0
        self.unpacked = 0
        self._stored_ends: list[int] = []
        self._unpacked_ends: list[int] = []
        self._next = ChunkHeader(0, 0, 0)

    @property
    def count(self) -> int:
        return len(self._stored_ends)

    def header(self, data: memoryview | bytearray, at: int) -> ChunkHeader | None:
        """Read the next header from position `at` of this piece; None where a footer begins."""
        raw = bytes(data[at : at + CHUNK_HEADER_BYTES])
        if len(raw) == CHUNK_HEADER_BYTES and raw.startswith(FOOTER_MARK):
            return None
        number = int.from_bytes(raw, "little")
        self._next = header = ChunkHeader(number >> 32 & 0xFF, number >> 8 & _U24, number >> 40)
        scheme, payload_bytes, unpacked_bytes = header
        if (
            len(raw) < CHUNK_HEADER_BYTES
            or raw[0] != 0
            or scheme > Scheme.GROUPED_LZ4
            or not 0 < payload_bytes <= MAX_PAYLOAD_BYTES
            or not 0 < unpacked_bytes <= MAX_CHUNK_BYTES
            or (scheme == Scheme.NONE and payload_bytes != unpacked_bytes)
            or self.offset + CHUNK_HEADER_BYTES + payload_bytes > MAX_XORB_BYTES
            or self.count == MAX_XORB_CHUNKS
        ):
            raise InvalidXorb(f"chunk {self.count} at byte {self.offset}: {self._fault(raw, header)}")
        return header

    def advance(self) -> None:
        """Count the chunk whose header was read last."""
        self.offset += CHUNK_HEADER_BYTES + self._next.payload_bytes
        self.unpacked += self._next.unpacked_bytes
        self._stored_ends.append(self.offset)
        self._unpacked_ends.append(self.unpacked)

    def check_footer_size(self, size: int) -> None:
        if size > MAX_FOOTER_BYTES:
            raise InvalidXorb(f"footer at byte {self.offset} has {size} bytes or more, {MAX_FOOTER_BYTES} allowed")

    def layout(self) -> XorbLayout:
        if not self._stored_ends:
            raise InvalidXorb("a xorb has at least one chunk, this one has 0")
        return layout_of_ends(self._stored_ends, self._unpacked_ends)

    def _fault(self, raw: bytes, header: ChunkHeader) -> str:
        if len(raw) < CHUNK_HEADER_BYTES:
            return f"header is cut short after {len(raw)} bytes"
        if raw[0] != 0:
            return f"header version {raw[0]} is unknown"
        if header.scheme > Scheme.GROUPED_LZ4:
            return f"compression scheme {header.scheme} is unknown"
        if not 0 < header.payload_bytes <= MAX_PAYLOAD_BYTES:
            return f"payload of {header.payload_bytes} bytes, 1 to {MAX_PAYLOAD_BYTES} allowed"
        if not 0 < header.unpacked_bytes <= MAX_CHUNK_BYTES:
            return f"uncompressed length of {header.unpacked_bytes} bytes, 1 to {MAX_CHUNK_BYTES} allowed"
        if header.scheme == Scheme.NONE and header.payload_bytes != header.unpacked_bytes:
            return f"stored plainly in {header.payload_bytes} bytes but {header.unpacked_bytes} long"
        if self.count == MAX_XORB_CHUNKS:
            return f"a xorb holds at most {MAX_XORB_CHUNKS} chunks"
        return f"payload of {header.payload_bytes} bytes ends after the {MAX_XORB_BYTES} a xorb may have"


def _unpack(
    payload: memoryview, header: ChunkHeader, walk: _Walk, decompressor: Decompressor
) -> bytes | bytearray | memoryview:
    try:
        if len(payload) < header.payload_bytes:
            raise InvalidChunk(f"payload is cut short after {len(payload)} of {header.payload_bytes} bytes")
        return decompressor.unpack(payload, header.scheme, header.unpacked_bytes)
    except InvalidChunk as error:
        payload.release()  # the traceback would keep a memory map of the caller from being closed
        raise InvalidXorb(f"chunk {walk.count} at byte {walk.offset}: {error}") from error
