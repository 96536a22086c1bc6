"""The merkle tree over chunks that gives xorbs and files their names (wire-storage §1).

Each level of the tree is cut into groups of 3 to 9 nodes (fewer at the very end) at places the hashes themselves
choose. Where a group ends depends on at most nine nodes, so the tree can be built while the chunks go by, with a
few nodes kept per level: that is what `MerkleTree` does. `merkle_root` is for a list already at hand.
"""

from collections.abc import Sequence

import numpy as np
from blake3 import blake3

_NODE_KEY = bytes.fromhex("017ec5c7a5472996fd946666b48a02e65ddd536f37c76dd2f86352e64a53713f")
_HASH_BYTES = 32
_LAST_GROUP_AT = 24
_LARGEST_GROUP = 9
_ENDS_GROUP = bytes(byte & 3 == 0 for byte in range(256))
"""Per value of byte 24, the lowest of the last u64: whether that number is divisible by four."""
_BATCH = 4096
"""Nodes gathered on a level before they are cut; any number from nine up gives the same tree."""


def merkle_root(hashes: bytes, lengths: Sequence[int]) -> bytes:
    """Return the root over nodes of 32 bytes in `hashes` and their lengths in bytes of content.

    The root of one node is that node. `hashes` holds exactly one hash per length, and there is at least one.
    """
    while len(lengths) > 1:
        nodes, sums, _ = _join_groups(hashes, lengths, last=True)
        hashes, lengths = b"".join(nodes), sums
    return hashes


class MerkleTree:
    """Builds the root of a list of chunks of any length, holding a bounded number of nodes per level."""

    def __init__(self) -> None:
        self._levels: list[_Level] = []

    def add(self, hashes: bytes, lengths: Sequence[int]) -> None:
        """Append nodes: 32 bytes each in `hashes`, one length each."""
        self._add(0, hashes, lengths)

    def root(self) -> bytes | None:
        """Return the root of everything added, None if nothing was. Nothing may be added afterwards."""
        height = 0
        while height < len(self._levels):
            level = self._levels[height]
            if height + 1 == len(self._levels) and len(level.lengths) == 1:
                return bytes(level.hashes)
            if level.lengths:
                nodes, sums, _ = _join_groups(bytes(level.hashes), level.lengths, last=True)
                self._add(height + 1, b"".join(nodes), sums)
            height += 1
        return None

    def _add(self, height: int, hashes: bytes, lengths: Sequence[int]) -> None:
        if not lengths:
            return
        if height == len(self._levels):
            self._levels.append(_Level())
        level = self._levels[height]
        level.hashes += hashes
        level.lengths += lengths
        if len(level.lengths) >= _BATCH:
            nodes, sums, used = _join_groups(bytes(level.hashes), level.lengths, last=False)
            del level.hashes[: _HASH_BYTES * used]
            del level.lengths[:used]
            self._add(height + 1, b"".join(nodes), sums)


class _Level:
    """The nodes of one level that are not yet part of a group."""

    __slots__ = ("hashes", "lengths")

    def __init__(self) -> None:
        self.hashes = bytearray()
        self.lengths: list[int] = []


def _join_groups(hashes: bytes, lengths: Sequence[int], *, last: bool) -> tuple[list[bytes], list[int], int]:
    """Return the parents of these nodes, their lengths, and how many nodes were used.

    Unless these are the `last` nodes of their level, a group is only closed while nine nodes are in sight.
    """
    count = len(lengths)
    ends = hashes[_LAST_GROUP_AT::_HASH_BYTES].translate(_ENDS_GROUP)
    digits = np.frombuffer(hashes, np.dtype("<u8")).byteswap().tobytes().hex()
    lines = [f"{digits[64 * index : 64 * index + 64]} : {length}\n" for index, length in enumerate(lengths)]
    nodes: list[bytes] = []
    sums: list[int] = []
    start = 0
    while count - start >= (1 if last else _LARGEST_GROUP):
        limit = min(start + _LARGEST_GROUP, count)
        end = ends.find(1, start + 2, limit) + 1 or limit
        nodes.append(blake3("".join(lines[start:end]).encode(), key=_NODE_KEY).digest())
        sums.append(sum(lengths[start:end]))
        start = end
    return nodes, sums, start
