"""Checksums by which a range of a stored xorb is checked before it is given out.

For every 64 KiB of the stored bytes, and for the end, the CRC-64/NVME of everything up to there, eight bytes each.
Going on from the number at one boundary over the bytes that follow must give the number at a later one: one pass
checks any run of blocks, whatever chunks lie in it, and making them costs nothing beyond the checksum of the whole
body that has to be computed anyway.
"""

from runstead.xet.checksum import crc64nvme
from runstead.xet.hashes import Buffer

BLOCK_BYTES = 64 * 1024
_WIDTH = 8


class Checksummer:
    """Computes the checksums of a body that arrives in pieces."""

    def __init__(self) -> None:
        self._crc = 0
        self._at = 0
        self._boundaries = bytearray()

    @property
    def whole(self) -> int:
        """The checksum of all bytes so far."""
        return self._crc

    @property
    def length(self) -> int:
        """How many bytes there were so far."""
        return self._at

    def feed(self, data: Buffer) -> None:
        """Take the next bytes."""
        with memoryview(data) as view:
            start = 0
            while start < len(view):
                end = min(len(view), start + BLOCK_BYTES - self._at % BLOCK_BYTES)
                self._crc = crc64nvme(view[start:end], self._crc)
                self._at += end - start
                start = end
                if self._at % BLOCK_BYTES == 0:
                    self._boundaries += self._crc.to_bytes(_WIDTH, "little")

    def finish(self) -> bytes:
        """Return the checksums."""
        if self._at % BLOCK_BYTES:
            return bytes(self._boundaries) + self._crc.to_bytes(_WIDTH, "little")
        return bytes(self._boundaries)


def blocks_around(start: int, end: int, length: int) -> tuple[int, int]:
    """Return the smallest checkable range of a body of this length that has the bytes from `start` up to `end`."""
    return start - start % BLOCK_BYTES, min(length, -(-end // BLOCK_BYTES) * BLOCK_BYTES)


def is_intact(data: Buffer, start: int, checksums: bytes) -> bool:
    """Say whether these are the bytes from `start` on, a boundary, to another boundary or the end."""
    before = start // BLOCK_BYTES
    after = -(-(start + len(data)) // BLOCK_BYTES)
    seed = _number(checksums, before - 1) if before else 0
    return crc64nvme(data, seed) == _number(checksums, after - 1)


def _number(checksums: bytes, index: int) -> int:
    return int.from_bytes(checksums[_WIDTH * index : _WIDTH * (index + 1)], "little")
