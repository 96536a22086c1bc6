"""The stored form of a job's log: one line of output, one line of file.

    2026-05-12T14:57:43.000123Z text of the line

A fixed-width UTC time (27 bytes), one space, the bytes the job wrote (without the line end), a newline.
Text is kept as it came; whoever shows it decodes it. A fixed width lets the writer stamp a whole block with
one call and the reader cut a line without parsing it. Lines longer than `LINE_LIMIT` are continued on the next.
"""

from datetime import UTC, datetime

STAMP_BYTES = 27
PREFIX_BYTES = STAMP_BYTES + 1
LINE_LIMIT = 64 * 1024


def stamp(at: datetime) -> bytes:
    """Return the 27-byte form of an aware instant."""
    at = at.astimezone(UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode("ascii")


def parse_stamp(text: bytes) -> datetime:
    """Return the instant of a 27-byte stamp. Raises ValueError for anything else."""
    return datetime.strptime(text.decode("ascii"), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)


def encode(block: bytes, prefix: bytes) -> bytes:
    """Stamp every line of `block`, which ends with a newline, with `prefix` (stamp and space)."""
    return prefix + block[:-1].replace(b"\n", b"\n" + prefix) + b"\n"
