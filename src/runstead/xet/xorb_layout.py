"""Where the chunks of a xorb lie, and the limits a xorb keeps (wire-storage §2).

The layout is all a server needs to serve ranges of a stored xorb; it is made by the header walk (`xorb`), kept in
packed form, and asked by everything that deals with terms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runstead.xet.errors import InvalidXorb

CHUNK_HEADER_BYTES = 8
MAX_CHUNK_BYTES = 128 * 1024
MAX_PAYLOAD_BYTES = 2 * MAX_CHUNK_BYTES
MAX_XORB_CHUNKS = 8192
MAX_XORB_BYTES = 64 * 1024 * 1024 + CHUNK_HEADER_BYTES * MAX_XORB_CHUNKS
"""Of the serialized chunks, without a footer. Clients fill a xorb up to 64 MiB of content and add the headers."""


@dataclass(frozen=True, slots=True, eq=False)
class XorbLayout:
    """Where each chunk of a xorb lies.

    Both arrays are u32 with one element more than there are chunks: chunk `i` occupies
    `stored_offsets[i]:stored_offsets[i + 1]` of the serialized xorb, header included, and
    `unpacked_offsets[i]:unpacked_offsets[i + 1]` of its content.
    """

    stored_offsets: NDArray[np.uint32]
    unpacked_offsets: NDArray[np.uint32]

    @property
    def chunk_count(self) -> int:
        """How many chunks there are."""
        return len(self.stored_offsets) - 1

    @property
    def stored_bytes(self) -> int:
        """Length of all chunks with their headers; where a footer, if any, begins."""
        return int(self.stored_offsets[-1])

    @property
    def unpacked_bytes(self) -> int:
        """Length of the content of all chunks."""
        return int(self.unpacked_offsets[-1])

    def chunk_lengths(self) -> list[int]:
        """Return the uncompressed length of each chunk in bytes."""
        return np.diff(self.unpacked_offsets).tolist()

    def stored_range(self, start: int, end: int) -> tuple[int, int]:
        """Return the half-open byte range, in the serialized xorb, of the chunks from `start` up to `end`."""
        return int(self.stored_offsets[start]), int(self.stored_offsets[end])

    def pack(self) -> bytes:
        """Return eight bytes per chunk that `unpack_layout` reads: its two end offsets, little endian."""
        return np.stack((self.stored_offsets[1:], self.unpacked_offsets[1:]), axis=1).astype("<u4").tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, XorbLayout) and self.pack() == other.pack()

    def __hash__(self) -> int:
        return hash(self.pack())


@dataclass(frozen=True, slots=True)
class XorbFacts:
    """What the server knows of a stored xorb; `chunk_hashes` (32 bytes each, in order) is None until they are."""

    xorb_hash: bytes
    layout: XorbLayout
    chunk_hashes: bytes | None


def unpack_layout(data: bytes) -> XorbLayout:
    """Read what `XorbLayout.pack` wrote. Raises InvalidXorb if no xorb can have these offsets."""
    if len(data) % 8 or not 0 < len(data) <= 8 * MAX_XORB_CHUNKS:
        raise InvalidXorb(
            f"a packed layout has 8 bytes for each of 1 to {MAX_XORB_CHUNKS} chunks, this one {len(data)}"
        )
    ends = np.frombuffer(data, "<u4").reshape(-1, 2)
    return layout_of_ends(ends[:, 0], ends[:, 1])


def layout_of_ends(
    stored_ends: Sequence[int] | NDArray[np.uint32], unpacked_ends: Sequence[int] | NDArray[np.uint32]
) -> XorbLayout:
    """Return the layout with these end offsets, one per chunk. Raises InvalidXorb if no xorb can have them."""
    count = len(stored_ends)
    if not 1 <= count <= MAX_XORB_CHUNKS:
        raise InvalidXorb(f"a xorb has 1 to {MAX_XORB_CHUNKS} chunks, this one {count}")
    offsets = np.zeros((2, count + 1), np.int64)
    offsets[0, 1:] = stored_ends
    offsets[1, 1:] = unpacked_ends
    stored, unpacked = np.diff(offsets)
    wrong = (
        (stored <= CHUNK_HEADER_BYTES)
        | (stored > CHUNK_HEADER_BYTES + MAX_PAYLOAD_BYTES)
        | (unpacked < 1)
        | (unpacked > MAX_CHUNK_BYTES)
        | (offsets[0, 1:] > MAX_XORB_BYTES)
    )
    if wrong.any():
        index = int(wrong.argmax())
        raise InvalidXorb(
            f"chunk {index} cannot end at byte {offsets[0, index + 1]} of a xorb and {offsets[1, index + 1]} of its "
            f"content, with {stored[index]} and {unpacked[index]} bytes of its own"
        )
    narrow = offsets.astype(np.uint32)
    narrow.flags.writeable = False
    return XorbLayout(narrow[0], narrow[1])
