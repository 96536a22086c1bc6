"""Files as lists of terms: runs of chunks in xorbs, one after another (wire-storage §0, §3).

A file may have more than a million terms, so they stay in the 48-byte records they came in and are looked at in
bulk; a `Term` is made only where somebody asks for one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from runstead.xet.errors import InvalidTerms

RECORD_BYTES = 48

_RECORD = Struct("<32s4xIII")
_RECORDS = np.dtype(
    [("xorb_hash", "V32"), ("flags", "<u4"), ("unpacked_bytes", "<u4"), ("start", "<u4"), ("end", "<u4")]
)
_U32_LIMIT = 1 << 32


@dataclass(frozen=True, slots=True)
class Term:
    """The chunks from `start` up to `end` (exclusive) of one xorb, `unpacked_bytes` long when uncompressed."""

    xorb_hash: bytes
    start: int
    end: int
    unpacked_bytes: int


@dataclass(frozen=True, slots=True)
class Terms:
    """A file's terms in order; `records`, 48 bytes each as in a shard, is also the form to store them in.

    Raises InvalidTerms for a length that is no multiple of 48. Whether the terms fit their xorbs is another
    question, see `verification` and `reconstruction`.
    """

    records: bytes

    def __post_init__(self) -> None:
        if len(self.records) % RECORD_BYTES:
            raise InvalidTerms(f"terms have {RECORD_BYTES} bytes each, these {len(self.records)} altogether")

    def __len__(self) -> int:
        return len(self.records) // RECORD_BYTES

    def __getitem__(self, index: int) -> Term:
        xorb_hash, unpacked_bytes, start, end = _RECORD.unpack_from(self.records, RECORD_BYTES * index)
        return Term(xorb_hash, start, end, unpacked_bytes)

    def __iter__(self) -> Iterator[Term]:
        for xorb_hash, unpacked_bytes, start, end in _RECORD.iter_unpack(self.records):
            yield Term(xorb_hash, start, end, unpacked_bytes)

    @property
    def file_bytes(self) -> int:
        """Length of the file in bytes, if the terms speak the truth."""
        return int(self.unpacked_bytes().sum(dtype=np.int64))

    def unpacked_bytes(self) -> NDArray[np.uint32]:
        """Return the uncompressed length of each term."""
        return np.frombuffer(self.records, _RECORDS)["unpacked_bytes"]

    def xorb_hashes(self) -> list[bytes]:
        """Return each xorb that is named, once, in the order of first appearance."""
        return list(dict.fromkeys(record[0] for record in _RECORD.iter_unpack(self.records)))


def terms_of(terms: Iterable[Term]) -> Terms:
    """Return the sequence of these terms. Raises InvalidTerms for a number that does not fit in 32 bits."""
    rows: list[bytes] = []
    for index, term in enumerate(terms):
        numbers = (term.unpacked_bytes, term.start, term.end)
        if len(term.xorb_hash) != RECORD_BYTES - 16 or not all(0 <= number < _U32_LIMIT for number in numbers):
            raise InvalidTerms(f"term {index} cannot be written: {term}")
        rows.append(_RECORD.pack(term.xorb_hash, *numbers))
    return Terms(b"".join(rows))
