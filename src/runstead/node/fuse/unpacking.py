"""From a reconstruction and the stored bytes it points to, to the chunks of a file as they come in.

A range of a xorb is read once, however many terms refer to it; each chunk is handed over wherever it belongs.
Memory: one chunk, and what is handed over together.
"""

import bisect
import errno
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from runstead.node.fuse.source import Piece
from runstead.xet.compression import Decompressor
from runstead.xet.errors import InvalidChunk
from runstead.xet.hashes import chunk_hash
from runstead.xet.xorb_layout import CHUNK_HEADER_BYTES, MAX_CHUNK_BYTES, MAX_PAYLOAD_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    _File = tuple[
        list[dict[str, Any]], int, Callable[[Sequence[Piece]], None]
    ]  # its terms, where the first is, whom to tell

_TOGETHER_BYTES = 1 << 20  # are handed over at once, unless fewer came
_TOGETHER = 512  # chunks: what one call can write


class Part(NamedTuple):
    """Stored bytes to be read, both ends included."""

    url: str
    first: int
    last: int


class _Term:
    """Where the chunks of a part go: those from `start` up to `end`, the first of them at `offset` of the file."""

    __slots__ = ("end", "offset", "start", "take")

    def __init__(self, start: int, end: int, offset: int, take: Callable[[Sequence[Piece]], None]) -> None:
        self.start = start
        self.end = end
        self.offset = offset
        self.take = take


class _Range(NamedTuple):
    part: Part
    first_chunk: int
    end_chunk: int
    terms: list[_Term]


class Unpacker:
    """Reads the parts of one reconstruction, one after another: iterate `parts` and feed the bytes of each."""

    def __init__(self, plan: "dict[str, Any]", start: int, take: Callable[[Sequence[Piece]], None]) -> None:
        """`start` is where in the file the range begins that was asked for. Raises OSError for a broken plan."""
        self._prepare(plan, lambda: [(plan["terms"], start - int(plan["offset_into_first_range"]), take)])

    @classmethod
    def of_files(cls, plan: "dict[str, Any]", take: Callable[[str, Sequence[Piece]], None]) -> "Unpacker":
        """Read several whole files; `take` is told the hash of each. Raises OSError for a broken plan."""
        unpacker = cls.__new__(cls)
        unpacker._prepare(plan, lambda: [(terms, 0, partial(take, name)) for name, terms in plan["files"].items()])
        return unpacker

    def _prepare(self, plan: "dict[str, Any]", files: "Callable[[], list[_File]]") -> None:
        self._decompressor = Decompressor()
        self._rest = bytearray()
        self._chunk = self._end = 0
        self._terms: list[_Term] = []  # from the last to the first
        self._wanted: list[_Term] = []  # those that the next chunk may belong to
        self._pieces: list[Piece] = []  # to be handed over, all to the same
        self._pieces_bytes = 0
        self._take: Callable[[Sequence[Piece]], None] | None = None
        try:
            self._ranges = _ranges(plan, files())
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise OSError(errno.EIO, f"the store's plan of a file is broken: {error!r}") from error

    def parts(self) -> Iterator[Part]:
        """Yield what is to be read."""
        for part, first, end, terms in self._ranges:
            self._chunk, self._end, self._wanted = first, end, []
            self._terms = sorted(terms, key=lambda term: -term.start)
            self._rest.clear()
            yield part

    def is_complete(self) -> bool:
        """Whether all chunks of this part were there."""
        return self._chunk == self._end and not self._rest

    def feed(self, data: memoryview) -> None:
        """Take the next bytes of a part, and hand over what is whole. Raises OSError where they are broken."""
        self._feed(data)
        self._hand_over()

    def _feed(self, data: memoryview) -> None:
        at, size = 0, len(data)
        if self._rest:
            wanted = self._missing(self._rest)
            while wanted and at < size:
                self._rest += data[at : at + wanted]
                at = min(size, at + wanted)
                wanted = self._missing(self._rest)
            if wanted:
                return
            whole = memoryview(bytes(self._rest))
            self._rest.clear()
            self._unpack(_header(whole, 0), whole[CHUNK_HEADER_BYTES:])
        while size - at >= CHUNK_HEADER_BYTES:
            header = _header(data, at)
            begin = at + CHUNK_HEADER_BYTES
            end = begin + (header >> 8 & 0xFFFFFF)
            if end > size:
                break
            self._unpack(header, data[begin:end])
            at = end
        if at < size:
            self._rest += data[at:]

    @staticmethod
    def _missing(data: bytearray) -> int:
        """Return how many bytes are missing to the end of this chunk's header, or else its payload."""
        if len(data) < CHUNK_HEADER_BYTES:
            return CHUNK_HEADER_BYTES - len(data)
        return max(0, CHUNK_HEADER_BYTES + (_header(data, 0) >> 8 & 0xFFFFFF) - len(data))

    def _unpack(self, header: int, payload: memoryview) -> None:
        scheme, length = header >> 32 & 0xFF, header >> 40
        if (
            header & 0xFF
            or len(payload) > MAX_PAYLOAD_BYTES
            or not 0 < length <= MAX_CHUNK_BYTES
            or self._chunk >= self._end
        ):
            raise OSError(errno.EIO, "the store sent a broken chunk")
        while self._terms and self._terms[-1].start <= self._chunk:
            self._wanted.append(self._terms.pop())
        wanted = self._wanted = [term for term in self._wanted if self._chunk < term.end]
        self._chunk += 1
        if not wanted:
            return  # between two parts that are read as one
        try:
            content = memoryview(self._decompressor.unpack(payload, scheme, length))
        except InvalidChunk as error:
            raise OSError(errno.EIO, f"the store sent a broken chunk: {error}") from error
        name = chunk_hash(content)
        for term in wanted:
            if term.take is not self._take or self._pieces_bytes >= _TOGETHER_BYTES or len(self._pieces) >= _TOGETHER:
                self._hand_over()
                self._take = term.take
            self._pieces.append(Piece(term.offset, content, name))
            self._pieces_bytes += length
            term.offset += length

    def _hand_over(self) -> None:
        pieces, self._pieces, self._pieces_bytes = self._pieces, [], 0
        if pieces and self._take is not None:
            self._take(pieces)


def _header(data: bytearray | memoryview, at: int) -> int:
    """Return a chunk's header as a number: 8 bits version, 24 stored bytes, 8 scheme, 24 unpacked bytes."""
    return int.from_bytes(data[at : at + CHUNK_HEADER_BYTES], "little")


def _ranges(plan: "dict[str, Any]", files: "list[_File]") -> list[_Range]:
    found: dict[str, list[_Range]] = {}
    for xorb, groups in plan["xorbs"].items():
        found[xorb] = [
            _Range(
                Part(str(group["url"]), int(one["bytes"]["start"]), int(one["bytes"]["end"])),
                int(one["chunks"]["start"]),
                int(one["chunks"]["end"]),
                [],
            )
            for group in groups
            for one in group["ranges"]
        ]
        found[xorb].sort(key=lambda place: place.first_chunk)
    used: dict[int, _Range] = {}
    for terms, start, take in files:
        offset = start
        for term in terms:
            first, end = int(term["range"]["start"]), int(term["range"]["end"])
            places = found[term["hash"]]
            place = places[bisect.bisect_right(places, first, key=lambda place: place.first_chunk) - 1]
            if not place.first_chunk <= first < end <= place.end_chunk:
                raise ValueError("a term has no range")
            place.terms.append(_Term(first, end, offset, take))
            used.setdefault(id(place), place)
            offset += int(term["unpacked_length"])
    return list(used.values())
