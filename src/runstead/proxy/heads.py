"""The heads of HTTP/1.1 messages, read as RFC 9112 has them and in no other way.

What two programs read differently is how requests are smuggled past one of them. So nothing is guessed and nothing
is repaired: bare CR or LF, folded lines, blanks before a colon and two lengths are refused.
"""

import re
from dataclasses import dataclass
from enum import Enum

MAX_HEAD_BYTES = 256 * 1024
MAX_FIELDS = 1000

Field = tuple[bytes, bytes]  # name as it was written, value without blanks around it

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([!-~]+) HTTP/1\.([01])\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t -~\x80-\xff]*))?\r\n")
# Blanks around the value are cut afterwards: a pattern that did it could be made to take quadratic time.
_FIELD = re.compile(rb"(" + _TOKEN + rb"):([\t -~\x80-\xff]*)\r\n")
_DIGITS = re.compile(rb"[0-9]{1,18}")

# They concern one connection and not the message (RFC 9110 §7.6.1).
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)


class BadMessage(Exception):
    """A message that is not HTTP as it should be. `status` is what to answer if it was a request."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Framing(Enum):
    """How the end of a body is known."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"  # answers only


@dataclass(slots=True)
class Head:
    """What requests and answers have in common."""

    minor: int  # of the version: 0 or 1
    fields: list[Field]

    def all(self, name: bytes) -> list[bytes]:
        """Return the values of every field of that lower-case name."""
        return [value for found, value in self.fields if found.lower() == name]

    def first(self, name: bytes) -> bytes | None:
        """Return the value of the first field of that lower-case name."""
        for found, value in self.fields:
            if found.lower() == name:
                return value
        return None

    @property
    def options(self) -> frozenset[bytes]:
        """What `Connection` lists, in lower case."""
        values = self.all(b"connection")
        return frozenset(one.strip().lower() for value in values for one in value.split(b",")) if values else _NOTHING

    @property
    def keeps_alive(self) -> bool:
        """Whether the sender wants to go on with this connection afterwards."""
        options = self.options
        return b"keep-alive" in options if self.minor == 0 else b"close" not in options

    def body(self) -> tuple[Framing, int]:
        """Return the framing that the fields announce, and the length. Raises BadMessage for contradictions."""
        codings = self.all(b"transfer-encoding")
        lengths = self.all(b"content-length")
        if codings:
            if lengths:
                raise BadMessage("a message has either Content-Length or Transfer-Encoding, not both")
            if self.minor == 0:
                raise BadMessage("HTTP/1.0 has no Transfer-Encoding")
            if len(codings) > 1 or codings[0].lower() != b"chunked":
                raise BadMessage("the only Transfer-Encoding served here is chunked", 501)
            return Framing.CHUNKED, 0
        if not lengths:
            return Framing.NONE, 0
        if len(lengths) > 1 or not _DIGITS.fullmatch(lengths[0]):
            raise BadMessage("Content-Length should be one number")
        return Framing.LENGTH, int(lengths[0])


_NOTHING: frozenset[bytes] = frozenset()


@dataclass(slots=True)
class RequestHead(Head):
    """The head of a request."""

    method: bytes
    target: bytes

    @property
    def host(self) -> bytes:
        """The one Host of the request. Raises BadMessage for none or several."""
        hosts = self.all(b"host")
        if len(hosts) != 1:
            raise BadMessage(f"a request has one Host, not {len(hosts)}")
        return hosts[0]

    @property
    def upgrade(self) -> bytes | None:
        """The protocol that the client wants to change to."""
        return self.first(b"upgrade") if self.minor and b"upgrade" in self.options else None


@dataclass(slots=True)
class AnswerHead(Head):
    """The head of an answer."""

    status: int
    reason: bytes

    def body_after(self, method: bytes) -> tuple[Framing, int]:
        """Return how the body ends. Raises BadMessage for contradictions."""
        framing, length = self.body()
        if method == b"HEAD" or self.status < 200 or self.status in (204, 304):
            return Framing.NONE, 0
        return (Framing.CLOSE, 0) if framing is Framing.NONE else (framing, length)


def read_request(data: bytes, end: int) -> RequestHead:
    """Read the head that ends before `end`, behind its empty line. Raises BadMessage."""
    line = _REQUEST_LINE.match(data, 0, end)
    if line is None:
        raise BadMessage("the first line is no request of HTTP/1.1")
    method, target, minor = line.groups()
    return RequestHead(int(minor), _fields(data, line.end(), end), method, target)


def read_answer(data: bytes, end: int) -> AnswerHead:
    """Read the head that ends before `end`, behind its empty line. Raises BadMessage."""
    line = _STATUS_LINE.match(data, 0, end)
    if line is None:
        raise BadMessage("the first line is no answer of HTTP/1.1")
    minor, status, reason = line.groups()
    return AnswerHead(int(minor), _fields(data, line.end(), end), int(status), reason or b"")


def read_fields(data: bytes) -> list[Field]:
    """Read fields up to the empty line at the end of `data`. Raises BadMessage."""
    return _fields(data, 0, len(data))


def _fields(data: bytes, position: int, end: int) -> list[Field]:
    found: list[Field] = []
    last = end - 2  # of the empty line
    while position < last:
        field = _FIELD.match(data, position, last)
        if field is None:
            raise BadMessage("a header line is malformed")
        found.append((field[1], field[2].strip(b" \t")))
        position = field.end()
    if len(found) > MAX_FIELDS:
        raise BadMessage(f"at most {MAX_FIELDS} header lines", 431)
    return found


def write_request(method: bytes, target: bytes, minor: int, fields: list[Field]) -> bytes:
    """Write the head of a request."""
    return b"%b %b HTTP/1.%d\r\n%b\r\n" % (method, target, minor, _lines(fields))


def write_answer(status: int, reason: bytes, fields: list[Field]) -> bytes:
    """Write the head of an answer. Its version is our own, 1.1, whatever the program in the job speaks."""
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, reason, _lines(fields))


def _lines(fields: list[Field]) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields])
