"""Where bodies end. They are passed on as they are: only their framing is followed, never their content.

A scanner is fed what arrives and says how much of it belongs to the message. Chunked framing is checked to the byte,
so that the program in the job cannot see the end elsewhere.
"""

import re
from typing import Protocol

from runstead.proxy.heads import BadMessage, Framing, read_fields

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t -~]*)?\r\n")
_LONGEST_LINE = 4096
_LONGEST_TRAILERS = 64 * 1024
# A trailer of these names would change what the message is, or who sent it.
_NOT_IN_TRAILERS = frozenset(
    {
        b"authorization",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"expect",
        b"forwarded",
        b"host",
        b"location",
        b"proxy-authorization",
        b"set-cookie",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)


class Scanner(Protocol):
    """Follows one body."""

    done: bool

    def feed(self, data: bytes) -> int:
        """Return how many bytes of `data` belong to the body; fewer than all only at its end. Raises BadMessage."""
        ...


class Nothing:
    """No body."""

    done = True

    def feed(self, data: bytes) -> int:  # noqa: ARG002
        """See Scanner."""
        return 0


class Counted:
    """A body of a known length."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes) -> int:
        """See Scanner."""
        size = len(data)
        if size < self._left:
            self._left -= size
            return size
        taken, self._left = self._left, 0
        self.done = True
        return taken


class Endless:
    """A body that ends with its connection."""

    done = False

    def feed(self, data: bytes) -> int:
        """See Scanner."""
        return len(data)


class Chunked:
    """A body in chunks, with its trailers."""

    def __init__(self) -> None:
        self.done = False
        self._skip = 0  # bytes of the present chunk that are still to come, its line end included
        self._line = bytearray()  # the beginning of a size line, of a chunk's line end, or of the trailers
        self._in_trailers = False

    def feed(self, data: bytes) -> int:
        """See Scanner."""
        position, size = 0, len(data)
        while position < size and not self.done:
            if self._skip > 2:
                step = min(self._skip - 2, size - position)
                self._skip -= step
                position += step
            elif self._skip:
                position = self._end_of_chunk(data, position)
            elif self._in_trailers:
                position = self._trailers(data, position)
            else:
                position = self._size_line(data, position)
        return position

    def _end_of_chunk(self, data: bytes, position: int) -> int:
        expected = b"\r\n"[2 - self._skip]
        if data[position] != expected:
            raise BadMessage("a chunk is longer than it says")
        self._skip -= 1
        return position + 1

    def _size_line(self, data: bytes, position: int) -> int:
        if not self._line:  # mostly it has come whole
            whole = _SIZE_LINE.match(data, position)
            if whole is not None:
                self._begin(int(whole[1], 16))
                return whole.end()
        return self._collect(data, position, self._read_size, _LONGEST_LINE)

    def _trailers(self, data: bytes, position: int) -> int:
        return self._collect(data, position, self._read_trailer, _LONGEST_TRAILERS)

    def _collect(self, data: bytes, position: int, read: "_Reader", limit: int) -> int:
        """Collect up to the next line feed and have it read."""
        end = data.find(b"\n", position)
        stop = len(data) if end < 0 else end + 1
        self._line += data[position:stop]
        if len(self._line) > limit:
            raise BadMessage("a line of a chunked body is too long")
        if end >= 0:
            read()
        return stop

    def _read_size(self) -> None:
        whole = _SIZE_LINE.fullmatch(bytes(self._line))
        if whole is None:
            raise BadMessage("the size of a chunk is malformed")
        self._line.clear()
        self._begin(int(whole[1], 16))

    def _begin(self, size: int) -> None:
        if size:
            self._skip = size + 2
        else:
            self._in_trailers = True

    def _read_trailer(self) -> None:
        if not self._line.endswith(b"\r\n"):
            raise BadMessage("a trailer is malformed")
        text = bytes(self._line)
        if text == b"\r\n" or text.endswith(b"\r\n\r\n"):
            for name, _ in read_fields(text):
                lower = name.lower()
                if lower in _NOT_IN_TRAILERS or lower.startswith((b"x-forwarded-", b"x-runstead-")):
                    raise BadMessage(f"this field cannot be a trailer: {name.decode()}")
            self.done = True


class _Reader(Protocol):
    def __call__(self) -> None: ...


def scanner(framing: Framing, length: int) -> Scanner:
    """Return what follows a body of this framing."""
    match framing:
        case Framing.NONE:
            return Nothing()
        case Framing.LENGTH:
            return Counted(length)
        case Framing.CHUNKED:
            return Chunked()
        case Framing.CLOSE:
            return Endless()
