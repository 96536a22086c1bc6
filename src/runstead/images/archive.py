"""Reads tar archives as a stream: ustar, pax and GNU long names, as the tools that make layers write them.

Python's own reader makes an object with some thirty fields per member and a file object per content; for layers
of ten thousand small files that costs more than making the files. Nothing here touches the disk.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

BLOCK = 512
REGULAR, HARD_LINK, SYMBOLIC_LINK, CHARACTER_DEVICE, BLOCK_DEVICE, FOLDER, FIFO = (
    b"0",
    b"1",
    b"2",
    b"3",
    b"4",
    b"5",
    b"6",
)
_ALSO_REGULAR = (b"\0", b"7")
_WITHOUT_CONTENT = (HARD_LINK, SYMBOLIC_LINK, CHARACTER_DEVICE, BLOCK_DEVICE, FOLDER, FIFO)
_XATTR = b"SCHILY.xattr."
_EMPTY = bytes(BLOCK)
# Names, extended attributes: nothing that is allowed on a Linux file comes near it.
_LONGEST_HEADER = 1 << 20
_HIGHEST_NUMBER = (1 << 63) - 1


class Damaged(Exception):
    """What was read is no archive of this kind, or breaks off."""


@dataclass(slots=True)
class Entry:
    """One member of an archive, as it says."""

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    size: int  # of the content that follows
    mtime_ns: int
    link: bytes
    xattrs: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])


class TarReader:
    """The members of an archive in order. `more` returns its next piece, of any size; empty at the end."""

    def __init__(self, more: Callable[[], bytes]) -> None:
        self._more = more
        self._piece = memoryview(b"")
        self._at = 0
        self._left = 0  # of the present content
        self._padding = 0
        self._defaults: dict[bytes, bytes] = {}
        self.offset = 0  # of what is read next

    def next(self) -> Entry | None:
        """Return the next member, skipping what was not read of the one before; None at the end."""
        long_name: bytes | None = None
        long_link: bytes | None = None
        extended = dict(self._defaults)
        while True:
            self.skip()
            block = self._take(BLOCK, end_is_fine=True)
            if not block or block == _EMPTY:
                return None
            kind = block[156:157]
            size = _number(block[124:136])
            if kind in (b"x", b"g", b"L", b"K"):
                if size > _LONGEST_HEADER:
                    raise Damaged("a header of the archive is too long")
                value = self._take(size)
                self._take(-size % BLOCK)
                _verify(block)
                if kind == b"g":
                    self._defaults.update(_pax(value))
                    extended = {**self._defaults, **extended}
                elif kind == b"x":
                    extended.update(_pax(value))
                elif kind == b"L":
                    long_name = value.split(b"\0", 1)[0]
                else:
                    long_link = value.split(b"\0", 1)[0]
                continue
            entry = _entry(block, kind, size)
            if long_name is not None:
                entry.name = long_name
            if long_link is not None:
                entry.link = long_link
            if extended:
                _extend(entry, extended)
            self._left = 0 if entry.kind in _WITHOUT_CONTENT else entry.size
            self._padding = -self._left % BLOCK
            return entry

    def content(self) -> Iterator[memoryview]:
        """Yield what is left of the content of the present member."""
        while self._left:
            if self._at >= len(self._piece):
                self._refill()
            part = self._piece[self._at : self._at + self._left]
            self._at += len(part)
            self._left -= len(part)
            self.offset += len(part)
            yield part

    def skip(self) -> None:
        """Go to the end of the present member."""
        for _ in self.content():
            pass
        self._take(self._padding)
        self._padding = 0

    def rest(self) -> None:
        """Read to the very end; what stands behind the last member counts for the archive's hash."""
        self._left = self._padding = 0
        while self._more():
            pass

    def _refill(self) -> None:
        piece = self._more()
        if not piece:
            raise Damaged("the archive breaks off")
        self._piece = memoryview(piece)
        self._at = 0

    def _take(self, count: int, *, end_is_fine: bool = False) -> bytes:
        end = self._at + count
        if end <= len(self._piece):
            taken = bytes(self._piece[self._at : end])
            self._at = end
            self.offset += count
            return taken
        parts: list[memoryview] = []
        left = count
        while left:
            if self._at >= len(self._piece):
                piece = self._more()
                if not piece:
                    if end_is_fine and left == count:
                        return b""
                    raise Damaged("the archive breaks off")
                self._piece = memoryview(piece)
                self._at = 0
            part = self._piece[self._at : self._at + left]
            self._at += len(part)
            left -= len(part)
            parts.append(part)
        self.offset += count
        return b"".join(parts)


def _entry(block: bytes, kind: bytes, size: int) -> Entry:
    _verify(block)
    if kind == b"S":
        raise Damaged("the archive has sparse files, which layers of images do not have")
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    if kind in _ALSO_REGULAR:
        kind = REGULAR
    if kind == REGULAR and name.endswith(b"/"):
        kind = FOLDER
    return Entry(
        name=name,
        kind=kind,
        mode=_number(block[100:108]) & 0o7777,
        uid=_number(block[108:116]),
        gid=_number(block[116:124]),
        size=size,
        mtime_ns=_number(block[136:148], signed=True) * 10**9,
        link=block[157:257].split(b"\0", 1)[0],
    )


def _verify(block: bytes) -> None:
    wanted = _number(block[148:156])
    found = sum(block) - sum(block[148:156]) + 8 * 32
    if wanted != found:
        signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:]) + 8 * 32
        if wanted != signed:
            raise Damaged("a header of the archive has a wrong checksum")


def _number(text: bytes, *, signed: bool = False) -> int:
    """Read an octal number, or a binary one as GNU tar writes those that are too large."""
    if text[0] & 0x80:
        value = int.from_bytes(text, "big", signed=True) if text[0] == 0xFF else int.from_bytes(text, "big")
        if text[0] != 0xFF:
            value -= 0x80 << 8 * (len(text) - 1)
    else:
        digits = text.split(b"\0", 1)[0].strip()
        try:
            value = int(digits, 8) if digits else 0
        except ValueError:
            raise Damaged(f"a number in a header of the archive is none: {text!r}") from None
    if not signed and not 0 <= value <= _HIGHEST_NUMBER:
        raise Damaged("a number in a header of the archive is not possible")
    return value


def _pax(data: bytes) -> dict[bytes, bytes]:
    """Read the records of an extended header: `length key=value`, a line each."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        digits = data[at:space]
        if space < 0 or not digits.isdigit():
            raise Damaged("an extended header of the archive cannot be read")
        end = at + int(digits)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end > len(data) or end <= space or not equals or data[end - 1 : end] != b"\n":
            raise Damaged("an extended header of the archive cannot be read")
        found[key] = value
        at = end
    return found


def _extend(entry: Entry, extended: dict[bytes, bytes]) -> None:
    for key, value in extended.items():
        if key.startswith(_XATTR):
            entry.xattrs[key.removeprefix(_XATTR)] = value
        elif key.startswith(b"GNU.sparse."):
            raise Damaged("the archive has sparse files, which layers of images do not have")
        elif value:
            _set(entry, key, value)
    if entry.kind == REGULAR and entry.name.endswith(b"/"):
        entry.kind = FOLDER


def _set(entry: Entry, key: bytes, value: bytes) -> None:
    try:
        match key:
            case b"path":
                entry.name = value
            case b"linkpath":
                entry.link = value
            case b"size":
                entry.size = _positive(value)
            case b"uid":
                entry.uid = _positive(value)
            case b"gid":
                entry.gid = _positive(value)
            case b"mtime":
                seconds, _, fraction = value.partition(b".")
                nanoseconds = int(fraction[:9].ljust(9, b"0")) if fraction else 0
                entry.mtime_ns = int(seconds) * 10**9 + (-nanoseconds if seconds.startswith(b"-") else nanoseconds)
            case _:
                pass
    except ValueError:
        raise Damaged(f"an extended header of the archive has no number where one belongs: {value[:50]!r}") from None


def _positive(value: bytes) -> int:
    number = int(value)
    if not 0 <= number <= _HIGHEST_NUMBER:
        raise ValueError(value)
    return number
