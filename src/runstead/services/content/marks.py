"""A set of hashes that must not be removed, small enough for millions of them."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_GATHERED = 1 << 16


class Marks:
    """Remembers eight bytes of each hash. Two hashes that share them keep each other; nothing is ever missed."""

    def __init__(self) -> None:
        self._sorted: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._gathered: set[int] = set()

    def add(self, hashes: Iterable[bytes]) -> None:
        """Mark these."""
        self._gathered.update(map(_number, hashes))
        if len(self._gathered) > _GATHERED:
            self._settle()

    def unmarked(self, hashes: Iterable[bytes]) -> list[bytes]:
        """Return those of these that are not marked."""
        self._settle()
        return [each for each in hashes if not self._has(_number(each))]

    def _has(self, number: int) -> bool:
        at = int(np.searchsorted(self._sorted, np.uint64(number)))
        return at < len(self._sorted) and int(self._sorted[at]) == number

    def _settle(self) -> None:
        if self._gathered:
            new = np.fromiter(self._gathered, np.uint64, len(self._gathered))
            self._sorted = np.union1d(self._sorted, new)
            self._gathered = set()


def _number(value: bytes) -> int:
    return int.from_bytes(value[:8], "little")
